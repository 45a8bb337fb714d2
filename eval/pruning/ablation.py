"""Structure chosen by measured costs, by MACs, uniformly, and by magnitude, at equal measured cost.

    python eval/pruning/ablation.py STUDY PHASE [--work DIR] [--out FILE]

STUDY is minilm, minilm-long, minilm-int8, smollm2, smollm2-trimmed or gpt2; the phases, in this order, each of which
goes on from what the one before left in the work folder:

    trim      only smollm2-trimmed: the vocabulary that the training text needs
    prepare   graphs for the table (left out, the next phase makes them)
    table     the cost table, and whether it adds up          (timed: on a quiet machine)
    score     options, scored without labels
    plan      graphs for the next phase (may be left out too)
    match     every method's budget moved until its exported shape measures what was asked    (timed)
    refine    swaps on the true loss, the same number for both searches
    rematch   the refined choices measured, and trimmed where they miss                       (timed)
    quality   prune for good, and judge on unseen text
    recover   what a short distillation adds

What a method spends is always what its exported model measured beside the dense one, never what it was asked to spend.
Of a trimmed model that is the whole one with all its tokens, and perplexity is counted per token of the whole one.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from compressor.data.tokenize import draw_windows, load_tokenizer, windows
from compressor.data.vocabulary import needed_tokens, write_trimmed
from compressor.errors import UserError
from compressor.measurement.additivity import N_MODELS, random_structures
from compressor.measurement.cost_basis import CostBasis, WholeModels, measure_costs
from compressor.measurement.cost_graphs import Whole
from compressor.measurement.cost_rows import Timer, wanted_rows
from compressor.measurement.cost_table import CallShape, Precision
from compressor.measurement.device import this_device
from compressor.methods.choosing import (
    Choice,
    Cost,
    Group,
    Option,
    OptionScores,
    choice_of,
    choose,
    costs_of,
    dense_cost,
    losses_of,
    macs_cost,
    score_trial,
)
from compressor.methods.losses import logit_kl
from compressor.methods.pruning import prune_model
from compressor.methods.refining import refine, refit_to_budget
from compressor.methods.structure import ATTENTION, FFN, read_ranges, write_ranges
from compressor.methods.surgery import n_parameters, read_structure
from compressor.methods.trying import Trial
from compressor.methods.vocabulary import trim_embeddings
from compressor.stages.searching import measured_cost

ROOT = Path(__file__).resolve().parents[2]
RECOVERY_STEPS, RECOVERY_LR = 40, 1e-4
SEARCHES = ("measured", "macs")
JUDGED_TEXTS, JUDGED_CHARACTERS = 4, 8000
LATEST = 40
"""Addresses of the training split that language models are calibrated on."""
Sizes = list[tuple[int, int, int]]
Pick = Callable[[float], tuple[Sizes, list[int]]]


@dataclass(frozen=True)
class Study:
    """One model, what it is used for, and how much it may cost."""

    model: str
    text: str
    unseen: str
    is_decoder: bool
    calls: tuple[CallShape, ...]
    ratio: float
    levels: tuple[float, ...]
    granule: int
    rows: int
    max_tokens: int
    score_rows: int
    swaps: int
    is_trimmed: bool = False
    precision: Precision = "fp32"
    """Of what ships; shares are of the dense model in fp32 all the same."""


SEVEN = tuple(step / 6 for step in range(7))
MILD = (1 / 2, 2 / 3, 5 / 6, 1.0)
SOTU = (".cache/data/sotu/train.txt", ".cache/data/sotu/test.txt")
MOVIES = (".cache/data/movies/train.jsonl", ".cache/data/movies/test.jsonl")
STUDIES = {
    "minilm": Study(
        ".cache/models/all-MiniLM-L6-v2", *MOVIES, False, (CallShape("forward", 8, 32, 0, 256.0, 1.0),), 0.6, SEVEN,
        granule=64, rows=768, max_tokens=64, score_rows=96, swaps=40,
    ),
    "minilm-long": Study(
        ".cache/models/all-MiniLM-L6-v2", *MOVIES, False, (CallShape("forward", 8, 128, 0, 1024.0, 1.0),), 0.6, SEVEN,
        granule=64, rows=768, max_tokens=64, score_rows=96, swaps=40,
    ),
    "minilm-int8": Study(
        ".cache/models/all-MiniLM-L6-v2", *MOVIES, False, (CallShape("forward", 8, 128, 0, 1024.0, 1.0),), 0.3, SEVEN,
        granule=64, rows=768, max_tokens=64, score_rows=96, swaps=40, precision="int8",
    ),
    "smollm2": Study(
        ".cache/models/smollm2-135m-instruct-dequantised-q4_1", *SOTU, True,
        (CallShape("decode", 1, 1, 144, 1.0, 1.0),), 0.8, MILD,
        granule=64, rows=64, max_tokens=256, score_rows=4, swaps=16,
    ),
    "smollm2-trimmed": Study(
        ".cache/models/smollm2-135m-instruct-dequantised-q4_1", *SOTU, True,
        (CallShape("decode", 1, 1, 144, 1.0, 1.0),), 0.8, MILD,
        granule=64, rows=64, max_tokens=256, score_rows=4, swaps=16, is_trimmed=True,
    ),
    "gpt2": Study(
        "runs/gpt2-sotu/stages/teacher", *SOTU, True, (CallShape("decode", 1, 1, 80, 1.0, 1.0),), 0.8, SEVEN,
        granule=64, rows=192, max_tokens=128, score_rows=16, swaps=60,
    ),
}  # fmt: skip


class Work:
    """A work folder: what one phase leaves for the next."""

    def __init__(self, study: Study, folder: Path, model: Path | None, check: bool) -> None:
        self.study, self.folder, self.check = study, folder, check
        self.graphs = folder / "graphs"
        self.graphs.mkdir(parents=True, exist_ok=True)
        self.whole = model or ROOT / study.model
        self.path = folder / "trimmed" if study.is_trimmed else self.whole

    def read(self, name: str) -> Any:
        return json.loads((self.folder / f"{name}.json").read_text())

    def write(self, name: str, value: Any) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(value, indent=1))

    def model(self, path: Path | None = None) -> PreTrainedModel:
        path = path or self.path
        if (path / "compressor.json").is_file():
            from compressor.runtime.torch_models import load_module

            return load_module(path)
        kind = AutoModelForCausalLM if self.study.is_decoder else AutoModel
        module: PreTrainedModel = kind.from_pretrained(path, dtype=torch.float32).eval()
        return module

    def texts(self, file: str) -> list[str]:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        found = [json.loads(line)["text"] for line in lines] if file.endswith(".jsonl") else lines
        return [text for text in found if text.strip()]

    def batches(self) -> list[dict[str, torch.Tensor]]:
        """Calibration batches; encoders' rows longest first."""
        study, texts = self.study, self.texts(self.study.text)
        if study.is_decoder:
            tokenizer = load_tokenizer(self.path)
            texts = texts[-LATEST:]  # of what the model will see: the test addresses are the newest
            random.Random(0).shuffle(texts)
            rows = draw_windows(tokenizer, texts, context=study.max_tokens, n_windows=study.rows, seed=0)
            rows = [row for row in rows if len(row) == study.max_tokens]
            size = 2
            tensors = [torch.tensor(rows[at : at + size]) for at in range(0, len(rows), size)]
            return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in tensors]
        return padded(self.path, sorted(texts[: study.rows], key=len, reverse=True), study.max_tokens, 16)

    def split(self) -> tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]:
        """Batches that rank and refit, and batches that score."""
        batches = self.batches()
        wanted, judged = self.study.score_rows, []
        step = max(2, len(batches) * len(batches[0]["input_ids"]) // wanted)
        for number in range(step // 2, len(batches), step):
            judged.append(number)
        return (
            [batch for number, batch in enumerate(batches) if number not in judged],
            [batches[number] for number in judged],
        )

    def basis(self, model: PreTrainedModel) -> CostBasis:
        return measure_costs(
            model,
            is_decoder=self.study.is_decoder,
            outputs=("logits",) if self.study.is_decoder else ("last_hidden_state",),
            calls=self.study.calls,
            precision=self.study.precision,
            granule=self.study.granule,
            threads=torch.get_num_threads(),
            provider="CPUExecutionProvider",
            graphs=self.graphs,
            check=self.check,
            on_progress=lambda what, done, total: say(f"{what} {done}/{total}"),
        )

    def scores(self) -> OptionScores:
        model = self.model()
        groups = [
            Group(
                group["layer"],
                group["kind"],
                tuple(
                    Option(read_ranges(o["kept"]), o["size"], o["loss"], self.study.precision) for o in group["options"]
                ),
            )
            for group in self.read("scores")["groups"]
        ]
        return OptionScores(read_structure(model), tuple(groups))


def padded(path: Path, texts: Sequence[str], max_tokens: int, size: int) -> list[dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    settings = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
    return [dict(tokenizer(list(texts[at : at + size]), **settings)) for at in range(0, len(texts), size)]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# Phases


def trim(work: Work) -> None:
    """Leave out the tokens that the training text does not need, and make the whole model what costs are shares of."""
    if not work.study.is_trimmed:
        raise SystemExit("this study keeps its vocabulary")
    kept = needed_tokens(load_tokenizer(work.whole), work.texts(work.study.text))
    write_trimmed(work.whole, kept, work.path)
    model = work.model(work.whole)
    timer = Timer(model, work.study.is_decoder, ("logits",), graphs=work.graphs)
    timer.write_whole(Whole(), work.graphs)
    trim_embeddings(model, kept).save_pretrained(work.path)
    work.write("trimmed", {"tokens": {"whole": len(load_tokenizer(work.whole)), "kept": len(kept)}})
    say(str(work.read("trimmed")))


def prepare(work: Work) -> None:
    """Export what the table will time."""
    model = work.model()
    device = this_device(threads=torch.get_num_threads(), provider="CPUExecutionProvider")
    outputs = ("logits",) if work.study.is_decoder else ("last_hidden_state",)
    timer = Timer(model, work.study.is_decoder, outputs, graphs=work.graphs)
    precisions: list[Precision] = ["fp32"] if work.study.precision == "fp32" else ["fp32", "int8"]
    for row in wanted_rows(model, precisions, work.study.granule):
        timer.write_row(row, device, work.graphs)
        say(f"exported {row}")
    for whole in [Whole(), *random_structures(timer, N_MODELS, work.study.granule, 0, work.study.precision)]:
        timer.write_whole(whole, work.graphs)
        say("exported a whole model")


def table(work: Work) -> None:
    started = time.monotonic()
    basis = work.basis(work.model())
    record = {"wall_s": time.monotonic() - started, "threads": torch.get_num_threads(), **basis.costs.table.to_json()}
    work.write("table", record)
    say(f"additivity: {basis.costs.fit}")


def score(work: Work) -> None:
    study, started = work.study, time.monotonic()
    fitting, judged = work.split()
    trial = Trial(
        work.model(), fitting, score_batches=judged, score="kl" if study.is_decoder else "cosine", levels=study.levels,
        ffn_granule=study.granule,
    )  # fmt: skip
    scores = score_trial(
        trial,
        precisions=(study.precision,),
        on_progress=lambda done, total: say(f"scored {done}/{total}") if done % 20 == 0 else None,
    )
    work.write(
        "scores",
        {
            "wall_s": time.monotonic() - started,
            "calibration_tokens": sum(int(batch["attention_mask"].sum()) for batch in fitting),
            "score_tokens": sum(int(batch["attention_mask"].sum()) for batch in judged),
            "groups": [
                {
                    "layer": group.layer,
                    "kind": group.kind,
                    "options": [{"kept": write_ranges(o.kept), "size": o.size, "loss": o.loss} for o in group.options],
                }
                for group in scores.groups
            ],
        },
    )


def cost_of(name: str, work: Work, model: PreTrainedModel, basis: CostBasis) -> tuple[Cost, float]:
    """A search's cost and what is fixed of it."""
    if name == "macs":
        n_tokens = work.study.calls[0].n_new + work.study.calls[0].n_past
        # what no choice changes is in neither search's hands; both get the head and embeddings that they can see
        head = model.get_output_embeddings()
        return macs_cost(model, n_tokens=n_tokens), 0.0 if head is None else float(head.weight.numel())
    return measured_cost(basis.costs, "cpu_s"), basis.costs.fixed("cpu_s")


def picks(work: Work, model: PreTrainedModel, basis: CostBasis, scores: OptionScores) -> dict[str, Pick]:
    """Each method: share of the dense cost asked for -> sizes and options."""
    if work.study.is_trimmed:  # a way to the budget, and no comparison of methods
        return {"measured": searcher(scores, *cost_of("measured", work, model, basis))}
    found: dict[str, Pick] = {"uniform": lambda ratio: uniform(scores, ratio, work.study)}
    for name in ("measured", "macs"):
        found[name] = searcher(scores, *cost_of(name, work, model, basis))
    return found


def plan(work: Work) -> None:
    """Export what each method would choose where the table predicts the target."""
    model = work.model()
    basis, scores = work.basis(model), work.scores()
    for name, pick in picks(work, model, basis, scores).items():
        sizes, _ = pick(first_share(basis, pick, work.study.ratio))
        basis.timer.write_whole(Whole(tuple(sizes), work.study.precision), work.graphs)
        say(f"{name}: exported {sizes}")


def match(work: Work) -> None:
    """Move each method's own budget until its shape measures the target."""
    model = work.model()
    basis, scores = work.basis(model), work.scores()
    with WholeModels(basis) as whole:
        found = {name: settle(work, whole, pick, basis) for name, pick in picks(work, model, basis, scores).items()}
    if "uniform" in found:
        found["magnitude"] = dict(found["uniform"])  # the same shape; only what stays differs
    work.write("matched", found)


def first_share(basis: CostBasis, pick: Pick, target: float) -> float:
    """The share to ask for so that the table predicts the target: every method starts there."""
    low, high = 0.02, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        try:
            sizes, _ = pick(middle)
        except UserError:  # below the least that any choice costs
            low = middle
            continue
        low, high = (low, middle) if predicted(basis, sizes) > target else (middle, high)
    return low


def searcher(scores: OptionScores, cost: Cost, fixed: float) -> Pick:
    """Share of the dense cost -> sizes and options."""
    dense = dense_cost(scores.source, cost, fixed)

    def pick(ratio: float) -> tuple[Sizes, list[int]]:
        choice = choose(scores, cost, ratio * dense, fixed)
        return sizes_of(choice), list(choice.options)

    return pick


def uniform(scores: OptionScores, ratio: float, study: Study) -> tuple[Sizes, list[int]]:
    """The same fraction of heads and neurons in every layer; whole groups and granules are spread over the layers so
    that a fraction between two steps can be met."""
    sizes: Sizes = []
    n_layers, carried_heads, carried_ffn = len(scores.source.layers), 0.0, 0.0
    for layer in scores.source.layers:
        carried_heads += ratio * layer.n_kv_heads
        kv_heads = min(layer.n_kv_heads, max(1, round(carried_heads)))
        carried_heads -= kv_heads
        carried_ffn += ratio * layer.ffn_width
        width = min(layer.ffn_width, max(study.granule, study.granule * round(carried_ffn / study.granule)))
        carried_ffn -= width
        sizes.append((kv_heads * (layer.n_heads // layer.n_kv_heads), kv_heads, width))
    assert len(sizes) == n_layers
    return sizes, []


def settle(work: Work, whole: WholeModels, pick: Pick, basis: CostBasis) -> dict[str, Any]:
    """Correct the share asked for until the share measured is the target, at most three times; keep the nearest."""
    target, best, alone, trimmed = work.study.ratio, None, None, 1.0
    if work.study.is_trimmed:
        layers = read_structure(basis.timer.model).layers
        alone = whole.compare([(one.n_heads, one.n_kv_heads, one.ffn_width) for one in layers])
        trimmed = alone.ratio
        say(f"trimmed alone: {trimmed:.3f} (A/A {alone.aa_bound:.3f})")
    asked = first_share(basis, pick, target / trimmed)
    tried = []
    for _ in range(3):
        try:
            sizes, options = pick(asked)
        except UserError:  # a correction below the least that any choice costs: the nearest so far stands
            if best is None:
                raise
            break
        comparison = whole.compare(sizes)
        entry = {
            "asked": asked,
            "sizes": sizes,
            "options": options,
            "predicted_ratio": trimmed * predicted(basis, sizes),
            "measured": comparison.to_json(),
        }
        tried.append({"asked": asked, "measured_ratio": comparison.ratio, "aa_bound": comparison.aa_bound})
        say(f"asked {asked:.3f}, measured {comparison.ratio:.3f} (A/A {comparison.aa_bound:.3f})")
        if best is None or abs(comparison.ratio - target) < abs(best["measured"]["ratio"] - target):
            best = entry
        if abs(comparison.ratio / target - 1) <= 0.015:
            break
        asked = min(1.5, max(0.02, asked * target / comparison.ratio))
    assert best is not None
    return {**best, "tried": tried, **({"trimmed": alone.to_json()} if alone is not None else {})}


def predicted(basis: CostBasis, sizes: Sizes) -> float:
    """What the table says of a shape, as a share of dense."""
    costs = basis.costs
    parts = [
        costs.sublayer(ATTENTION, heads, "cpu_s") + costs.sublayer(FFN, width, "cpu_s") for heads, _, width in sizes
    ]
    layers = read_structure(basis.timer.model).layers
    dense = costs.dense([(one.n_heads, one.ffn_width) for one in layers], "cpu_s")
    return (costs.fixed("cpu_s") + math.fsum(parts)) / dense


def refine_choices(work: Work) -> None:
    study, matched = work.study, work.read("matched")
    model = work.model()
    basis, scores = work.basis(model), work.scores()
    fitting, judged = work.split()
    trial = Trial(
        model, fitting, score_batches=judged, score="kl" if study.is_decoder else "cosine", levels=study.levels,
        ffn_granule=study.granule,
    )  # fmt: skip

    def true_loss(options: Sequence[int]) -> float:
        chosen = [group.options[number] for group, number in zip(scores.groups, options, strict=True)]
        return trial.loss_of_all([(option.kept, option.precision) for option in chosen])

    refined = {}
    for name in SEARCHES:
        if name not in matched:
            continue
        cost, fixed = cost_of(name, work, model, basis)
        start = matched[name]["options"]
        before = choice_of(scores, start, cost, fixed)
        found = refine(
            costs_of(scores, cost), losses_of(scores), start, before.predicted_cost - fixed, true_loss,
            n_moves=study.swaps,
        )  # fmt: skip
        say(f"{name}: {found.loss_before:.5g} -> {found.loss:.5g}, {found.n_accepted} of {found.n_tried} moves")
        refined[name] = {**asdict(found), "predicted_loss": before.predicted_loss}
    work.write("refined", refined)


def rematch(work: Work) -> None:
    """Measure the refined choices; trim them by steps where they miss."""
    model = work.model()
    basis, scores, refined = work.basis(model), work.scores(), work.read("refined")
    found = {}
    with WholeModels(basis) as whole:
        for name in refined:
            cost, fixed = cost_of(name, work, model, basis)
            options = refined[name]["options"]
            level = choice_of(scores, options, cost, fixed).predicted_cost

            def pick(
                asked: float, options: Any = options, level: float = level, cost: Cost = cost, fixed: float = fixed
            ) -> Any:
                share = asked / work.study.ratio
                if share == 1.0:
                    trimmed = tuple(options)
                else:
                    trimmed = refit_to_budget(costs_of(scores, cost), losses_of(scores), options, level * share - fixed)
                return sizes_of(choice_of(scores, trimmed, cost, fixed)), list(trimmed)

            found[f"{name} + swaps"] = settle(work, whole, pick, basis)
    work.write("rematched", found)


def sizes_of(choice: Choice) -> Sizes:
    return [(layer.n_heads, layer.n_kv_heads, layer.ffn_width) for layer in choice.structure.layers]


METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "measured + swaps": ("rematched", {}),
    "measured": ("matched", {}),
    "macs + swaps": ("rematched", {}),
    "macs": ("matched", {}),
    "uniform": ("matched", {}),
    "magnitude": ("matched", {"importance": "magnitude"}),
    "magnitude, no recovery": ("matched", {"importance": "magnitude", "recovery": "none"}),
}


def quality(work: Work) -> None:
    """Prune for good and judge, method by method; what was judged in this shape is kept."""
    dense = work.model()
    batches = work.batches()
    judge = perplexity_judge(work, dense) if work.study.is_decoder else cosine_judge(work, dense)
    rows: dict[str, Any] = work.read("quality") if (work.folder / "quality.json").exists() else {}
    if "dense" not in rows:
        rows["dense"] = {"parameters": n_parameters(dense), **judge(dense)}
        if work.study.is_trimmed:
            rows = {"dense": whole_row(work), "trimmed": {**rows["dense"], **trimmed_cost(work)}}
    for name, (phase, settings) in METHODS.items():
        matched = work.read(phase) if (work.folder / f"{phase}.json").exists() else {}
        entry = matched.get("magnitude" if name.startswith("magnitude") else name)
        if entry is None or rows.get(name, {}).get("sizes") == entry["sizes"]:
            continue
        started = time.monotonic()
        pruned, _ = prune_model(
            copy.deepcopy(dense),
            batches,
            heads=[heads for heads, _, _ in entry["sizes"]],
            ffn=[width for *_, width in entry["sizes"]],
            ffn_granule=work.study.granule,
            tokens_per_column=4,
            **settings,
        )
        rows[name] = {
            "parameters": n_parameters(pruned),
            "measured_ratio": entry["measured"]["ratio"],
            "measured_ratio_ci95": entry["measured"]["ratio_ci95"],
            "aa_bound": entry["measured"]["aa_bound"],
            "predicted_ratio": entry["predicted_ratio"],
            "prune_s": time.monotonic() - started,
            "sizes": entry["sizes"],
            **judge(pruned),
        }
        say(f"{name}: {rows[name]}")
        work.write("quality", rows)


def whole_row(work: Work) -> dict[str, Any]:
    """The model with all its tokens on the same text."""
    whole = Work(replace(work.study, is_trimmed=False), work.folder, work.whole, work.check)
    dense = whole.model()
    return {"parameters": n_parameters(dense), **perplexity_judge(whole, dense)(dense)}


def trimmed_cost(work: Work) -> dict[str, Any]:
    """What the trim alone measured, in the shape of a method's row."""
    comparison = work.read("matched")["measured"]["trimmed"]
    return {
        "measured_ratio": comparison["ratio"],
        "measured_ratio_ci95": comparison["ratio_ci95"],
        "aa_bound": comparison["aa_bound"],
        "predicted_ratio": comparison["ratio"],
    }


def recover(work: Work) -> None:
    """A short distillation of the chosen structure from the dense model, on the calibration text alone."""
    dense, batches = work.model(), work.batches()
    entry = work.read("rematched" if (work.folder / "rematched.json").exists() else "matched")
    sizes = entry.get("measured + swaps", entry.get("measured"))["sizes"]
    pruned, _ = prune_model(
        copy.deepcopy(dense),
        batches,
        heads=[heads for heads, _, _ in sizes],
        ffn=[width for *_, width in sizes],
        ffn_granule=work.study.granule,
        tokens_per_column=4,
    )
    judge = perplexity_judge(work, dense)
    before, started, n_tokens = judge(pruned)["perplexity"], time.monotonic(), 0
    optimiser = torch.optim.AdamW(pruned.parameters(), lr=RECOVERY_LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / 5, 1 - step / RECOVERY_STEPS))
    rows = torch.cat([batch["input_ids"] for batch in batches])
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    pruned.train()
    for step in range(RECOVERY_STEPS):
        ids = rows[order[torch.arange(2 * step, 2 * step + 2) % len(rows)]]
        with torch.no_grad():
            wanted = dense(input_ids=ids).logits
        loss = logit_kl(pruned(input_ids=ids).logits, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pruned.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        n_tokens += ids.numel()
        if step % 5 == 0:
            say(f"step {step}: {float(loss):.4f}")
    pruned.eval()
    work.write(
        "recovered",
        {
            "steps": RECOVERY_STEPS,
            "learning_rate": RECOVERY_LR,
            "tokens": n_tokens,
            "wall_s": time.monotonic() - started,
            "before": before,
            "after": judge(pruned)["perplexity"],
            "dense": judge(dense)["perplexity"],
        },
    )
    say(str(work.read("recovered")))


def cosine_judge(work: Work, dense: PreTrainedModel) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Cosine of mean-pooled sentence vectors to those of the dense model, on unseen sentences."""
    texts = work.texts(work.study.unseen)[:1000]
    batches = padded(work.path, texts, work.study.max_tokens, 50)

    def vectors(model: PreTrainedModel) -> torch.Tensor:
        found = []
        for batch in batches:
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            weights = batch["attention_mask"][..., None].float()
            found.append((hidden * weights).sum(1) / weights.sum(1))
        return torch.cat(found)

    reference = vectors(dense)

    def judge(model: PreTrainedModel) -> dict[str, float]:
        similar = torch.nn.functional.cosine_similarity(vectors(model), reference)
        half = 1.96 * float(similar.std()) / math.sqrt(len(similar))
        return {"cosine": float(similar.mean()), "cosine_half_ci95": half, "n_texts": len(similar)}

    return judge


def perplexity_judge(work: Work, dense: PreTrainedModel) -> Callable[[PreTrainedModel], dict[str, float]]:
    """Perplexity on unseen addresses, each token predicted once, in windows that overlap by half; per token of the
    whole tokenizer, since a smaller one cuts the same text into more."""
    context = 2 * work.study.max_tokens
    context = min(context, int(getattr(dense.config, "max_position_embeddings", context)))
    texts = [text[:JUDGED_CHARACTERS] for text in work.texts(work.study.unseen)[:JUDGED_TEXTS]]
    cut = windows(load_tokenizer(work.path), texts, context, context // 2)
    n_tokens = sum(window.n_scored for window in windows(load_tokenizer(work.whole), texts, context, context // 2))

    def judge(model: PreTrainedModel) -> dict[str, float]:
        loss = 0.0
        for window in cut:
            ids = torch.tensor([list(window.ids)])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
            loss += float(losses[-window.n_scored :].sum())
        return {"perplexity": math.exp(loss / n_tokens), "n_tokens": n_tokens}

    return judge


PHASES = {
    "trim": trim, "prepare": prepare, "table": table, "score": score, "plan": plan, "match": match,
    "refine": refine_choices, "rematch": rematch, "quality": quality, "recover": recover,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("phase", choices=PHASES, nargs="+")
    parser.add_argument("--work", type=Path, default=None, help="work folder; runs/pruning-STUDY where absent")
    parser.add_argument("--model", type=Path, default=None, help="another folder of the model")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-check", action="store_true", help="believe the table without random whole models")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    work = Work(
        STUDIES[asked.study], asked.work or ROOT / "runs" / f"pruning-{asked.study}", asked.model, not asked.no_check
    )
    for phase in asked.phase:
        say(f"{asked.study}: {phase}")
        PHASES[phase](work)


if __name__ == "__main__":
    main()
