"""Start a student from its teacher's layers (DistilBERT, arXiv 1910.01108: layers 0, 2, 4, 7, 9, 11 of 12)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from compressor.errors import CheckpointError
from compressor.methods.surgery.adapters import layers_of


def spaced_layers(n_teacher: int, n_student: int) -> tuple[int, ...]:
    """Layers of the teacher for a shallower student: evenly spaced, the first and the last always among them.

    6 of 12 gives 0, 2, 4, 7, 9, 11, DistilBERT's choice.

    Raises:
        CheckpointError: a student that is not shallower.
    """
    if not 1 <= n_student <= n_teacher:
        raise CheckpointError(
            f"a student of {n_student} layers cannot take its layers from a teacher of {n_teacher}",
            hint=f"choose 1 to {n_teacher} layers",
        )
    if n_student == 1:
        return (0,)
    step = (n_teacher - 1) / (n_student - 1)
    return tuple(int(number * step + 0.5) for number in range(n_student))


@torch.no_grad()
def copy_layers(student: PreTrainedModel, teacher: PreTrainedModel, layers: Sequence[int]) -> tuple[str, ...]:
    """Copy the given teacher layers into the student's, in order, and everything around the layers that fits by name.

    Args:
        student: as many layers as are named, of the same widths as the teacher's.
        teacher: same architecture.
        layers: teacher layers, counted from 0.

    Returns:
        Names of student tensors outside the layers that the teacher lacks or has in another shape (a new task head),
        left as they were.

    Raises:
        CheckpointError: a layer that does not exist, a depth that differs, or layers of other shapes.
    """
    student_layers, teacher_layers = layers_of(student), layers_of(teacher)
    bad = [number for number in layers if not 0 <= number < len(teacher_layers)]
    if bad:
        raise CheckpointError(f"the teacher has no layers {bad}", hint=f"its layers are 0 to {len(teacher_layers) - 1}")
    if len(layers) != len(student_layers):
        raise CheckpointError(f"{len(layers)} layers are mapped onto a student of {len(student_layers)}")
    for position, number in enumerate(layers):
        source, target = teacher_layers[number].state_dict(), student_layers[position].state_dict()
        differing = [name for name in target if name not in source or source[name].shape != target[name].shape]
        if differing or len(source) != len(target):
            raise CheckpointError(
                f"teacher layer {number} does not fit student layer {position}: {differing[:3] or 'other tensors'}",
                hint="layers can be copied between equal widths only; a narrower student needs its own start",
            )
        for name, value in target.items():
            value.copy_(source[name])
    inside = {id(tensor) for tensor in (*student_layers.parameters(), *student_layers.buffers())}
    around = dict(teacher.named_parameters()) | dict(teacher.named_buffers())
    left = []
    for name, parameter in (*student.named_parameters(), *student.named_buffers()):
        if id(parameter) in inside:
            continue
        if name in around and around[name].shape == parameter.shape:
            parameter.copy_(around[name])
        else:
            left.append(name)
    return tuple(left)
