"""Pruning stages in chains: layouts, backends, recoveries, gradual targets, trimmed vocabularies and their teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from stage_shelf import CASES, Shelf, make_context, stage_config
from transformers import AutoModelForSequenceClassification

from compressor.checkpoints.store import Checkpoint
from compressor.checkpoints.vocabulary import KEPT_TOKENS, KeptTokens, kept_tokens_of
from compressor.cli.checkpoints import export
from compressor.data.splits import StageData
from compressor.data.tokenize import load_tokenizer
from compressor.errors import DataError, StageError, UnsupportedError, UserError
from compressor.methods.structure import Structure, read_ranges
from compressor.methods.surgery import hidden_width, layers_of, read_structure
from compressor.runtime.stock import write_stock
from compressor.runtime.torch_models import load_module
from compressor.stages.context import StageInputs
from compressor.stages.dispatch import run_here
from compressor.stages.kept_tokens import teacher_rows

IDS = torch.arange(5, 25).reshape(2, 10)


def do(
    shelf: Shelf,
    folder: Path,
    settings: dict[str, Any],
    source: Checkpoint,
    teacher: Checkpoint | None = None,
    **changes: Any,
) -> Checkpoint:
    """One stage on given checkpoints."""
    ctx = make_context(shelf.task, changes.pop("data", shelf.data), folder / "work", **changes)
    return run_here(stage_config("one", settings), StageInputs(source, teacher), folder / "out", ctx)


def prune(shelf: Shelf, folder: Path, source: Checkpoint | None = None, **settings: Any) -> Checkpoint:
    return do(shelf, folder, {"stage": "prune", "granule": 8, **settings}, source or shelf.get("finetune"))


@torch.no_grad()
def logits(module: torch.nn.Module) -> torch.Tensor:
    found: torch.Tensor = module(input_ids=IDS).logits
    return found


def test_a_uniform_layout_is_held_to_its_word(bert: Shelf, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        prune(bert, tmp_path / "a", keep={"heads": 0.5}, layout="uniform")
    assert str(caught.value).startswith(
        "stages.one.layout: the result is no uniform shape: heads are removed, and this"
    )
    assert "set `layout: per_layer`" in str(caught.value)
    both = prune(bert, tmp_path / "b", keep={"heads": 0.5, "hidden": 0.5, "ffn": 0.5}, layout="uniform")
    assert both.content.structure is None and "per_layer_config" not in json.loads(
        (both.path / "config.json").read_text()
    )
    stock = AutoModelForSequenceClassification.from_pretrained(both.path)
    assert torch.equal(logits(stock), logits(load_module(both)))
    assert (
        read_structure(stock).layers[0].n_heads * 2
        == read_structure(load_module(bert.get("finetune"))).layers[0].n_heads
    )


def test_a_budget_can_be_searched_among_uniform_shapes(bert: Shelf, tmp_path: Path) -> None:
    pruned = prune(bert, tmp_path, budget={"macs": "0.7x"}, layout="uniform", search={"swaps": 0})
    assert pruned.content.structure is None
    stock = AutoModelForSequenceClassification.from_pretrained(pruned.path)
    assert torch.equal(logits(stock), logits(load_module(pruned)))
    widths = {layer.ffn_width for layer in read_structure(stock).layers}
    assert len(widths) == 1 and widths < {8, 16, 24, 32, 40, 48, 56}


def test_a_layout_per_layer_says_so_and_can_be_padded_to_stock(
    bert: Shelf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned = prune(bert, tmp_path, keep={"ffn_sublayers": 0.5, "heads": 0.5})
    config = json.loads((pruned.path / "config.json").read_text())
    without = [number for number, layer in config["per_layer_config"].items() if layer.get("skip") == ["mlp"]]
    assert len(without) == 2 and all(config["per_layer_config"][number]["intermediate_size"] == 0 for number in without)
    with pytest.raises(RuntimeError, match="is a per-layer attribute and may vary across layers"):
        AutoModelForSequenceClassification.from_pretrained(pruned.path)
    with pytest.raises(UserError, match="writes stock Hugging Face folders only\n  -> add --stock"):
        export(pruned.path, out=tmp_path / "stock")
    export(pruned.path, out=tmp_path / "stock", stock=True)
    told = " ".join(capsys.readouterr().out.split())
    assert "of them zeros that stock shapes need); opens with plain from_pretrained" in told
    assert not (tmp_path / "stock" / "compressor.json").exists()
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stock")
    torch.testing.assert_close(logits(stock), logits(load_module(pruned)), rtol=1e-4, atol=1e-5)
    load_tokenizer(tmp_path / "stock")
    with pytest.raises(UserError, match="the folder is not empty"):
        write_stock(pruned, tmp_path / "stock")


def test_a_width_that_no_stock_config_can_say_cannot_be_padded(bert: Shelf, tmp_path: Path) -> None:
    narrow = prune(bert, tmp_path, keep={"hidden": 0.75})
    assert hidden_width(load_module(narrow)) == 24
    with pytest.raises(UnsupportedError, match="a hidden width of 24 cannot be padded to the config's 32"):
        write_stock(narrow, tmp_path / "stock")


@pytest.mark.parametrize("recovery", ["ridge", "bias", "scales", "none"])
def test_every_recovery_is_reachable_from_the_pipeline(recovery: str, bert: Shelf, tmp_path: Path) -> None:
    pruned = prune(bert, tmp_path, keep={"ffn": 0.5}, recovery=recovery)
    assert pruned.record.config["recovery"] == recovery and torch.isfinite(logits(load_module(pruned))).all()


def test_recoveries_give_different_weights(bert: Shelf, tmp_path: Path) -> None:
    outputs = [
        logits(load_module(prune(bert, tmp_path / name, keep={"ffn": 0.5}, recovery=name)))
        for name in ("ridge", "bias", "none")
    ]
    assert not torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[1], outputs[2])


def test_torch_pruning_is_a_backend_and_gpt2_is_refused(bert: Shelf, gpt2: Shelf, tmp_path: Path) -> None:
    asked = {"backend": "torch-pruning", "importance": "magnitude", "recovery": "none"}
    pruned = prune(bert, tmp_path / "a", keep={"heads": 0.5, "ffn": 0.5}, **asked)
    layers = read_structure(load_module(pruned)).layers
    assert {(layer.n_heads, layer.ffn_width) for layer in layers} == {(2, 32)}
    with pytest.raises(UnsupportedError, match="it finds nothing to prune in Conv1D layers and says nothing"):
        prune(gpt2, tmp_path / "b", keep={"ffn": 0.5}, **asked)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"keep": {"layers": 0.5}, "importance": "magnitude", "recovery": "none"},
            "takes only `keep` with `heads` and `ffn`",
        ),
        ({"keep": {"ffn": 0.5}}, "say so with `importance: magnitude` and `recovery: none`"),
    ],
)
def test_what_torch_pruning_cannot_do_is_a_mistake_in_the_pipeline(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        stage_config("one", {"stage": "prune", "backend": "torch-pruning", **settings})


def test_gradual_pruning_is_a_chain_of_prune_and_distill(bert: Shelf, tmp_path: Path) -> None:
    """Each prune starts from what the last one left and was recovered, and ranks it anew."""
    teacher = bert.get("finetune")
    recover = {**CASES["recover"], "from": "x", "training": {"max_steps": 2, "batch_size": 8}}
    first = prune(bert, tmp_path / "1", keep={"heads": 0.5, "ffn": 0.75})
    taught = do(bert, tmp_path / "2", recover, first, teacher)
    second = prune(bert, tmp_path / "3", taught, keep={"layers": 0.75, "ffn": 0.67})
    last = do(bert, tmp_path / "4", recover, second, teacher)
    source = read_structure(load_module(teacher)).layers
    structure = Structure.from_json(last.content.structure or {})
    assert len(structure.layers_kept) == 3 == len(layers_of(load_module(last)))
    for number, layer in zip(structure.layers_kept, structure.layers, strict=True):
        assert layer.n_heads == source[number].n_heads // 2 and layer.ffn_width == 32
        earlier = Structure.from_json(first.content.structure or {}).layers[number]
        assert set(layer.ffn_kept) < set(earlier.ffn_kept) and layer.heads_kept == earlier.heads_kept
    assert Structure.from_json(second.content.structure or {}) == structure
    assert not torch.equal(logits(load_module(second)), logits(load_module(last)))


def test_too_little_calibration_text_says_how_much_is_needed(bert: Shelf, tmp_path: Path) -> None:
    assert bert.data.calibration is not None
    data = StageData(None, None, bert.data.calibration.select(range(3)), bert.data.digests)
    with pytest.raises(
        DataError, match=r"calibration tokens are too few to refit 48 columns: 384 are needed \(8 for each"
    ):
        do(bert, tmp_path, {"stage": "prune", "granule": 8, "keep": {"ffn": 0.75}}, bert.get("finetune"), data=data)


def test_a_trimmed_model_answers_as_before_on_covered_text(bert: Shelf, tmp_path: Path) -> None:
    whole, trimmed = bert.get("finetune"), bert.get("trim")
    kept = kept_tokens_of(trimmed)
    assert kept is not None and kept_tokens_of(whole) is None
    n_tokens = len(kept.kept_token_ids)
    assert trimmed.record.realised["tokens"] == n_tokens < trimmed.record.realised["tokens_before"]
    assert read_ranges(trimmed.record.realised["kept_token_ids"]) == kept.kept_token_ids
    assert KEPT_TOKENS in trimmed.content.files
    assert json.loads((trimmed.path / "config.json").read_text())["vocab_size"] == n_tokens
    assert bert.data.train is not None
    text = bert.data.train["text"][:4]
    answers = []
    for checkpoint in (whole, trimmed):
        batch = load_tokenizer(checkpoint.path)(text, padding=True, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            answers.append(load_module(checkpoint)(**batch).logits)
    assert torch.equal(*answers)
    stock = AutoModelForSequenceClassification.from_pretrained(trimmed.path)
    assert torch.equal(logits(stock), logits(load_module(trimmed)))
    again = do(bert, tmp_path, {"stage": "trim-vocabulary", "cover": ["calibration"]}, trimmed,
               data=StageData(None, None, bert.data.calibration.select(range(2)), bert.data.digests))  # type: ignore[union-attr]  # fmt: skip
    twice = kept_tokens_of(again)
    assert twice is not None and set(twice.kept_token_ids) < set(kept.kept_token_ids)
    assert twice.of_tokenizer == kept.of_tokenizer
    with pytest.raises(StageError, match="so nothing would leave"):
        do(bert, tmp_path / "again", {"stage": "trim-vocabulary"}, trimmed)


def test_a_teachers_logits_are_gathered_by_the_kept_tokens(gpt2: Shelf, tmp_path: Path) -> None:
    """The loss of an untrained, trimmed student against its own untrimmed self is zero, only if tokens match."""
    teacher = gpt2.get("finetune")
    assert gpt2.data.train is not None
    words = " ".join(gpt2.data.train["text"][0].split()[:60])
    data = StageData(
        gpt2.data.train.from_dict({"text": [words]}), gpt2.data.train.from_dict({"text": [words]}), None,
        {"train": "a", "validation": "b"},
    )  # fmt: skip
    student = do(gpt2, tmp_path / "trim", {"stage": "trim-vocabulary"}, teacher, data=data)
    rows = teacher_rows(student, teacher)
    kept = kept_tokens_of(student)
    assert kept is not None and rows == kept.kept_token_ids and len(rows) < 512
    ids = load_tokenizer(student.path)(words, return_tensors="pt")["input_ids"][:, :24]
    old = load_tokenizer(teacher.path)(words, return_tensors="pt")["input_ids"][:, :24]
    with torch.no_grad():
        ours, theirs = load_module(student)(input_ids=ids).logits, load_module(teacher)(input_ids=old).logits
    torch.testing.assert_close(ours, theirs[..., list(rows)], rtol=1e-5, atol=1e-6)
    recovery = {
        "stage": "distill",
        "teacher": "t",
        "training": {"max_steps": 1, "learning_rate": 1e-9, "batch_size": 2},
    }
    taught = do(gpt2, tmp_path / "recover", recovery, student, teacher, data=data)
    losses = json.dumps(taught.record.realised)
    assert kept_tokens_of(taught) == kept and "loss" in losses
    assert teacher_rows(student, taught) is None and teacher_rows(teacher, student) is None


def test_teachers_rows_are_counted_in_the_teachers_own_vocabulary(bert: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    from compressor.stages import kept_tokens

    known = {
        "student": KeptTokens("a", (2, 5, 9)),
        "teacher": KeptTokens("a", (0, 2, 5, 7, 9)),
        "other": KeptTokens("b", (2, 5, 9)),
    }
    monkeypatch.setattr(kept_tokens, "kept_tokens_of", known.get)
    assert teacher_rows("student", "teacher") == (1, 2, 4)  # type: ignore[arg-type]
    assert teacher_rows("teacher", "student") is None  # type: ignore[arg-type]
    assert teacher_rows("student", "other") is None  # type: ignore[arg-type]


def test_a_split_to_cover_must_be_there(bert: Shelf, tmp_path: Path) -> None:
    data = StageData(bert.data.train, None, None, bert.data.digests)
    with pytest.raises(DataError, match=r"data.validation: the vocabulary shall cover the validation split, which the"):
        do(bert, tmp_path, {"stage": "trim-vocabulary", "cover": ["validation"]}, bert.get("finetune"), data=data)
