"""Cost tables: what rows say, what is kept when work is cut short, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compressor.errors import CheckpointError, StageError, UserError
from compressor.measurement.additivity import check_additivity, fit_costs, fit_name, random_structures
from compressor.measurement.calls import call_shapes
from compressor.measurement.cost_basis import CostBasis, WholeModels, measure_costs
from compressor.measurement.cost_graphs import Whole, make_stack, model_shape
from compressor.measurement.cost_rows import Effort, Timer, fill_table, points, wanted_rows
from compressor.measurement.cost_table import (
    CallShape,
    Costs,
    CostTable,
    Fit,
    Turn,
    open_table,
    read_table,
    table_path,
    tables_folder,
)
from compressor.measurement.device import Device, last_level_cache_bytes, this_device
from compressor.measurement.granule import device_granule, granule_of
from compressor.measurement.graph_rounds import Clock, Graph, opened
from compressor.measurement.whole_models import AgainstDense
from compressor.methods.surgery import read_structure
from compressor.spec.evaluation import Workload

HERE = Device("Zen 3", "EPYC", 2, 2**25, "x86_64", 2, "CPUExecutionProvider", "1.31.1")
CALL = CallShape("forward", 4, 16, 0, 64.0, 1.0)
STEP = CallShape("decode", 1, 1, 24, 1.0, 0.5)
COSTS_MS = [
    ("frame", 0, 2), ("empty", 0, 5), ("attention", 2, 6), ("attention", 4, 10), ("ffn", 100, 4), ("ffn", 400, 10),
]  # fmt: skip
QUICK = Effort(rounds=3, window_s=0.002, whole_rounds=3, most_whole_rounds=3, whole_window_s=0.002)


def turn(cpu_s: float, **changes: object) -> Turn:
    return replace(Turn(cpu_s, cpu_s / 2, 10, 3 * cpu_s, "estimated"), **changes)  # type: ignore[arg-type]


def made_up(path: Path | None = None, *, drift: tuple[float, ...] = (1.0, 1.0, 1.0)) -> CostTable:
    """Attention costs 1 ms a head, FFN 1 ms for 100 neurons, the frame 2 ms, the empty model 5 ms; two sublayers each.

    The machine is slower in some rounds.
    """
    table = CostTable(HERE, {"model_type": "bert", "n_layers": 2}, path=path)
    table.begin_session()
    for number, speed in enumerate(drift):
        for kind, size, cost in COSTS_MS:
            turns = turn(cost * 1e-3 * speed)
            table.add((kind, size, "fp32"), CALL, number, turns, n_sublayers=2, size_bytes=1000 + 100 * cost)
    return table


@pytest.fixture(scope="module")
def tiny_decoder() -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        pad_token_id=80,
        bos_token_id=81,
        eos_token_id=82,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_a_sublayer_costs_its_graph_less_the_frame_and_sizes_between_are_interpolated() -> None:
    table = made_up()
    assert table.sublayer("attention", 4, "fp32", CALL, "cpu_s") == pytest.approx(4e-3)
    assert table.sublayer("attention", 3, "fp32", CALL, "cpu_s") == pytest.approx(3e-3)
    assert table.sublayer("attention", 1, "fp32", CALL, "cpu_s") == pytest.approx(1e-3)
    assert table.sublayer("ffn", 0, "fp32", CALL, "cpu_s") == 0.0
    assert table.sublayer("ffn", 400, "fp32", CALL, "size_bytes") == pytest.approx(400)
    assert table.sublayer("ffn", 400, "fp32", CALL, "energy_j") == pytest.approx(12e-3)
    with pytest.raises(UserError, match="the cost table has no attention of size 5"):
        table.sublayer("attention", 5, "fp32", CALL, "cpu_s")


def test_costs_are_per_real_token_and_weighted_over_the_mix() -> None:
    padded = replace(CALL, real_tokens=32.0)
    costs = Costs(made_up(), (padded,))
    assert costs.sublayer("attention", 4, "cpu_s") == pytest.approx(4e-3 / 32)
    assert costs.sublayer("attention", 4, "latency_s") == pytest.approx(2e-3)
    assert costs.fixed("cpu_s") == pytest.approx(5e-3 / 32)
    assert costs.dense([(4, 400), (2, 100)], "cpu_s") == pytest.approx((5 + 4 + 4 + 2 + 1) * 1e-3 / 32)
    halves = Costs(made_up(), (replace(CALL, weight=0.5), replace(CALL, weight=0.5, real_tokens=32.0)))
    assert halves.fixed("cpu_s") == pytest.approx((0.5 / 64 + 0.5 / 32) * 5e-3)


def test_what_a_round_has_in_common_is_taken_off() -> None:
    steady, drifting = made_up().rows, made_up(drift=(1.0, 1.4, 0.8)).rows
    level = (1.0 * 1.4 * 0.8) ** (1 / 3)
    for key, row in drifting.items():
        assert row.cpu_s[0] == pytest.approx(steady[key].cpu_s[0] * level)
        assert row.cpu_s[2] - row.cpu_s[1] < 1e-12  # nothing is left of the drift
        assert row.energy_j is not None and steady[key].energy_j is not None
        assert row.energy_j == pytest.approx(steady[key].energy_j * level)


def test_joules_that_are_not_known_are_no_number() -> None:
    table = CostTable(HERE, {"model_type": "bert"})
    table.begin_session()
    for kind in ("frame", "ffn"):
        lacking = turn(1e-3, energy_j=None, energy_kind="the meter stood still")
        table.add((kind, 0 if kind == "frame" else 8, "fp32"), CALL, 0, lacking, n_sublayers=1, size_bytes=1)
    with pytest.raises(UserError, match=r"this table has no joules: the meter stood still\n  -> .*cpu_s_per_token"):
        table.sublayer("ffn", 8, "fp32", CALL, "energy_j")


def test_a_table_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    table = made_up(tmp_path / "a" / "table.jsonl", drift=(1.0, 1.2, 0.9))
    table.add_fit("fp32-x", Fit(1.0, {"all": 1.1}, 0.02, 1.0, 5, (1.0, 2.0), (1.0, 2.1)))
    table.add_comparison("abc", {"ratio": 0.5})
    again = read_table(tmp_path / "a" / "table.jsonl")
    assert again.rows == table.rows and again.fits == table.fits and again.comparisons == table.comparisons
    assert Costs(again, (CALL,)).digest() == Costs(table, (CALL,)).digest()
    assert json.loads(json.dumps(again.to_json())) == json.loads(json.dumps(table.to_json()))


def test_an_interrupted_table_keeps_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    made_up(path)
    whole = path.read_text()
    path.write_text(whole[:-40])  # killed in the middle of a line
    table = open_table(path, HERE, {"model_type": "bert", "n_layers": 2})
    assert sum(len(samples) for samples in table.samples.values()) == 3 * 6 - 1
    assert table.n_samples(("ffn", 400, "fp32"), CALL) == 2
    table.begin_session()
    table.add(("ffn", 400, "fp32"), CALL, 0, turn(1e-2), n_sublayers=2, size_bytes=2000)
    assert read_table(path).n_samples(("ffn", 400, "fp32"), CALL) == 3


def test_a_table_of_another_device_is_refused_unless_it_is_accepted(tmp_path: Path) -> None:
    path, model = tmp_path / "table.jsonl", {"model_type": "bert", "n_layers": 2}
    made_up(path)
    other = replace(HERE, cpu="Zen 5", threads=1)
    with pytest.raises(
        UserError,
        match=r"jsonl: the cost table is of another device: cpu Zen 3 there, Zen 5 here; threads 2 there, 1 here\n"
        r"  -> measure one here .*, or accept it: .*accept_other_device: true, --accept-other-device",
    ):
        open_table(path, other, model)
    assert open_table(path, other, model, accept_other_device=True).device == HERE
    with pytest.raises(UserError, match="the cost table is of another model: n_layers 2 there, 6 here"):
        open_table(path, HERE, {"model_type": "bert", "n_layers": 6})


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    for text in ("", "hello\n", '{"format": 1}\n'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"table.jsonl: this is no cost table, or a damaged one"):
            read_table(path)
    made_up(tmp_path / "good.jsonl")
    lines = (tmp_path / "good.jsonl").read_text().splitlines()
    path.write_text("\n".join([lines[0].replace('"format": 1', '"format": 9'), *lines[1:]]) + "\n")
    with pytest.raises(CheckpointError, match="a cost table of format 9; this is 1"):
        read_table(path)


def test_missing_rows_are_named() -> None:
    with pytest.raises(UserError, match=r"lacks the row frame 0 fp32 b1-t1-p24\n  -> measure the table again"):
        Costs(made_up(), (STEP,)).sublayer("ffn", 100, "cpu_s")


def test_a_fit_corrects_sums_by_what_whole_models_showed() -> None:
    fit = Fit(6e-3 / 64, {"attention": 1.5, "ffn": 2.0}, 0.01, 1.0, 5, (), ())
    costs = Costs(made_up(), (CALL,), fit=fit)
    assert costs.sublayer("attention", 4, "cpu_s") == pytest.approx(1.5 * 4e-3 / 64)
    assert costs.sublayer("ffn", 400, "energy_j") == pytest.approx(2.0 * 12e-3 / 64)
    assert costs.sublayer("ffn", 400, "size_bytes") == pytest.approx(400)
    assert costs.fixed("cpu_s") == pytest.approx(6e-3 / 64)
    assert costs.fixed("latency_s") == pytest.approx(2.5e-3 * 6 / 5)


def test_additivity_is_found_where_it_is_and_refused_where_it_is_not(tiny_encoder: PreTrainedModel) -> None:
    rng = np.random.default_rng(0)
    parts = rng.uniform(1.0, 3.0, (6, 2))
    fit = fit_costs(parts, 2.0 + 1.5 * parts.sum(axis=1))
    assert fit.slopes == pytest.approx({"all": 1.5}) and fit.intercept == pytest.approx(2.0)
    assert fit.mape < 1e-9 and fit.kendall_tau == pytest.approx(1.0)
    uneven = fit_costs(parts, 1.0 + parts @ np.array([1.0, 1.9]))
    assert uneven.slopes == pytest.approx({"attention": 1.0, "ffn": 1.9}) and uneven.mape < 1e-9
    for unbelievable in (
        [1.0, 4.0],
        [1.0, -0.5],
        [-1.0, -1.5],
    ):  # then the one slope stands, and is refused if it is bad
        assert set(fit_costs(parts, 9.0 + parts @ np.array(unbelievable)).slopes) == {"all"}
    noise = fit_costs(parts, rng.uniform(1.0, 9.0, 6))
    table = made_up()
    table.fits[fit_name([CALL], "fp32")] = noise
    with pytest.raises(
        StageError, match=r"the cost table does not add up: on 6 random whole models its sums are off by \d+\.\d% .*tau"
    ):
        check_additivity(table, Timer(tiny_encoder, False, ("last_hidden_state",)), [CALL], "fp32", [])


def test_random_structures_are_uneven_valid_and_reproducible(tiny_decoder: PreTrainedModel) -> None:
    timer = Timer(tiny_decoder, True, ("logits",))
    drawn = random_structures(timer, 5, 16, seed=3)
    assert drawn == random_structures(timer, 5, 16, seed=3) != random_structures(timer, 5, 16, seed=4)
    for whole in drawn:
        assert whole.sizes is not None and whole.precision == "fp32" and not whole.wide
        assert all(heads == 2 * kv <= 4 and width % 16 == 0 and 0 <= width <= 64 for heads, kv, width in whole.sizes)
    widths = [sum(width for *_, width in whole.sizes or ()) for whole in drawn]
    assert widths[0] < widths[-1]

    mixed = random_structures(timer, 5, 16, 3, "mixed")
    assert [whole.sizes for whole in mixed] == [whole.sizes for whole in drawn]
    assert {whole.precision for whole in mixed} == {"int8"}
    left = [whole.wide for whole in mixed]
    assert len(set(left)) > 1 and 0 < sum(map(len, left)) < 5 * 2 * len(mixed[0].sizes or ())
    assert len({whole.name for whole in (*mixed, *drawn)}) == 10


@pytest.mark.parametrize(
    ("kind", "size", "shape"), [("attention", 2, (2, 0)), ("ffn", 16, (0, 16)), ("frame", 0, (0, 0))]
)
def test_a_stack_holds_one_kind_of_sublayer(
    kind: str, size: int, shape: tuple[int, int], tiny_encoder: PreTrainedModel, tiny_decoder: PreTrainedModel
) -> None:
    for model in (tiny_encoder, tiny_decoder):
        layers = read_structure(make_stack(model, kind, size, 3)).layers
        assert [(layer.n_heads, layer.ffn_width) for layer in layers] == [shape] * 3


def test_points_are_few_aligned_and_reach_the_end() -> None:
    assert points(1536, 64, 3) == [256, 512, 1024, 1536]
    assert points(12, 1, 3) == [2, 4, 8, 12]
    assert points(40, 64, 3) == [40]
    assert points(0, 1, 3) == []


@pytest.mark.parametrize("precision", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_table_is_measured_once_and_serves_whole_models(
    precision: str, tiny_decoder: PreTrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[tuple[str, int, int]] = []
    asked: dict[str, Any] = {
        "is_decoder": True,
        "outputs": ("logits",),
        "calls": (replace(STEP, weight=1.0),),
        "precision": precision,
        "granule": 16,
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "effort": QUICK,
        "check": False,
        "on_progress": lambda *event: seen.append(event),
    }
    basis = measure_costs(tiny_decoder, **asked)
    assert seen[-1][1] == seen[-1][2] > 0
    table = basis.costs.table
    assert table.path is not None and table.path.parent == tables_folder()
    assert {row.n_samples for row in table.rows.values()} == {3}
    assert all(row.energy_kind == "estimated" and row.cpu_s[0] > 0 for row in table.rows.values())
    quarter, full = (basis.costs.sublayer("ffn", size, "size_bytes") for size in (16, 64))
    assert 0 < quarter < full
    before = table.path.read_text()
    seen.clear()
    again = measure_costs(tiny_decoder, **asked)
    assert not seen and table.path.read_text() == before and again.digest() == basis.digest()
    with WholeModels(again) as whole:
        found = whole.compare([(2, 1, 16), (4, 2, 0)])
    assert found.rounds == 3 and found.ratio > 0 and found.aa_bound >= 0 and found.size_bytes < found.dense_size_bytes
    with WholeModels(CostBasis(again.costs, again.timer)) as whole:
        assert whole.compare([(2, 1, 16), (4, 2, 0)]) == found  # from the file: nothing is timed again


def test_a_renewed_crew_times_the_same_graphs_in_new_processes(tiny_encoder: PreTrainedModel, tmp_path: Path) -> None:
    device = this_device(threads=1, provider="CPUExecutionProvider")
    timer = Timer(tiny_encoder, False, ("last_hidden_state",), QUICK)
    graph = timer.write_whole(Whole(), tmp_path)
    graphs = [replace(graph, name=name) for name in ("one", "other")]
    with opened(graphs, timer.clock(device, 0.002), tmp_path, one_process=False) as crew:
        before = {name: worker.pid for name, (_, worker) in crew._members.items()}
        crew.renew(np.random.default_rng(0))
        after = {name: worker.pid for name, (_, worker) in crew._members.items()}
        assert set(after) == set(before) and not set(after.values()) & set(before.values())
        assert not any(psutil.pid_exists(pid) for pid in before.values())
        turns = crew.round([CALL], np.random.default_rng(0))
    assert {name: turn[CALL.key].cpu_s > 0 for name, turn in turns.items()} == {"one": True, "other": True}


class NoisyCrew:
    """Turns of a machine whose first rounds are disturbed: a stand-in for other people's work."""

    def __init__(self, disturbed: int) -> None:
        self.left = disturbed

    def add(self, graph: Graph, *, one_process: bool) -> None: ...

    def drop(self, name: str) -> None: ...

    def renew(self, rng: np.random.Generator) -> None: ...

    def round(self, calls: Sequence[CallShape], rng: np.random.Generator) -> dict[str, dict[str, Turn]]:
        self.left -= 1
        spread = 0.5 if self.left >= 0 else 0.002
        costs = {"dense": 1e-3, "dense again": 1e-3, "pruned": 0.6e-3}
        return {
            name: {call.key: turn(cost * math.exp(rng.normal(0, spread))) for call in calls}
            for name, cost in costs.items()
        }


