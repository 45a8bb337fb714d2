"""What a distillation compares, piece by piece, and the presets: named papers as combinations of those pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.spec.base import Part, PositiveFloat, PositiveInt, Weight


class StudentSource(Part):
    """A student from elsewhere: a folder, a hub repository, or random weights from a config."""

    path: str | None = None
    """Folder with config.json and weights, such as a smaller checkpoint of the teacher's family."""
    hub: str | None = None
    """Hub repository, `organisation/name`."""
    revision: str | None = None
    """Branch, tag or commit of the hub repository."""
    config: dict[str, Any] | None = None
    """A Hugging Face config (with `model_type`); weights are drawn from the pipeline's seed, the tokenizer is the
    teacher's."""

    @model_validator(mode="after")
    def _one_way(self) -> StudentSource:
        if sum(value is not None for value in (self.path, self.hub, self.config)) != 1:
            raise ValueError("give exactly one of: path, hub, config")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("`config` needs `model_type`, such as bert or gpt2")
        return self


At = Literal["every", "last"]
LayerMap = tuple[Annotated[int, Field(ge=0)], ...]


class LogitLoss(Part):
    """Match the teacher's output distribution."""

    weight: Weight = 1.0
    kind: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"] = "forward_kl"
    """Which divergence: forward KL covers all that the teacher says, reverse KL seeks its mode, JSD stands between;
    the skewed ones mix a little of one side into the other, which keeps gradients finite."""
    temperature: PositiveFloat = 2.0
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Only for `jsd`: the teacher's share of the mixture."""
    skew: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Only for `skew_kl` and `skew_reverse_kl`: the share mixed in."""
    top_k: PositiveInt | None = None
    """Cache the teacher's k largest logits of each token and, as one more class, the mass of all others. Where absent
    all logits are cached, or the 64 largest where all of them would not fit into `cache_limit_gb`."""


class OutputLoss(Part):
    """Match the outputs themselves: a reranker's score, a number, a sentence embedding."""

    weight: Weight = 1.0
    kind: Literal["mse", "cosine"] = "mse"


class EmbeddingLoss(Part):
    """Match what enters the first layer (through a learned projection where widths differ)."""

    weight: Weight = 1.0
    kind: Literal["mse", "cosine"] = "mse"


class HiddenLoss(Part):
    """Match the teacher's hidden states, layer by layer (through learned projections where widths differ)."""

    weight: Weight = 1.0
    kind: Literal["mse", "cosine"] = "mse"
    at: At = "every"
    """Which student layers are held against the teacher."""
    layer_map: LayerMap | None = None
    """For each student layer held, the teacher layer (from 0) it is held against; spread evenly where absent."""


class AttentionLoss(Part):
    """Match attention: the scores before the softmax (TinyBERT) or the distributions (MiniLM). Needs equal heads."""

    weight: Weight = 1.0
    kind: Literal["scores", "distributions"] = "scores"
    at: At = "every"
    layer_map: LayerMap | None = None


class RelationLoss(Part):
    """Match how tokens relate: dot products among queries, among keys, among values (MiniLM, MiniLMv2)."""

    weight: Weight = 1.0
    of: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value")
    heads: PositiveInt | Literal["auto", "attention"] = "auto"
    """Into how many relation heads the vectors are split again: a divisor of both widths, `attention` for the heads of
    attention itself, or `auto` for the largest common divisor up to 48. Widths and head counts may differ."""
    at: At = "last"
    layer_map: LayerMap | None = None


class PkdLoss(Part):
    """Match the direction of the first token's state in all layers but the last (PKD-skip). Needs equal widths."""

    weight: Weight = 1.0
    layer_map: LayerMap | None = None


class DistillLosses(Part):
    """Losses of a distillation, summed by weight; each is a mean over the layers that it compares."""

    labels: Weight = 0.0
    """Weight of the task's own loss against the labels (of a language model: the next or the hidden token)."""
    logits: LogitLoss | None = LogitLoss()
    output: OutputLoss | None = None
    embeddings: EmbeddingLoss | None = None
    hidden: HiddenLoss | None = None
    attention: AttentionLoss | None = None
    relations: RelationLoss | None = None
    pkd: PkdLoss | None = None

    @model_validator(mode="after")
    def _something(self) -> DistillLosses:
        if not any(piece.weight for piece in self.pieces().values()):
            names = [name for name in type(self).model_fields if name != "labels"]
            raise ValueError(f"a distillation needs a teacher loss: give one of {', '.join(names)} a weight above 0")
        return self

    def pieces(self) -> dict[str, Any]:
        """The teacher losses that are there, by name."""
        return {name: piece for name, piece in self if name != "labels" and piece is not None}


