"""The stages. Each class is the settings of one stage, and its type is what the runner dispatches on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.spec.base import Fraction, Part, PositiveFloat, PositiveInt, Slug, Weight

Kind = Literal["torch", "onnx"]


class StageBase(Part):
    """What every stage has: a name and a source."""

    id: Slug
    from_: Slug | None = Field(default=None, alias="from")
    """The stage whose checkpoint this one starts from; the one before it where absent, the model for the first."""


class Training(Part):
    """How a stage trains; passed to `transformers.Trainer`."""

    epochs: PositiveFloat = 3.0
    max_steps: PositiveInt | None = None
    """Stops earlier than `epochs` would."""
    learning_rate: PositiveFloat = 5e-5
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.06
    weight_decay: Weight = 0.01
    max_grad_norm: PositiveFloat = 1.0
    batch_size: PositiveInt = 32
    gradient_accumulation: PositiveInt = 1
    evaluate_every_steps: PositiveInt | None = None
    """Validation and checkpoint interval; each epoch where absent."""
    rows: PositiveInt | None = None
    """Train on the first rows only."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """`bf16` multiplies in bfloat16, with weights in fp32: faster on GPUs and on CPUs with AVX512_BF16 or AMX, slower
    elsewhere. `auto` takes it where it is faster; what was taken is recorded."""


class Finetune(StageBase):
    """Train all weights on the labels (or on the text itself for a language model)."""

    stage: Literal["finetune"]
    training: Training = Training()


class LogitLoss(Part):
    """Match the teacher's output distribution."""

    weight: Weight = 1.0
    kind: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    temperature: PositiveFloat = 2.0


class HiddenLoss(Part):
    """Match the teacher's hidden states, layer by layer."""

    weight: Weight = 1.0
    kind: Literal["mse", "cosine"] = "mse"
    layer_map: tuple[int, ...] | None = None
    """For each student layer, the teacher layer (from 0) it is held against; spread evenly where absent."""


class DistillLosses(Part):
    """Losses of a distillation, summed by weight."""

    labels: Weight = 0.0
    """Weight of the task's own loss against the labels."""
    logits: LogitLoss | None = LogitLoss()
    hidden: HiddenLoss | None = None

    @model_validator(mode="after")
    def _something(self) -> DistillLosses:
        weights = (self.logits.weight if self.logits else 0.0, self.hidden.weight if self.hidden else 0.0)
        if not any(weights):
            raise ValueError("a distillation needs a teacher loss: give `logits` or `hidden` a weight above 0")
        return self


class Distill(StageBase):
    """Train a student (the `from` checkpoint, or some of its layers) to answer as the teacher does."""

    stage: Literal["distill"]
    teacher: Slug
    """The stage (or `model`) whose checkpoint teaches."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Layers of the `from` checkpoint that the student starts with, counted from 0; all where absent."""
    losses: DistillLosses = DistillLosses()
    training: Training = Training()
    cache_limit_gb: PositiveFloat = 10.0
    """Teacher outputs beyond the logits are cached on disk up to here, and computed live above it."""

    @model_validator(mode="after")
    def _same_depth(self) -> Distill:
        layer_map = self.losses.hidden.layer_map if self.losses.hidden else None
        if self.layers is not None and layer_map is not None and len(self.layers) != len(layer_map):
            raise ValueError(
                f"`losses.hidden.layer_map` has {len(layer_map)} layers and `layers` has {len(self.layers)}: "
                "name one teacher layer for each student layer"
            )
        return self


class Keep(Part):
    """What a uniform pruning keeps, as fractions of what is there."""

    heads: Fraction = 1.0
    """Attention heads of each layer (whole key-value groups where heads share them)."""
    ffn: Fraction = 1.0
    """Feed-forward neurons of each layer, rounded to `granule`."""


class PruneBudget(Part):
    """What a searched pruning may spend, as a fraction of the dense model."""

    macs: Fraction | None = None
    """Multiply-accumulates of the layers per token."""
    parameters: Fraction | None = None
    """Parameters of the layers."""

    @model_validator(mode="after")
    def _one_way(self) -> PruneBudget:
        if (self.macs is None) == (self.parameters is None):
            raise ValueError("give exactly one of: macs, parameters")
        return self


class Prune(StageBase):
    """Remove attention heads and feed-forward neurons, and solve for the outputs that are left."""

    stage: Literal["prune"]
    keep: Keep | None = None
    """The same fractions in each layer."""
    budget: PruneBudget | None = None
    """Fractions chosen layer by layer for the least damage under a budget."""
    importance: Literal["block_obs", "magnitude", "wanda", "flap", "taylor", "fisher"] = "block_obs"
    recovery: Literal["ridge", "none"] = "ridge"
    """Closed-form correction of the weights that stay (no training)."""
    granule: PositiveInt = 64
    """Kept feed-forward neurons are a multiple of this where the layer is large enough."""

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        if (self.keep is None) == (self.budget is None):
            raise ValueError("give exactly one of: keep, budget")
        if self.keep is not None and self.keep.heads == 1.0 and self.keep.ffn == 1.0:
            raise ValueError("keep: heads and ffn are both 1.0, so nothing would be pruned")
        return self


class Export(StageBase):
    """Write an ONNX graph, fuse it, and hold its answers against the torch model's."""

    stage: Literal["export"]
    fuse: bool = True


Scheme = Literal["fp16", "w8a8-dynamic", "w8a8-static", "w8", "w4"]


class Quantize(StageBase):
    """Store (and where the scheme says so, compute) in fewer bits."""

    stage: Literal["quantize"]
    scheme: Scheme
    per_channel: bool = True
    reduce_range: bool = False
    """7-bit weights, for processors whose 8-bit multiply-add saturates (no VNNI)."""
    lm_head: bool = True
    """Quantise a language model's output layer too."""
    embeddings: bool = False
    """Quantise the embedding table too."""
    exclude: tuple[str, ...] = ()
    """Names of graph nodes left alone."""
    calibration_method: Literal["minmax", "percentile", "entropy"] = "minmax"
    """Only for `w8a8-static`."""


Stage = Annotated[Finetune | Distill | Prune | Export | Quantize, Field(discriminator="stage")]

ACCEPTS: dict[str, Kind] = {
    "finetune": "torch",
    "distill": "torch",
    "prune": "torch",
    "export": "torch",
    "quantize": "onnx",
}
"""What a stage starts from; checked along the chain before anything is loaded."""

YIELDS: dict[str, Kind] = {
    "finetune": "torch",
    "distill": "torch",
    "prune": "torch",
    "export": "onnx",
    "quantize": "onnx",
}
"""What a stage leaves."""
