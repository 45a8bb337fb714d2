"""A pruning under a measured budget: chosen by a table, held to it by whole models, and the same again from the same
table. Windows are too short to mean anything: nothing here depends on what they read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_shelf import Shelf, make_context, stage_config

from compressor.checkpoints.precisions import precisions_of, write_precisions
from compressor.checkpoints.store import Checkpoint, seal
from compressor.errors import CompressorError, DataError, UserError
from compressor.measurement.cost_basis import CostBasis
from compressor.measurement.cost_rows import Effort
from compressor.measurement.cost_table import Costs, Precision, Quantity
from compressor.measurement.whole_models import Comparison
from compressor.methods.choosing import Choice, Cost, Group, Option, OptionScores, choice_of
from compressor.methods.structure import KINDS, Structure
from compressor.methods.surgery import read_structure
from compressor.methods.trying import Trial
from compressor.schema.events import Event, Note, Progress
from compressor.spec.budgets import PruneBudget, Search
from compressor.spec.evaluation import Target, Workload
from compressor.spec.stages import Prune
from compressor.spec.tasks import TASKS
from compressor.stages import searching
from compressor.stages.context import SourceInput, StageInputs
from compressor.stages.costing import cost_basis, row_lengths
from compressor.stages.dispatch import run_here
from compressor.stages.prune import prune
from compressor.stages.searching import Request, search, split_batches

EFFORT = Effort(rounds=3, window_s=0.002, whole_rounds=3, most_whole_rounds=3, whole_window_s=0.002)
ROWS = Workload(id="rows", batch=4, from_data=True)


def config(budget: dict[str, Any], **settings: Any) -> Prune:
    found = stage_config(
        "small",
        {
            "stage": "prune",
            "budget": budget,
            "granule": 8,
            "search": {"swaps": 3, "levels": 3, "rescale": 1, **settings},
        },
    )
    assert isinstance(found, Prune)
    return found


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture
def basis_of(tables: Path, monkeypatch: pytest.MonkeyPatch, bert: Shelf) -> Callable[[Prune], CostBasis]:
    """Measured once for all tests of this file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tables))

    def make(stage: Prune) -> CostBasis:
        found = cost_basis(
            stage, bert.get("finetune"), workloads=[ROWS], data=bert.data, task=TASKS["sequence-classification"],
            max_tokens=32, target=Target(threads=1), calibration=None, emit=lambda event: None, effort=EFFORT,
            check=False,
        )  # fmt: skip
        assert found is not None
        return found

    return make


def do(shelf: Shelf, folder: Path, stage: Prune, basis: CostBasis, events: list[Event]) -> Checkpoint:
    ctx = replace(make_context(shelf.task, shelf.data, folder / "work"), costs=basis, emit=events.append)
    return prune(stage, SourceInput(shelf.get("finetune")), folder / "out", ctx)


@pytest.mark.slow
def test_predicted_and_measured_cost_are_both_in_the_record(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], tmp_path: Path, events: list[Event]
) -> None:
    stage = config({"cpu_s_per_token": "0.6x"})
    made = do(bert, tmp_path / "one", stage, basis_of(stage), events)
    choice = made.record.realised["choice"]
    assert choice["budget"] == {"cpu_s_per_token": "0.6x"} and choice["cost"] == "cpu_s_per_token"
    assert choice["predicted_cost_ratio"] > 0
    assert choice["measured_cost_ratio"] == pytest.approx(choice["measured"]["ratio"])
    assert choice["measured"]["aa_bound"] >= 0 and choice["tolerance"] >= 0.02
    assert 1 <= len(choice["attempts"]) <= 2  # corrected at most once
    assert choice["loss"] > -1e-6  # a divergence, which rounding may put below 0
    assert 0 <= choice["swaps_tried"] <= 3  # in so noisy a table there may be fewer moves worth trying
    assert choice["cost_table"] == basis_of(stage).digest()
    missed = [event.text for event in events if isinstance(event, Note)]
    assert bool(missed) != choice["is_kept"]
    assert all("the budget of 0.6x was missed by" in text and "is allowed" in text for text in missed)
    tasks = {event.task for event in events if isinstance(event, Progress)}
    assert {"score options", "measure the exported shape"} <= tasks
    assert ("swap options" in tasks) == (choice["swaps_tried"] > 0)
    structure = Structure.from_json(made.record.realised["structure"])
    assert sum(layer.ffn_width for layer in structure.layers) > 0

    # given the same table and what it says of whole models, the same again
    again = do(bert, tmp_path / "two", stage, basis_of(stage), [])
    assert again.digest == made.digest and again.record.realised["choice"] == choice


