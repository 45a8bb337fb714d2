"""Look before you leap: what a run would need, without doing any of it.

Nothing is downloaded, loaded or written. What cannot be known without work (a hub model that is not here yet) is said
to be unknown.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from compressor.errors import UserError
from compressor.measurement.suite import calibration_of
from compressor.pipeline.plan import make_plan
from compressor.pipeline.teaching import cache_bytes, losses_text
from compressor.spec.pipeline import Pipeline
from compressor.spec.sources import DataSource
from compressor.spec.stages import Distill, Export, Finetune, Prune, Quantize
from compressor.spec.tasks import TASKS

# Rough rates of one CPU thread, for an estimate that is printed as rough: real ones differ by a factor of three.
TRAIN_FLOP_PER_S = 25e9
BYTES_PER_PARAMETER = 4
BYTES_PER_TOKEN = 5  # of English text, labels and quotes around it included


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool | None
    """None: cannot be known without doing work."""
    text: str


@dataclass(frozen=True)
class DryRun:
    """What a run would need."""

    steps: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.ok is not False for check in self.checks)


def dry_run(pipeline: Pipeline, *, out: Path | None = None) -> DryRun:
    """Check packages, model, data, disk, memory and adapters, and estimate the time."""
    plan = make_plan(pipeline)
    config = _model_config(pipeline)
    parameters = _parameters(pipeline, config)
    checks = [
        *_packages(pipeline),
        _model(pipeline, config),
        *_data(pipeline),
        *_calibration(pipeline),
        *_architecture(pipeline, config),
        *_distillations(pipeline, config),
        _disk(pipeline, parameters, len(plan.steps), out or Path("runs")),
        _memory(pipeline, parameters),
        _time(pipeline, parameters),
    ]
    return DryRun(steps=tuple(step.id for step in plan.steps), checks=tuple(checks))


def _packages(pipeline: Pipeline) -> list[Check]:
    needed = ["torch", "accelerate"] if any(isinstance(s, Finetune | Distill) for s in pipeline.stages) else ["torch"]
    if any(isinstance(s, Export | Quantize) for s in pipeline.stages):
        needed += ["onnx", "onnxscript"]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        text = f"missing: {', '.join(missing)}; pip install 'joule-compressor[torch]'"
        return [Check("packages", False, text)]
    return [Check("packages", True, ", ".join(needed))]


def _model_config(pipeline: Pipeline) -> dict[str, Any] | None:
    """The model's Hugging Face config, where it can be read without a download."""
    model = pipeline.model
    if model.config is not None:
        return model.config
    path = Path(model.path) / "config.json" if model.path else None
    if path is None or not path.is_file():
        return None
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def _model(pipeline: Pipeline, config: dict[str, Any] | None) -> Check:
    model = pipeline.model
    if model.path is not None and config is None:
        hint = f"; {model.how_to_get}" if model.how_to_get else ""
        return Check("model", False, f"no config.json in {model.path}{hint}")
    if config is None:
        return Check("model", None, f"{model.hub} would be fetched from the hub")
    return Check("model", True, f"{model.name or model.path or 'random weights'} ({config.get('model_type')})")


def _data(pipeline: Pipeline) -> list[Check]:
    checks = []
    for split in ("train", "validation", "test", "calibration"):
        source: DataSource | None = getattr(pipeline.data, split)
        if source is None:
            continue
        if source.path is None:
            checks.append(Check(f"data.{split}", None, f"{source.hub} would be fetched from the hub"))
        elif Path(source.path).is_file():
            size = Path(source.path).stat().st_size
            checks.append(Check(f"data.{split}", True, f"{source.path} ({size / 1e6:.1f} MB)"))
        else:
            hint = f"; {source.how_to_get}" if source.how_to_get else ""
            checks.append(Check(f"data.{split}", False, f"no such file: {source.path}{hint}"))
    return checks


def _calibration(pipeline: Pipeline) -> list[Check]:
    """Whether the watts that estimates shall use are those of this machine."""
    if pipeline.energy.calibration is None:
        return []
    try:
        calibration_of(pipeline.energy)
    except UserError as error:
        return [Check("energy.calibration", False, error.message)]
    return [Check("energy.calibration", True, f"{pipeline.energy.calibration} is of this machine")]


