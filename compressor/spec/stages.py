"""The stages. Each class is the settings of one stage, and its type is what the runner dispatches on."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from compressor.spec.base import Fraction, Part, PositiveFloat, PositiveInt, Slug, Weight
from compressor.spec.budgets import MEASURED, PruneBudget, Search
from compressor.spec.distillation import (
    PRESETS,
    DistillLosses,
    OnPolicy,
    PresetName,
    StudentSource,
    as_tuples,
    with_preset,
)

Kind = Literal["torch", "onnx"]


class StageBase(Part):
    """What every stage has: a name and a source."""

    id: Slug
    from_: Slug | None = Field(default=None, alias="from")
    """The stage whose checkpoint this one starts from; the one before it where absent, the model for the first."""


class Augment(Part):
    """More training rows, as TinyBERT makes them: words replaced by what a masked language model expects there."""

    model: str
    """Folder of a masked language model whose tokenizer is the student's, such as a downloaded bert-base-uncased."""
    variants: PositiveInt = 4
    """Rows beside each original; one is taken after the other, epoch by epoch."""
    probability: Fraction = 0.4
    """Of a word to be replaced."""
    candidates: PositiveInt = 15
    """A replacement is drawn from so many of the likeliest words."""


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
    tokens_per_batch: PositiveInt | None = None
    """In place of `batch_size`: rows of like length, as many as have so many tokens together, padding included."""
    evaluate_every_steps: PositiveInt | None = None
    """Validation and checkpoint interval; each epoch where absent."""
    save_every_steps: PositiveInt | None = None
    """Further checkpoints, from which a training that was cut short goes on; each epoch has one in any case."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory for more time."""
    compile: bool = False
    """Compile the model with `torch.compile`; needs a C++ compiler on CPUs."""
    variants: PositiveInt = 4
    """Only for masked language models: how many times each row is masked anew; epoch e takes variant e mod this."""
    augment: Augment | None = None
    processes: PositiveInt = 1
    """Processes that train together here, each with its share of every batch."""
    config: str | None = None
    """An `accelerate config` file, for several machines or FSDP; it says how many processes there are."""
    rows: PositiveInt | None = None
    """Train on the first rows only."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """`bf16` multiplies in bfloat16, with weights in fp32: faster on GPUs and on CPUs with AVX512_BF16 or AMX, slower
    elsewhere. `auto` takes it where it is faster; what was taken is recorded."""
    quantisation_aware: Literal["w8a8-dynamic", "w8a8-static", "w8", "w4"] | None = Field(
        default=None,
        exclude_if=operator.not_,  # so that what was trained before there was this key is found again
    )
    """Compute with weights (and for `w8a8`, inputs) rounded as this scheme will round them, so that a later `quantize`
    loses less; validation sees the rounded model too. What is left is a plain fp32 checkpoint."""

    @model_validator(mode="after")
    def _go_together(self) -> Training:
        if self.config is not None and self.processes != 1:
            raise ValueError("`config` says how many processes there are: leave `processes` out")
        if self.batch_size % self.processes:
            raise ValueError(f"`batch_size` {self.batch_size} cannot be shared by {self.processes} processes")
        return self


class Finetune(StageBase):
    """Train all weights on the labels (or on the text itself for a language model)."""

    stage: Literal["finetune"]
    training: Training = Training()


class Distill(StageBase):
    """Train a student (the `from` checkpoint, or some of its layers) to answer as the teacher does."""

    stage: Literal["distill"]
    teacher: Slug
    """The stage (or `model`) whose checkpoint teaches."""
    student: StudentSource | None = None
    """In place of `from`: any smaller checkpoint, or a config for random weights."""
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Layers of the `from` checkpoint (or of `student`) that the student starts with, from 0; all where absent."""
    preset: PresetName | None = None
    """A paper's combination of losses; what `losses` says comes on top, and the sum of both is on record."""
    losses: DistillLosses = DistillLosses()
    on_policy: OnPolicy | None = None
    """In place of `losses`: learn from what the student itself writes."""
    training: Training = Training()
    cache_limit_gb: PositiveFloat = 10.0
    """Teacher outputs beyond the logits are cached on disk up to here, and computed live above it."""

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") in PRESETS:
            losses = values.get("losses", {})
            if isinstance(losses, DistillLosses):
                losses = losses.model_dump()
            if isinstance(losses, dict):
                values = {**values, "losses": with_preset(values["preset"], losses)}
        return as_tuples(values)

    @model_validator(mode="after")
    def _one_start(self) -> Distill:
        if self.student is not None and self.from_ is not None:
            raise ValueError("the student comes from `from` or from `student`: give one of them")
        if self.on_policy is not None and (self.preset is not None or self.losses != DistillLosses()):
            raise ValueError("`on_policy` brings its own loss: leave `preset` and `losses` out")
        if self.on_policy is not None and self.training.quantisation_aware is not None:
            raise ValueError("`training.quantisation_aware` goes with `losses`, not with `on_policy`")
        return self

    @model_validator(mode="after")
    def _same_depth(self) -> Distill:
        for name, piece in self.losses.pieces().items():
            layer_map = getattr(piece, "layer_map", None)
            if self.layers is None or layer_map is None:
                continue
            n_held = 1 if getattr(piece, "at", "every") == "last" else len(self.layers) - (name == "pkd")
            if len(layer_map) != n_held:
                raise ValueError(
                    f"`losses.{name}.layer_map` has {len(layer_map)} layers, and {n_held} of the student's "
                    f"{len(self.layers)} `layers` are compared: name one teacher layer for each"
                )
        return self