class OnPolicy(Part):
    """The student writes, and the teacher judges what it wrote (GKD), by TRL's trainer: `pip install
    'joule-compressor[trl]'`. For language models; brings its own loss, and keeps the last state."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of batches that the student continues itself; the others keep the text's own second half."""
    new_tokens: PositiveInt = 64
    """The longest continuation."""
    temperature: PositiveFloat = 0.9
    """Of the sampling."""
    beta: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the generalised Jensen-Shannon divergence: 0 is forward KL, 1 reverse KL."""


PresetName = Literal[
    "logits", "distilbert", "tinybert", "tinybert_prediction", "minilm", "minilmv2", "pkd", "embedding",
    "reverse_kl", "jsd", "skew",
]  # fmt: skip

PRESETS: dict[PresetName, dict[str, Any]] = {
    # Hinton et al., arXiv 1503.02531, with a little of the labels.
    "logits": {"labels": 0.1, "logits": {"weight": 0.9, "temperature": 2.0}},
    # arXiv 1910.01108 and its training script: 5 KL + 2 (M/C)LM + 1 cosine of the last hidden state, T 2.
    "distilbert": {
        "labels": 2.0,
        "logits": {"weight": 5.0, "temperature": 2.0},
        "hidden": {"weight": 1.0, "kind": "cosine", "at": "last"},
    },
    # arXiv 1909.10351, first step (general and task): embeddings, hidden states, attention scores; no prediction.
    "tinybert": {
        "logits": None,
        "embeddings": {"weight": 1.0},
        "hidden": {"weight": 1.0, "kind": "mse"},
        "attention": {"weight": 1.0, "kind": "scores"},
    },
    # The same paper, second step: the prediction alone, at T 1.
    "tinybert_prediction": {"logits": {"weight": 1.0, "temperature": 1.0}},
    # arXiv 2002.10957: the last layer's attention distributions and value relations. The paper distils before there is
    # a task; where there is one, its head learns from the logits (`logits: null` leaves that out).
    "minilm": {
        "logits": {"weight": 1.0, "temperature": 2.0},
        "attention": {"weight": 1.0, "kind": "distributions", "at": "last"},
        "relations": {"weight": 1.0, "of": ("value",), "heads": "attention", "at": "last"},
    },
    # arXiv 2012.15828: relations among queries, keys and values in relation heads of their own.
    "minilmv2": {
        "logits": {"weight": 1.0, "temperature": 2.0},
        "relations": {"weight": 1.0, "of": ("query", "key", "value"), "heads": "auto", "at": "last"},
    },
    # arXiv 1908.09355 (PKD-skip).
    "pkd": {"labels": 0.5, "logits": {"weight": 0.5, "temperature": 5.0}, "pkd": {"weight": 10.0}},
    # Embedders and rerankers: the output itself.
    "embedding": {"logits": None, "output": {"weight": 1.0, "kind": "mse"}},
    # Decoders: MiniLLM (arXiv 2306.08543) without its sampling, GKD (2306.13649), DistiLLM (2402.03898); T 1.
    "reverse_kl": {"logits": {"weight": 1.0, "kind": "reverse_kl", "temperature": 1.0}},
    "jsd": {"logits": {"weight": 1.0, "kind": "jsd", "temperature": 1.0}},
    "skew": {"logits": {"weight": 1.0, "kind": "skew_kl", "temperature": 1.0}},
}  # fmt: skip


def with_preset(preset: PresetName, losses: Mapping[str, Any]) -> dict[str, Any]:
    """The preset's losses with the user's laid over: key by key inside a piece, and `null` takes a piece out."""
    merged: dict[str, Any] = dict(PRESETS[preset])
    for name, value in losses.items():
        start = merged.get(name)
        merged[name] = {**start, **value} if isinstance(start, dict) and isinstance(value, Mapping) else value
    return merged


def as_tuples(value: Any) -> Any:
    """The same with tuples for lists: what a validator hands on is no JSON any more, and strict models want tuples."""
    if isinstance(value, dict):
        return {key: as_tuples(entry) for key, entry in value.items()}
    return tuple(as_tuples(entry) for entry in value) if isinstance(value, list) else value