def test_a_budget_below_what_cannot_be_pruned_names_the_least(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], tmp_path: Path
) -> None:
    stage = config({"cpu_s_per_token": 1e-12})
    with pytest.raises(
        UserError,
        match=r"a budget of 1e-12 .* cannot be met: the least that any choice costs is \d\S* \(\d\S* of dense\)\n"
        r"  -> raise the budget; embeddings, head",
    ):
        do(bert, tmp_path, stage, basis_of(stage), [])
    assert not (tmp_path / "out").exists()


def test_too_little_calibration_says_how_much_is_needed(bert: Shelf, tmp_path: Path) -> None:
    stage = config({"macs": 0.6})  # counted, so that the choice is the same on any machine
    assert bert.data.calibration is not None
    few = replace(bert.data, calibration=bert.data.calibration.select(range(2)))
    ctx = make_context(bert.task, few, tmp_path / "work")
    with pytest.raises(DataError, match=r"\d+ calibration tokens are too few to refit \d+ columns: \d+ are needed"):
        prune(stage, SourceInput(bert.get("finetune")), tmp_path / "out", ctx)


def test_a_table_is_not_measured_for_a_counted_budget(bert: Shelf) -> None:
    asked: dict[str, Any] = {
        "workloads": [ROWS], "data": bert.data, "task": TASKS["sequence-classification"], "max_tokens": 32,
        "target": Target(threads=1), "calibration": None, "emit": lambda event: None,
    }  # fmt: skip
    assert cost_basis(config({"macs": 0.5}), bert.get("finetune"), **asked) is None
    missing = config({"cpu_s_per_token": "0.5x"}, cost_table="nowhere.jsonl")
    with pytest.raises(UserError, match=r"nowhere.jsonl: no such cost table\n  -> leave it out, and one is measured"):
        cost_basis(missing, bert.get("finetune"), **asked)


def test_a_table_of_another_device_must_be_accepted_and_checked(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], tmp_path: Path
) -> None:
    ours = basis_of(config({"cpu_s_per_token": "0.6x"})).costs.table.path
    assert ours is not None
    head, *rest = ours.read_text().splitlines(keepends=True)
    value = json.loads(head)
    value["device"]["cpu"] = "another"
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text(json.dumps(value) + "\n" + "".join(rest))
    refused = config({"cpu_s_per_token": "0.6x"}, cost_table=str(foreign))
    with pytest.raises(UserError, match="the cost table is of another device: cpu another there"):
        basis_of(refused)
    accepted = config({"cpu_s_per_token": "0.6x"}, cost_table=str(foreign), accept_other_device=True)
    assert basis_of(accepted).costs.table.device.cpu == "another"


def test_lengths_of_calibration_rows_are_those_of_the_tokenizer(bert: Shelf) -> None:
    lengths = row_lengths(bert.get("finetune").path, bert.data, 32)
    assert bert.data.calibration is not None and len(lengths) == len(bert.data.calibration)
    assert max(lengths) <= 32 and min(lengths) > 2
    with pytest.raises(DataError, match="a workload from data needs calibration rows"):
        row_lengths(bert.get("finetune").path, replace(bert.data, calibration=None), 32)