class Keep(Part):
    """What a pruning to fixed fractions keeps, as fractions of what is there."""

    layers: Fraction = 1.0
    """Whole layers; which ones leave is decided by `depth_by`."""
    attention_sublayers: Fraction = 1.0
    """Layers that keep their attention; the others keep only its residual. Which ones is measured (`kl`)."""
    ffn_sublayers: Fraction = 1.0
    """Layers that keep their feed-forward sublayer; the others keep only its residual."""
    hidden: Fraction = 1.0
    """Hidden width of the whole model, rounded to `granule`. Nothing repairs it but a distillation afterwards."""
    heads: Fraction = 1.0
    """Attention heads of each layer (whole key-value groups where heads share them)."""
    ffn: Fraction = 1.0
    """Feed-forward neurons of each layer, rounded to `granule`."""

    @model_validator(mode="after")
    def _something(self) -> Keep:
        if all(value == 1.0 for _, value in self):
            raise ValueError(f"{', '.join(type(self).model_fields)} are all 1.0, so nothing would be pruned")
        return self


class Prune(StageBase):
    """Remove attention heads and feed-forward neurons, and solve for the outputs that are left."""

    stage: Literal["prune"]
    keep: Keep | None = None
    """The same fractions in each layer."""
    budget: PruneBudget | None = None
    """Sizes chosen layer by layer for the least damage under a budget."""
    search: Search | None = None
    """How a budget is spent; goes with `budget`."""
    importance: Literal["block_obs", "magnitude", "wanda", "flap", "activation_mean", "taylor", "fisher"] = "block_obs"
    """How heads and neurons are ranked."""
    depth_by: Literal["kl", "block_influence"] = "kl"
    """How whole layers are ranked: by the divergence that their removal causes, one after the other, or by how little
    each turns the hidden state (one pass)."""
    recovery: Literal["ridge", "bias", "scales", "none"] = "ridge"
    """Closed-form correction of what stays, without training: new output weights (`ridge`), FLAP's bias, which gives
    back the average of what left (`bias`), or Kwon's one factor per kept unit (`scales`)."""
    layout: Literal["per_layer", "uniform"] = "per_layer"
    """`uniform` is a shape that plain `from_pretrained` loads, or an error; `per_layer` lets layers differ, and what a
    stock config cannot say is loaded by `compressor.load`."""
    backend: Literal["built-in", "torch-pruning"] = "built-in"
    """`torch-pruning` hands `keep` to that library (BERT family, Llama without grouped queries)."""
    granule: PositiveInt = 64
    """Kept feed-forward neurons are a multiple of this where the layer is large enough."""

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        if (self.keep is None) == (self.budget is None):
            raise ValueError("give exactly one of: keep, budget")
        if self.search is not None and self.budget is None:
            raise ValueError("`search` goes with `budget`")
        if self.search is not None and self.search.precision == "mixed":
            assert self.budget is not None
            if not self.budget.is_measured:
                raise ValueError(
                    "`precision: mixed` weighs what INT8 saves, which macs and parameters do not tell: "
                    "give a budget in one of " + ", ".join(MEASURED)
                )
        return self

    @model_validator(mode="after")
    def _backend_can(self) -> Prune:
        if self.backend == "torch-pruning":
            others = {name for name, value in self.keep or () if value != 1.0} - {"heads", "ffn"}
            if self.keep is None or others:
                raise ValueError("the backend torch-pruning takes only `keep` with `heads` and `ffn`")
            if self.importance != "magnitude" or self.recovery != "none":
                raise ValueError(
                    "the backend torch-pruning ranks by magnitude and repairs nothing: "
                    "say so with `importance: magnitude` and `recovery: none`"
                )
        return self


