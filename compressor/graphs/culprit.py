"""Which module of a model stopped the exporter, and on what shapes: its own errors name an operator at best."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from compressor.graphs.files import hushed

_OVERLOAD = re.compile(r"<OpOverload\(op='([\w.]+)', overload='(\w+)'\)>")


def find_culprit(model: nn.Module, args: tuple[Any, ...], dynamic_shapes: Any, error: str) -> str:
    """ " in <module> (<class>) on <shapes>", found by tracing once more; empty where the trace does not tell.

    Args:
        model: what could not be exported.
        args, dynamic_shapes: as they went into the export.
        error: its text; it names an operator when the trace was good and its translation was not.
    """
    stack: list[str] = []
    try:
        with hushed(), torch.no_grad(), _watching(model, stack):
            program = torch.export.export(model, args, dynamic_shapes=_free(dynamic_shapes), strict=False)
    except (RuntimeError, ValueError, TypeError, torch._dynamo.exc.TorchDynamoException):
        return f" in {stack[-1]}" if stack else ""
    overload = _OVERLOAD.search(error)
    if overload is None:
        return ""
    target = ".".join(overload.groups())
    with hushed():
        graph = program.run_decompositions().graph
    return next((f" in {_place(node)}" for node in graph.nodes if str(node.target) == target), "")


def _free(shapes: Any) -> Any:
    """The same dimensions, none of them promised anything: which ones a model bounds does not matter here."""
    if isinstance(shapes, dict):
        return dict.fromkeys(shapes, torch.export.Dim.AUTO)
    return type(shapes)(_free(one) for one in shapes)


@contextlib.contextmanager
def _watching(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep the modules that are being called, the innermost last; when one fails, it stays there."""

    def enter(path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        shapes = [_shape(value) for value in inputs if isinstance(value, Tensor)]
        stack.append(_words(path, type(module).__name__, shapes))

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, x, path=path: enter(path, m, x)))
        handles.append(module.register_forward_hook(lambda *_: stack.pop() and None))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _place(node: fx.Node) -> str:
    path, kind = list(node.meta.get("nn_module_stack", {"": ("the model", "")}).values())[-1]
    values = [argument.meta.get("val") for argument in node.all_input_nodes]
    kind = kind if isinstance(kind, str) else kind.__name__
    return _words(path, kind.rpartition(".")[2], [_shape(value) for value in values if isinstance(value, Tensor)])


def _words(path: str, kind: str, shapes: list[str]) -> str:
    name = path.removeprefix("model.") or "the model itself"
    return f"{name} ({kind})" + (f" on {', '.join(shapes)}" if shapes else "")


def _shape(value: Tensor) -> str:
    return f"({', '.join(str(size) for size in value.shape)})"
