"""ONNX files on disk: written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import convert_model_to_external_data, uses_external_data

from compressor.errors import CheckpointError, StageError

EXTERNAL_DATA_ABOVE_BYTES = 1_500_000_000  # protobuf ends at 2 GB; below this one file avoids every naming conflict


def load_onnx(path: str | Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        CheckpointError: no such file, or not an ONNX file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError("no such ONNX file", where=str(path), hint="export the model first")
    try:
        model = onnx.load(str(path))
    except (DecodeError, OSError, onnx.checker.ValidationError) as error:
        raise CheckpointError(
            f"cannot be read as ONNX ({error})", where=str(path), hint="export the model again"
        ) from error
    if not model.graph.node:
        raise CheckpointError("holds an empty ONNX graph", where=str(path), hint="export the model again")
    return model


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silence the libraries that tell standard output, the root logger and the warnings of every node they look at."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def disk_errors_named(path: str | Path) -> Iterator[None]:
    """Turn a full or read-only disk into an error that says which file could not be written.

    Raises:
        StageError: any OSError inside.
    """
    try:
        yield
    except OSError as error:
        raise StageError(
            f"could not be written ({error.strerror or error})",
            where=str(path),
            hint="free some disk space or choose another output folder; nothing half-written was left",
        ) from error


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it at the end; removed when anything fails (a full disk too).

    Raises:
        StageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    with disk_errors_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def save_onnx(
    model: onnx.ModelProto, path: str | Path, *, external_data_above_bytes: int = EXTERNAL_DATA_ABOVE_BYTES
) -> None:
    """Write ``model`` as one file, or with ``<name>_data`` beside it when the weights are larger than the limit.

    ``<name>_data`` is what Optimum and Transformers.js look for. An ONNX file refers to its data by name, so the data
    are put in place first and the graph last: there is never a graph without its data.
    """
    path = Path(path)
    data_path = path.with_name(f"{path.name}_data")
    if sum(_tensor_bytes(tensor) for tensor in model.graph.initializer) <= external_data_above_bytes:
        with written_whole(path) as partial:
            onnx.save(model, str(partial))
        data_path.unlink(missing_ok=True)
        return
    external = onnx.ModelProto()
    external.CopyFrom(model)
    with written_whole(path) as partial, written_whole(data_path) as partial_data:
        convert_model_to_external_data(external, location=partial_data.name, size_threshold=1024)
        onnx.save(external, str(partial))  # writes the data file
        for tensor in external.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = data_path.name
        partial.write_bytes(external.SerializeToString())


def file_bytes(path: str | Path) -> int:
    """Size of an ONNX file together with its external data, in bytes."""
    path = Path(path)
    data_path = path.with_name(f"{path.name}_data")
    return path.stat().st_size + (data_path.stat().st_size if data_path.exists() else 0)


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    return tensor.ByteSize() if not uses_external_data(tensor) else 0