def test_batches_that_score_are_not_those_that_refit() -> None:
    batches = [{"input_ids": torch.full((4, 3), number)} for number in range(8)]
    fitting, judged = split_batches(batches, 8)
    assert len(judged) == 2 and len(fitting) == 6
    assert {int(batch["input_ids"][0, 0]) for batch in [*fitting, *judged]} == set(range(8))
    fitting, judged = split_batches(batches, 100)
    assert len(judged) == 2  # a quarter at most
    assert split_batches(batches[:1], 8) == (batches[:1], batches[:1])


class KnownCosts(Costs):
    """A made-up table: a head costs 1 us, 8 neurons cost 1 us, half of it in INT8, and all else 1 us. One measured in
    windows of 2 ms is noise, and a choice by noise may lie so far below its budget that a dearer device keeps it."""

    def sublayer(self, kind: str, size: int, quantity: Quantity, precision: Precision | None = None) -> float:
        return (0.5e-6 if precision == "int8" else 1e-6) * (size if kind == "attention" else size / 8)

    def fixed(self, quantity: Quantity) -> float:
        return 1e-6


def known_scores(trial: Trial, *, precisions: Sequence[Precision], **_: object) -> OptionScores:
    """Made-up losses: the more leaves, and the later the layer, the worse; INT8 costs a little everywhere. Those of a
    tiny model are noise, in which a smaller sublayer may lose less than a larger one."""
    groups = []
    for place in trial.places:
        options = []
        for precision, count in product(precisions, place.counts):
            kept = place.best(count)
            loss = (1 - count / max(place.counts)) ** 2 + (0.01 if precision == "int8" else 0.0)
            options.append(Option(kept, place.size(kept), (1 + place.layer) * loss, precision))
        groups.append(Group(place.layer, place.kind, tuple(options)))
    return OptionScores(trial.source, tuple(groups))


class FakeDevice:
    """Whole models on a device that costs more than the table says, by a factor, and never less than a share."""

    def __init__(
        self, factor: float, aa_bound: float, full: list[tuple[int, int]], basis: CostBasis, least: float = 0.0
    ) -> None:
        self.factor, self.aa_bound, self.full, self.costs, self.least = factor, aa_bound, full, basis.costs, least

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *_: object) -> None: ...

    def compare(self, sizes: list[tuple[int, int, int]], wide: Collection[tuple[int, str]] = ()) -> Comparison:
        small = self.costs.fixed("cpu_s")
        for number, (heads, _, width) in enumerate(sizes):
            for kind, size in (("attention", heads), ("ffn", width)):
                in_fp32 = self.costs.precision == "fp32" or (number, kind) in wide
                small += self.costs.sublayer(kind, size, "cpu_s", "fp32" if in_fp32 else "int8")
        ratio = max(self.least, self.factor * small / self.costs.dense(self.full, "cpu_s"))
        return Comparison(ratio, None, self.aa_bound, 1.0, ratio, 1.0, ratio, None, None, "none", 100, 50, 3)