@pytest.mark.parametrize(("disturbed", "rounds"), [(0, 12), (12, 32), (100, 36)])
def test_a_session_that_cannot_tell_a_model_from_itself_is_timed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: int, rounds: int
) -> None:
    (tmp_path / "dense.onnx").write_bytes(b"12")
    graph = Graph("dense", tmp_path / "dense.onnx", 10)
    against = AgainstDense(graph, [CALL], Clock(HERE, 0.1, (), None), rounds=12, most_rounds=36)
    monkeypatch.setattr(against, "_crew", NoisyCrew(disturbed), raising=False)
    found = against.compare(graph)
    assert found.rounds == rounds
    assert (found.aa_bound <= 0.05) == (disturbed < 100)
    if disturbed < 100:  # a third of disturbed rounds does not move it
        assert found.ratio == pytest.approx(0.6, rel=0.01)


def test_only_rows_that_lack_rounds_are_timed_again(tiny_encoder: PreTrainedModel, tmp_path: Path) -> None:
    device = this_device(threads=1, provider="CPUExecutionProvider")
    table = open_table(tmp_path / "t.jsonl", device, model_shape(tiny_encoder))
    timer = Timer(tiny_encoder, False, ("last_hidden_state",), QUICK)
    rows = wanted_rows(tiny_encoder, ["fp32"], 32)
    fill_table(table, timer, rows[:2], [CALL])
    fill_table(table, timer, rows[:3], [CALL])
    assert {table.n_samples(row, CALL) for row in rows[:3]} == {3}
    assert len({sample.round for samples in table.samples.values() for sample in samples}) == 6