def _architecture(pipeline: Pipeline, config: dict[str, Any] | None) -> list[Check]:
    """Whether the pruning stages know this architecture, and the layers a student asks for exist."""
    if config is None or importlib.util.find_spec("torch") is None:
        return []
    checks = []
    model_type = str(config.get("model_type"))
    if any(isinstance(stage, Prune) for stage in pipeline.stages):
        from compressor.methods.surgery import ADAPTERS

        known = set(ADAPTERS)
        text = f"{model_type} can be pruned" if model_type in known else f"{model_type}: supported are {sorted(known)}"
        checks.append(Check("pruning", model_type in known, text))
    n_layers = next((config[key] for key in ("num_hidden_layers", "n_layer", "n_layers") if key in config), None)
    for stage in pipeline.stages:
        if isinstance(stage, Distill) and stage.layers and stage.from_ in (None, "model") and n_layers is not None:
            ok = max(stage.layers) < n_layers
            checks.append(Check(f"layers of {stage.id}", ok, f"{list(stage.layers)} of {n_layers} (from 0)"))
    return checks


def _distillations(pipeline: Pipeline, config: dict[str, Any] | None) -> list[Check]:
    """Each distillation's losses, presets written out, and the size of what it would cache of its teacher."""
    checks = []
    train, tokenizer = pipeline.data.train, pipeline.model.tokenizer
    is_here = train is not None and train.path is not None and Path(train.path).is_file()
    for stage in pipeline.stages:
        if not isinstance(stage, Distill):
            continue
        size = None
        if config is not None and is_here and train is not None and train.path is not None:
            vocab = config.get("vocab_size") or (tokenizer.vocab_size if tokenizer else None) or 0
            n_tokens = Path(train.path).stat().st_size / BYTES_PER_TOKEN
            size = cache_bytes(stage, config, TASKS[pipeline.model.task], n_tokens, vocab)
        if size is None:
            cache = "the size of the teacher's cache is unknown until model and data are here"
        elif size <= stage.cache_limit_gb * 1e9:
            cache = f"about {size / 1e9:.2f} GB of the teacher's outputs cached"
        else:
            cache = f"about {size / 1e9:.0f} GB of the teacher's outputs, above cache_limit_gb {stage.cache_limit_gb:g}"
        checks.append(Check(f"losses of {stage.id}", None if size is None else True, f"{losses_text(stage)}; {cache}"))
    return checks


def _parameters(pipeline: Pipeline, config: dict[str, Any] | None) -> int | None:
    """Parameters from the size of the weights on disk, or a count from the config's shape."""
    if pipeline.model.path is not None:
        files = list(Path(pipeline.model.path).glob("*.safetensors"))
        return sum(file.stat().st_size for file in files) // BYTES_PER_PARAMETER if files else None
    if config is None:
        return None
    hidden = config.get("hidden_size") or config.get("n_embd")
    layers = config.get("num_hidden_layers") or config.get("n_layer")
    if not hidden or not layers:
        return None
    ffn = config.get("intermediate_size") or config.get("n_inner") or 4 * hidden
    tokenizer = pipeline.model.tokenizer
    vocab = config.get("vocab_size") or (tokenizer.vocab_size if tokenizer else None) or 0
    return int(layers * (4 * hidden**2 + 2 * hidden * ffn) + vocab * hidden)


def _disk(pipeline: Pipeline, parameters: int | None, n_steps: int, out: Path) -> Check:
    if parameters is None:
        return Check("disk", None, "unknown until the model is here")
    parent = next(path for path in (out, *out.resolve().parents) if path.exists())
    # A stage's weights, its graph, and twice the weights for the optimiser's state while it trains.
    needed = parameters * BYTES_PER_PARAMETER * (2 * n_steps + 4)
    free = shutil.disk_usage(parent).free
    return Check("disk", needed < free, f"about {needed / 1e9:.2f} GB needed, {free / 1e9:.1f} GB free")


def _memory(pipeline: Pipeline, parameters: int | None) -> Check:
    if parameters is None:
        return Check("memory", None, "unknown until the model is here")
    # Weights, gradients and two moments, and a teacher beside them.
    needed = parameters * BYTES_PER_PARAMETER * 5
    free = psutil.virtual_memory().available
    return Check("memory", needed < free, f"about {needed / 1e9:.2f} GB at most, {free / 1e9:.1f} GB free")


def _time(pipeline: Pipeline, parameters: int | None) -> Check:
    """Training dominates; its floating-point operations are 6 x parameters x tokens."""
    train = pipeline.data.train
    if parameters is None or train is None or train.path is None or not Path(train.path).is_file():
        return Check("time", None, "unknown until the model and the data are here")
    tokens = Path(train.path).stat().st_size / BYTES_PER_TOKEN
    epochs = sum(stage.training.epochs for stage in pipeline.stages if isinstance(stage, Finetune | Distill))
    threads = pipeline.target.threads or psutil.cpu_count(logical=False) or 1
    seconds = 6 * parameters * tokens * epochs / (TRAIN_FLOP_PER_S * threads)
    return Check("time", True, f"training about {seconds / 60:.0f} minutes (rough), then measuring")