class TrimVocabulary(StageBase):
    """Keep only the tokens that given texts use, and rebuild the tokenizer; what was kept is recorded."""

    stage: Literal["trim-vocabulary"]
    cover: Annotated[tuple[Literal["train", "validation", "calibration"], ...], Field(min_length=1)] = ("train",)
    """Splits whose texts must come out as the same tokens as before. Special tokens and single characters (or bytes)
    stay too, so that other texts remain encodable, in more tokens."""


class Smooth(Part):
    """SmoothQuant: outlier channels of activations made smaller and their weights larger, folded in before export."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the difficulty that moves into the weights."""


class Export(StageBase):
    """Write an ONNX graph, fuse it, and hold its answers against the torch model's."""

    stage: Literal["export"]
    fuse: bool = True
    smooth: Smooth | None = None
    """Make the graph easier to quantise without changing what it says; for models whose norms come first (pre-LN)."""
    unpadded_path: bool = Field(default=False, exclude_if=operator.not_)
    """A second path through attention for calls without padding (one text, or texts of one length): same numbers, less
    to compute on CPUs. For fused encoders; not with `fp16`."""

    @model_validator(mode="after")
    def _path_is_fused(self) -> Export:
        if self.unpadded_path and not self.fuse:
            raise ValueError("`unpadded_path` goes with `fuse: true`")
        return self


Scheme = Literal["fp16", "bf16", "w8a8-dynamic", "w8a8-static", "w8", "w4"]
Arithmetic = Literal["auto", "u8s8", "u8s8-reduced", "u8s8-precise", "u8u8"]
Rounding = Literal["rtn", "gptq", "awq", "autoround"]


class Until(Part):
    """What quantisation may cost in quality: on validation rows, in one uncached pass, against the fp32 graph."""

    metric: Literal["accuracy", "token_perplexity", "agreement"]
    """`agreement`: share of answers (of tokens, for a language model) that stay the same."""
    max_drop_points: float | None = Field(default=None, ge=0)
    """At most this many points (hundredths) of accuracy or agreement lost."""
    max_ratio: PositiveFloat | None = None
    """At most this multiple of the perplexity."""

    @model_validator(mode="after")
    def _one_way(self) -> Until:
        key = "max_ratio" if self.metric == "token_perplexity" else "max_drop_points"
        other = "max_drop_points" if key == "max_ratio" else "max_ratio"
        if getattr(self, key) is None or getattr(self, other) is not None:
            raise ValueError(f"{self.metric} takes `{key}`, and only that")
        return self


