"""`compressor layout`: a checkpoint as another runtime wants to find it. Copies and renames; no number changes.

What was written is opened again where that can be done here (ONNX Runtime always, OpenVINO where it is installed) and
its answers are compared with the checkpoint's. A door whose server does not run here is laid out, and said to be no
more than that.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from compressor.checkpoints.files import write_whole
from compressor.checkpoints.manifest import CERTIFICATE_NAME, MANIFEST_NAME, Variant
from compressor.checkpoints.store import Checkpoint, open_checkpoint
from compressor.data.tokenize import load_tokenizer
from compressor.errors import CheckpointError, StageError, UnsupportedError, UserError
from compressor.runtime.doors import DOORS, DoorName, graphs_for, js_dtype
from compressor.runtime.onnx_runner import open_session
from compressor.runtime.runners import Array, n_cores, position_ids

TABLE = "doors.json"
TOKENS = 12
MAX_LENGTH = 10**6
"""A tokenizer that says more than this has no limit of its own."""
_TRITON_TYPES = {
    "tensor(int64)": "TYPE_INT64",
    "tensor(int32)": "TYPE_INT32",
    "tensor(float)": "TYPE_FP32",
    "tensor(float16)": "TYPE_FP16",
}


@dataclass(frozen=True)
class DoorRow:
    """One line of the doors table.

    Attributes:
        door: which runtime the folder is for.
        file: below the laid-out folder.
        variant: the checkpoint's variant that it is.
        opened: whether the door's own runtime opened it here; laid out only where not.
        difference: largest |difference| of any output from the checkpoint's own, as a multiple of the largest |output|;
            None where nothing could be run.
        compared_in: the runtime whose answers were compared.
        note: what was not done.
    """

    door: str
    file: str
    variant: str
    opened: bool
    difference: float | None
    compared_in: str | None
    note: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def lay_out(path: Path, door: DoorName, out: Path, *, precision: str | None = None) -> list[DoorRow]:
    """Write a folder that `door` opens, beside the checkpoint and independent of it.

    Args:
        path: a checkpoint of ours.
        door: who shall open it.
        out: a folder that does not exist or is empty.
        precision: which variant, as `compressor.load` takes it; the one it would open where absent.

    Returns:
        The doors table of this folder; also written to `doors.json` in it (beside the model, for Triton).

    Raises:
        UserError: `out` holds something.
        CheckpointError: the checkpoint is damaged, or has no such graph.
        UnsupportedError: the door cannot serve such a model.
        StageError: the folder cannot be written.
    """
    checkpoint = open_checkpoint(path)
    graphs = graphs_for(door, checkpoint.content, where=str(path), precision=precision)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("the folder is not empty", where=str(out), hint="name a new folder with --out")
    for variant in graphs.values():
        _check_whole(checkpoint, variant)
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        root = _root(door, checkpoint, partial)
        for target, variant in graphs.items():
            _copy(checkpoint.path / variant.path, root / target)
        WRITERS[door](checkpoint, graphs, root)
        rows = _openvino_rows(graphs, root) if door == "openvino" else []
        rows = rows or [_row(door, checkpoint, variant, root, target) for target, variant in graphs.items()]
        write_whole(partial / TABLE, json.dumps([row.to_json() for row in rows], indent=1) + "\n")
        if out.exists():
            out.rmdir()
        partial.replace(out)
    except OSError as error:
        raise StageError(f"the folder cannot be written: {error.strerror}", where=str(out)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return rows


def markdown(rows: Sequence[DoorRow]) -> str:
    """The doors table as Markdown."""
    lines = ["| door | file | variant | opened here | difference | note |", "| --- | --- | --- | --- | ---: | --- |"]
    for row in rows:
        difference = "-" if row.difference is None else f"{row.difference:.1e} ({row.compared_in})"
        opened = "yes" if row.opened else "laid out only"
        lines.append(f"| {row.door} | {row.file} | {row.variant} | {opened} | {difference} | {row.note} |")
    return "\n".join(lines) + "\n"


# What each door wants beside the graph --------------------------------------------------------------------------------


def _tei(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    """`model.onnx` alone in the root, since no other file can be named; the config must tell width and depth."""
    _carry(checkpoint, root)
    config = _read(root / "config.json")
    missing = [key for key in _OTHER_NAMES if key not in config]
    unknown = [key for key in missing if _OTHER_NAMES[key] not in config]
    if unknown:
        raise UnsupportedError(
            f"Text Embeddings Inference reads {unknown[0]} from config.json, and it is not there",
            where=str(checkpoint.path),
        )
    if missing:
        _set(root / "config.json", {key: config[_OTHER_NAMES[key]] for key in missing})


_OTHER_NAMES = {"hidden_size": "dim", "num_hidden_layers": "n_layers"}
"""What TEI reads, and DistilBERT's names for it."""