def test_tables_have_a_file_for_each_device_and_model(tmp_path: Path) -> None:
    model = {"model_type": "bert", "n_layers": 2}
    paths = {
        table_path(tmp_path, device, shape)
        for device in (HERE, replace(HERE, threads=1))
        for shape in (model, {**model, "n_layers": 3})
    }
    assert len(paths) == 4 and all(path.name.startswith("bert-") for path in paths)


def test_the_largest_cache_is_read_from_the_system(tmp_path: Path) -> None:
    for index, size in enumerate(("32K", "1M", "32768K")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 2**25
    assert last_level_cache_bytes(tmp_path / "nowhere") is None


def test_workloads_become_calls() -> None:
    fixed = Workload(id="a", batch=2, input_tokens=32)
    (call,) = call_shapes([fixed], [], is_decoder=False)
    assert (call.phase, call.batch, call.n_new, call.real_tokens, call.weight) == ("forward", 2, 32, 64.0, 1.0)
    rows = Workload(id="b", batch=2, from_data=True, weight=3.0)
    mix = call_shapes([fixed, rows], [10, 20, 30, 40], is_decoder=False)
    assert [one.weight for one in mix] == [0.25, 0.75]
    assert mix[1].n_new == 32 and mix[1].real_tokens == pytest.approx(2 * 32 * 100 / 120)
    sorted_rows = Workload(id="c", batch=2, from_data=True, order="length")
    assert call_shapes([sorted_rows], [10, 40, 10, 40], is_decoder=False)[0].real_tokens == pytest.approx(2 * 24)


def test_decoders_have_prefill_and_decode_by_their_tokens() -> None:
    workload = Workload(id="chat", input_tokens=96, output_tokens=32)
    prefill, decode = call_shapes([workload], [], is_decoder=True)
    assert (prefill.n_new, prefill.n_past, prefill.weight) == (96, 0, 0.75)
    assert (decode.n_new, decode.n_past, decode.real_tokens, decode.weight) == (1, 112, 1.0, 0.25)
    (alone,) = call_shapes([workload], [], is_decoder=True, phase="decode")
    assert alone.weight == 1.0 and alone.phase == "decode"
    with pytest.raises(UserError, match="no workload 'chats'\n  -> there are: chat"):
        call_shapes([workload], [], is_decoder=True, workload="chats")
    with pytest.raises(UserError, match=r"no workload has a phase 'forward'\n  -> .*output_tokens"):
        call_shapes([workload], [], is_decoder=True, phase="forward")
    assert math.fsum(one.weight for one in (prefill, decode)) == 1.0


def test_the_granule_is_the_finest_step_that_costs_nothing_extra() -> None:
    line = {512: 1.0, 520: 1.01, 528: 1.02, 544: 1.05, 576: 1.1}
    assert granule_of(line) == 8
    assert granule_of({**line, 520: 1.15}) == 16
    assert granule_of({**line, 520: 1.15, 528: 1.12}) == 32
    assert granule_of({**line, 520: 1.15, 528: 1.12, 544: 1.12}) == 64


def test_the_granule_is_measured_once_for_a_device(tmp_path: Path) -> None:
    device = this_device(threads=1, provider="CPUExecutionProvider")
    found = device_granule(device, tmp_path, rounds=3, window_s=0.002)
    (path,) = tmp_path.glob("granule-*.json")
    record = json.loads(path.read_text())
    assert found in (8, 16, 32, 64) and set(record["relative_cpu_s"]) == {"512", "520", "528", "544", "576"}
    path.write_text(json.dumps({**record, "granule": 40}))
    assert device_granule(device, tmp_path) == 40  # read, not measured