class Quantize(StageBase):
    """Store (and where the scheme says so, compute) in fewer bits."""

    stage: Literal["quantize"]
    scheme: Scheme
    """`bf16` stores weights in bfloat16 and computes in fp32."""
    per_channel: bool = True
    arithmetic: Arithmetic = "u8s8"
    """Only for `w8a8-dynamic`: unsigned activations times signed weights; the same with 7-bit weights (`-reduced`), or
    in a session that widens before it adds up (`-precise`); unsigned weights; or whichever of them is cheapest on this
    machine among those that are about as exact (`auto`). Without VNNI, `u8s8` may saturate."""
    method: Rounding = "rtn"
    """Only for `w8` and `w4`: to the nearest, or so that calibration outputs change least (`gptq`, our own; `awq` and
    `autoround` by neural-compressor)."""
    lm_head: bool = True
    """Quantise a language model's output layer too."""
    embeddings: bool = False
    """Quantise the embedding table too."""
    exclude: tuple[str, ...] | Literal["auto", "searched"] = ()
    """Names of graph nodes left alone; `auto` measures every node's damage and leaves as few alone as `until` needs.
    With `w4` it tries 8 bits first. `searched` leaves alone what a pruning with `precision: mixed` chose to."""
    until: Until | None = None
    """Only with `exclude: auto`."""
    calibration_method: Literal["minmax", "percentile", "entropy"] = "minmax"
    """Only for `w8a8-static`."""

    @model_validator(mode="after")
    def _go_together(self) -> Quantize:
        if (self.exclude == "auto") != (self.until is not None):
            raise ValueError("`exclude: auto` and `until` go together: what is left out depends on what must hold")
        if self.exclude == "searched" and self.scheme != "w8a8-dynamic":
            raise ValueError(f"`exclude: searched` is for w8a8-dynamic, whose costs the search weighed: {self.scheme}")
        only = {
            "arithmetic": ("w8a8-dynamic",),
            "method": ("w8", "w4"),
            "calibration_method": ("w8a8-static",),
        }
        for key, schemes in only.items():
            if getattr(self, key) != type(self).model_fields[key].default and self.scheme not in schemes:
                raise ValueError(f"`{key}` is for {' and '.join(schemes)}, and {self.scheme} would ignore it")
        return self


class Tune(StageBase):
    """Find the runtime settings of least cost on this machine; they travel with the variant and no weight changes.

    Measured on calibration (else validation) rows, each setting in a process of its own. A setting replaces the one in
    place only where its whole interval shows a saving; that the defaults are best is a result.
    """

    stage: Literal["tune"]
    minimise: Literal["cpu_s_per_token", "j_per_token"] = "cpu_s_per_token"
    latency_s_max: PositiveFloat | None = None
    """Limit on the 95th percentile of one call: a batch of texts, or one decode step."""
    threads: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    """Numbers to try; 1, 2, 4, ... up to `target.threads` (or all cores) where absent."""
    spinning: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)
    """Whether waiting threads burn CPU to wake faster."""
    memory_arena: Annotated[tuple[bool, ...], Field(min_length=1)] = (True, False)
    """Whether ONNX Runtime keeps freed memory for itself."""
    io_binding: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)
    """Whether inputs and outputs are handed over as ONNX Runtime's own values."""
    batch_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 8, 32)
    """Texts in one call, for models that do not generate."""
    sort_by_length: Annotated[tuple[bool, ...], Field(min_length=1)] = (False, True)
    """Whether texts of like length go together, for models that do not generate."""
    rows: PositiveInt = 64
    """Texts of one pass, from the start of the split; at most four prompts for models that generate."""
    input_tokens: PositiveInt = 32
    """Length of a prompt, for models that generate."""
    output_tokens: Annotated[int, Field(ge=2)] = 16
    """Tokens generated after each prompt, for models that generate."""
    rounds: Annotated[int, Field(ge=3)] = 5
    """Paired rounds of each comparison; fewer than three give no interval."""
    window_s: PositiveFloat = 1.0
    """Length of one timed window."""
    table: str | None = None
    """A `tuning.json` of an earlier run: its settings are taken, and nothing is measured."""


Stage = Annotated[Finetune | Distill | Prune | TrimVocabulary | Export | Quantize | Tune, Field(discriminator="stage")]

ACCEPTS: dict[str, Kind] = {
    "finetune": "torch",
    "distill": "torch",
    "prune": "torch",
    "trim-vocabulary": "torch",
    "export": "torch",
    "quantize": "onnx",
    "tune": "onnx",
}
"""What a stage starts from; checked along the chain before anything is loaded."""

YIELDS: dict[str, Kind] = {
    "finetune": "torch",
    "distill": "torch",
    "prune": "torch",
    "trim-vocabulary": "torch",
    "export": "onnx",
    "quantize": "onnx",
    "tune": "onnx",
}
"""What a stage leaves."""