@pytest.mark.parametrize(
    ("factor", "aa_bound", "corrected"), [(1.0, 0.05, False), (1.25, 0.05, True), (1.25, 0.5, False)]
)
def test_the_budget_is_corrected_until_it_holds_on_the_device(
    factor: float,
    aa_bound: float,
    corrected: bool,
    bert: Shelf,
    basis_of: Callable[[Prune], CostBasis],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The device is a fake here, since a real one gives no known truth; the A/A interval widens what is allowed."""
    measured = basis_of(config({"cpu_s_per_token": "0.6x"}))
    basis = replace(measured, costs=KnownCosts(measured.costs.table, measured.costs.calls))
    model = basis.timer.model
    full = [(layer.n_heads, layer.ffn_width) for layer in read_structure(model).layers]
    monkeypatch.setattr(searching, "score_trial", known_scores)
    monkeypatch.setattr(searching, "WholeModels", lambda basis: FakeDevice(factor, aa_bound, full, basis))
    ids = torch.arange(4, 60).repeat(16, 1)[:, :24]
    batches = [{"input_ids": (ids + number) % 50 + 4, "attention_mask": torch.ones_like(ids)} for number in range(4)]
    request = Request(
        "small", PruneBudget(cpu_s_per_token="0.7x"), Search(swaps=0, levels=7, rescale=3), "magnitude", "none", 8, "kl"
    )
    found = search(request, model, batches, basis, lambda event: None)
    scales = [attempt["budget_scale"] for attempt in found.facts["attempts"]]
    assert (scales[-1] < 1.0) == corrected
    misses = [abs(attempt["miss"]) for attempt in found.facts["attempts"]]
    stood = 0.7 * (1 + min(found.facts["attempts"], key=lambda one: abs(one["miss"]))["miss"])
    assert found.facts["measured_cost_ratio"] == pytest.approx(stood) and len(misses) <= 4
    if corrected:
        assert misses[0] > 0.05 and found.facts["is_kept"] and found.facts["measured_cost_ratio"] < 0.7 * factor


def test_a_budget_that_stays_out_of_reach_is_missed_by_the_nearest_and_said(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this device no shape gets below 0.9 of what the table says of the dense model."""
    measured = basis_of(config({"cpu_s_per_token": "0.6x"}))
    basis = replace(measured, costs=KnownCosts(measured.costs.table, measured.costs.calls))
    model = basis.timer.model
    full = [(layer.n_heads, layer.ffn_width) for layer in read_structure(model).layers]
    monkeypatch.setattr(searching, "WholeModels", lambda basis: FakeDevice(1.0, 0.01, full, basis, least=0.9))
    ids = torch.arange(4, 60).repeat(16, 1)[:, :24]
    batches = [{"input_ids": (ids + number) % 50 + 4, "attention_mask": torch.ones_like(ids)} for number in range(4)]
    request = Request(
        "small", PruneBudget(cpu_s_per_token="0.4x"), Search(swaps=0, levels=7, rescale=3), "magnitude", "none", 8, "kl"
    )
    said: list[Event] = []
    found = search(request, model, batches, basis, said.append)
    assert found.facts["measured_cost_ratio"] == 0.9 and not found.facts["is_kept"]
    assert [event.text for event in said if isinstance(event, Note)] == [
        "the budget of 0.4x was missed by +125.0%; 2.0% is allowed"
    ]


def test_sizes_and_precisions_are_chosen_together_and_the_quantisation_follows(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On this device INT8 costs half, so a budget of 0.6x is kept by narrow weights rather than by fewer of them."""
    measured = basis_of(config({"cpu_s_per_token": "0.6x"}))
    basis = replace(measured, costs=KnownCosts(measured.costs.table, measured.costs.calls, "mixed"))
    full = [(layer.n_heads, layer.ffn_width) for layer in read_structure(basis.timer.model).layers]
    monkeypatch.setattr(searching, "score_trial", known_scores)
    monkeypatch.setattr(searching, "WholeModels", lambda basis: FakeDevice(1.0, 0.05, full, basis))
    stage = config({"cpu_s_per_token": "0.6x"}, precision="mixed", levels=5, swaps=0)
    small = do(bert, tmp_path / "small", stage, basis, [])
    choice = small.record.realised["choice"]
    assert choice["is_kept"] and choice["precision"] == "mixed"
    chosen = precisions_of(small)
    assert chosen is not None and [dict(layer) for layer in chosen] == choice["precisions"]
    structure = Structure.from_json(small.record.realised["structure"])
    for layer, precisions in zip(structure.layers, chosen, strict=True):
        assert set(precisions) == {"attention", "ffn"} - layer.skip
    flat = [precision for layer in chosen for precision in layer.values()]
    assert {"fp32", "int8"} == set(flat)

    ctx = make_context(bert.task, bert.data, tmp_path / "work")
    onnx = run_here(stage_config("onnx", {"stage": "export"}), StageInputs(small), tmp_path / "onnx", ctx)
    settings = {"stage": "quantize", "scheme": "w8a8-dynamic", "exclude": "searched"}
    int8 = run_here(stage_config("int8", settings), StageInputs(onnx), tmp_path / "int8", ctx)
    products = {"attention": 4, "ffn": 2}
    narrow = sum(products[kind] for layer in chosen for kind, one in layer.items() if one == "int8")
    counted = int8.variant("onnx-w8a8-dynamic").facts["quantised_operators"]
    assert counted == {"MatMulInteger": narrow + 2}  # pooler and classifier go with what no choice changes
    assert len(int8.record.realised["fp32_nodes"]) == sum(map(products.get, KINDS)) * len(chosen) - narrow  # type: ignore[arg-type]

    again = run_here(
        stage_config("half", {"stage": "prune", "keep": {"layers": 0.5}, "granule": 8}), StageInputs(small),
        tmp_path / "half", ctx,
    )  # fmt: skip
    assert precisions_of(again) is None  # chosen for another structure


def test_a_choice_for_other_layers_or_in_a_broken_file_is_refused(bert: Shelf, tmp_path: Path) -> None:
    export = bert.get("export")
    settings = {"stage": "quantize", "scheme": "w8a8-dynamic", "exclude": "searched"}
    for layers, message in (
        ([{"ffn": "int8"}], "precisions were chosen for 1 layers, and the model has 4"),
        ([{"ffn": "int4"}] * 4, r"precisions.json: the chosen precisions cannot be read: .*neither fp32 nor int8"),
        (None, "precisions were chosen for none, and the model has 4"),
    ):
        folder = tmp_path / str(layers is None) / str(len(layers or ()))
        shutil.copytree(export.path, folder)
        if layers is not None:
            write_precisions(folder, layers)
        content = export.content
        own = seal(
            folder, task=content.task, model_type=content.model_type, architecture=content.architecture,
            labels=content.labels, variants=content.variants, structure=content.structure, record=export.record,
        )  # fmt: skip
        ctx = make_context(bert.task, bert.data, tmp_path / "work")
        with pytest.raises(CompressorError, match=message):
            run_here(stage_config("int8", settings), StageInputs(own), folder.with_suffix(".out"), ctx)


def test_a_budget_that_int8_alone_keeps_needs_no_pruning(
    bert: Shelf, basis_of: Callable[[Prune], CostBasis], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A mixture that removes nothing is still a choice of precisions; a pruning for INT8 alone would do nothing."""
    measured = basis_of(config({"cpu_s_per_token": "0.6x"}))
    monkeypatch.setattr(searching._Hunt, "_choose", lambda self, scale: dense_in_int8(self.scores, self.first.cost))
    monkeypatch.setattr(searching, "score_trial", known_scores)
    full = [(layer.n_heads, layer.ffn_width) for layer in read_structure(measured.timer.model).layers]
    monkeypatch.setattr(searching, "WholeModels", lambda basis: FakeDevice(1.0, 0.5, full, basis))
    for precision in ("int8", "mixed"):
        costs = KnownCosts(measured.costs.table, measured.costs.calls, precision)  # type: ignore[arg-type]
        basis = replace(measured, costs=costs)
        stage = config({"cpu_s_per_token": "0.6x"}, precision=precision, swaps=0)
        if precision == "int8":
            with pytest.raises(
                UserError,
                match=r"stages.small.budget: INT8 alone keeps the budget of 0.6x: nothing has to be pruned\n"
                r"  -> leave this stage out and quantise the export, or lower the budget",
            ):
                do(bert, tmp_path / precision, stage, basis, [])
            continue
        made = do(bert, tmp_path / precision, stage, basis, [])
        assert made.record.realised["parameters"] == made.record.realised["parameters_before"]
        assert precisions_of(made) == ({"attention": "int8", "ffn": "int8"},) * len(full)


def dense_in_int8(scores: OptionScores, cost: Cost) -> Choice:
    """Everything stays, in INT8."""
    sizes = [max(option.size for option in group.options) for group in scores.groups]
    options = [
        next(n for n, one in enumerate(group.options) if one.size == size and one.precision == "int8")
        for group, size in zip(scores.groups, sizes, strict=True)
    ]
    return choice_of(scores, options, cost)