def _transformersjs(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    """`transformers.js_config` says which precision opens by default: what `compressor.load` would open."""
    _carry(checkpoint, root)
    last = list(checkpoint.content.variants)
    preferred = max(graphs, key=lambda target: last.index(graphs[target]))
    _set(root / "config.json", {"transformers.js_config": {"dtype": js_dtype(preferred)}})


def _fastembed(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    """It cuts texts by `model_max_length` and refuses a tokenizer without one."""
    _carry(checkpoint, root)
    config = _read(root / "config.json")
    limit = _read(root / "tokenizer_config.json").get("model_max_length")
    positions = config.get("max_position_embeddings")
    if (not isinstance(limit, int) or limit > MAX_LENGTH) and isinstance(positions, int):
        counts_from_pad = config.get("model_type") in ("roberta", "xlm-roberta", "camembert")
        room = positions - (config.get("pad_token_id", 1) + 1 if counts_from_pad else 0)
        _set(root / "tokenizer_config.json", {"model_max_length": room})


def _sentence_transformers(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    """A Hugging Face folder with `onnx/`; `modules.json` and the pooling come along where the model has them."""
    _carry(checkpoint, root)
    weights = checkpoint.path / "model.safetensors"
    if weights.is_file():
        _copy(weights, root / weights.name)


def _openvino(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    _carry(checkpoint, root)


def _triton(checkpoint: Checkpoint, graphs: Mapping[str, Variant], root: Path) -> None:
    """`config.pbtxt` beside the numbered version. The graph has a batch dimension of its own: max_batch_size is 0."""
    ((target, variant),) = graphs.items()
    session = open_session(root / target, threads=1, provider="CPUExecutionProvider", settings={})
    parts = [f'name: "{root.name}"', 'backend: "onnxruntime"', "max_batch_size: 0"]
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            sizes = ", ".join(str(size) if isinstance(size, int) else "-1" for size in value.shape)
            parts.append(
                f'{kind} [ {{ name: "{value.name}" data_type: {_TRITON_TYPES[value.type]} dims: [ {sizes} ] }} ]'
            )
    threads = variant.settings.get("threads")
    if threads:
        parts.append(f'parameters {{ key: "intra_op_thread_count" value: {{ string_value: "{threads}" }} }}')
    write_whole(root / "config.pbtxt", "\n".join(parts) + "\n")


WRITERS: Mapping[DoorName, Callable[[Checkpoint, Mapping[str, Variant], Path], None]] = {
    "tei": _tei,
    "transformersjs": _transformersjs,
    "fastembed": _fastembed,
    "triton": _triton,
    "sentence-transformers": _sentence_transformers,
    "openvino": _openvino,
}


def _root(door: DoorName, checkpoint: Checkpoint, partial: Path) -> Path:
    """Where the model's files go; Triton's repository holds one folder for each model."""
    return partial / checkpoint.path.name.rsplit("-", 1)[0] if door == "triton" else partial


def _carry(checkpoint: Checkpoint, root: Path) -> None:
    """Config, tokenizer, pooling and whatever else is no weight and no graph."""
    graphs = {variant.path for variant in checkpoint.content.variants}
    for name in checkpoint.content.files:
        is_weight = name.startswith("onnx/") or any(name.startswith(path) for path in graphs)
        if not is_weight and name not in (MANIFEST_NAME, CERTIFICATE_NAME, "README.md", "tuning.json"):
            _copy(checkpoint.path / name, root / name)
    tokenizer = root / "tokenizer_config.json"
    if _read(tokenizer).get("tokenizer_class") == "TokenizersBackend":
        # transformers 5's name for a tokenizer.json without a class of its own; version 4 knows only the older one,
        # and gives it other inputs unless they are named.
        names = load_tokenizer(checkpoint.path).model_input_names
        _set(tokenizer, {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": names})


def _check_whole(checkpoint: Checkpoint, variant: Variant) -> None:
    """Data beside a graph has another name in every runtime, so a graph must be one file here."""
    beside = [name for name in checkpoint.content.files if name.startswith(variant.path) and name != variant.path]
    if beside:
        raise CheckpointError(
            f"{variant.path} keeps its weights in {beside[0]}, a name that differs from runtime to runtime",
            where=str(checkpoint.path),
            hint="lay out a smaller precision, which is one file",
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def _set(path: Path, values: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps({**_read(path), **values}, indent=2, ensure_ascii=False) + "\n")


# Opened again ---------------------------------------------------------------------------------------------------------


def _row(door: DoorName, checkpoint: Checkpoint, variant: Variant, root: Path, target: str) -> DoorRow:
    """The laid-out graph in ONNX Runtime, against the checkpoint's."""
    expected, found = (_answers(path) for path in (checkpoint.path / variant.path, root / target))
    file = str(Path(root.name) / target) if door == "triton" else target
    title, runtime = DOORS[door].title, f"ONNX Runtime {ort.__version__}"
    note = f"{title} itself was not run here"
    return DoorRow(title, file, variant.id, False, _apart(expected, found), runtime, note)


def _answers(path: Path) -> list[Array]:
    session = open_session(path, threads=n_cores(), provider="CPUExecutionProvider", settings={})
    values: list[Array] = session.run(None, probe(session, n_rows=2))
    return values


def probe(session: ort.InferenceSession, *, n_rows: int) -> dict[str, Array]:
    """Rows of small token ids, the last of several shorter, with an empty past where the graph has one."""
    mask = np.ones((n_rows, TOKENS), np.int64)
    mask[1:, TOKENS // 2 :] = 0
    known = {
        "input_ids": np.arange(n_rows * TOKENS, dtype=np.int64).reshape(n_rows, TOKENS) + 5,
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
        "position_ids": position_ids(mask),
    }
    feeds = {}
    for value in session.get_inputs():
        if value.name in known:
            feeds[value.name] = known[value.name]
        else:
            dtype = np.float16 if value.type == "tensor(float16)" else np.float32
            feeds[value.name] = np.zeros((n_rows, value.shape[1], 0, value.shape[3]), dtype)
    return feeds


def _apart(expected: Sequence[Array], found: Sequence[Array]) -> float:
    pairs = [(one.astype(np.float64), two.astype(np.float64)) for one, two in zip(expected, found, strict=True)]
    return max(float(np.abs(one - two).max() / max(np.abs(one).max(), 1e-12)) for one, two in pairs)


def _openvino_rows(graphs: Mapping[str, Variant], root: Path) -> list[DoorRow]:
    """OpenVINO reads the ONNX file itself; where it is installed, its own format is written and both are opened."""
    if importlib.util.find_spec("openvino") is None:
        return []
    import openvino

    ((target, variant),) = graphs.items()
    openvino.save_model(openvino.convert_model(root / target), root / "openvino_model.xml", compress_to_fp16=False)
    session = open_session(root / target, threads=n_cores(), provider="CPUExecutionProvider", settings={})
    is_decoder = any(value.name.startswith("past_key_values.") for value in session.get_inputs())
    feeds = probe(session, n_rows=1 if is_decoder else 2)
    note = "one prompt at a time: it takes no batch of a fused decoder; export with fuse: false" if is_decoder else ""
    expected = session.run(None, feeds)
    version = f"OpenVINO {openvino.get_version().split('-')[0]}"
    rows = []
    for file in (target, "openvino_model.xml"):
        answers = openvino.Core().compile_model(root / file, "CPU")(feeds)
        found = [np.asarray(answers[value.name]) for value in session.get_outputs()]
        rows.append(DoorRow("OpenVINO", file, variant.id, True, _apart(expected, found), version, note))
    return rows
