"""Projectors: features of unequal width, resolution or length made comparable."""

import math
from typing import Any

import keras
import tensorflow as tf
from keras import ops

Shape = tuple[int | None, ...]


def align(teacher: Any, student: Any, teacher_mask: Any = None, student_mask: Any = None) -> tuple[Any, Any]:
    """Two features brought to the same positions; the channels stay as they are.

    The larger map is averaged down to the smaller where the sizes divide, and resized bilinearly where they do not; a
    longer sequence is interpolated linearly to the shorter; a map beside a sequence is read row by row as one; a map
    or sequence beside a vector is averaged over its positions.

    Args:
        teacher, student: Tensors of shape (batch, channels), (batch, length, channels) or (batch, height, width,
            channels).
        teacher_mask, student_mask: Of sequences, shape (batch, length): positions that are False take no part in an
            average. Defaults to `None`.

    Returns: (teacher, student), each of shape (batch, positions ..., own channels), with the same positions.
    """
    rank = min(len(teacher.shape), len(student.shape))
    teacher, student = _to_rank(teacher, rank, teacher_mask), _to_rank(student, rank, student_mask)
    sizes = list(zip(teacher.shape[1:-1], student.shape[1:-1], strict=True))
    if all(a == b and a is not None for a, b in sizes):
        return teacher, student
    target = [_smaller(a, b) for a, b in sizes]
    if None in target:  # sizes of the batch: the student's decide
        return resize(teacher, ops.shape(student)[1:-1]), student
    return resize(teacher, target), resize(student, target)


def resize(features: Any, sizes: Any) -> Any:
    """Features at other positions: averaged where the new size divides the old one, else interpolated linearly.

    Args:
        features: Shape (batch, length, channels) or (batch, height, width, channels), float.
        sizes: One integer for each axis of positions, or scalar tensors, which are always interpolated.
    """
    old, fixed = features.shape[1:-1], all(isinstance(size, int) for size in sizes)
    if fixed and tuple(old) == tuple(sizes):
        return features
    if fixed and all(was and was % new == 0 for was, new in zip(old, sizes, strict=True)):
        return _averaged(features, sizes)
    # Of TensorFlow: `keras.ops.image.resize` takes no tensors for sizes.
    if len(old) == 1:
        return ops.squeeze(tf.image.resize(ops.expand_dims(features, 2), ops.stack([sizes[0], 1])), 2)
    return tf.image.resize(features, ops.stack(list(sizes)))


def channels_of(shape: Shape, role: str, name: str) -> int:
    """The last axis of a feature.

    Raises: ValueError if it is not known.
    """
    if shape[-1] is None:
        raise ValueError(f"The tap {name!r} of the {role} has no fixed number of channels: shape {shape}.")
    return int(shape[-1])


def projector(channels: int, name: str) -> keras.layers.Layer:
    """A trained linear map of channels: a 1x1 convolution of maps, a dense layer of sequences and vectors."""
    return keras.layers.Dense(channels, name=name, dtype="float32")


def _averaged(features: Any, sizes: Any) -> Any:
    shape: list[Any] = [-1]
    for was, new in zip(features.shape[1:-1], sizes, strict=True):
        shape += [new, was // new]
    pooled = ops.reshape(features, (*shape, features.shape[-1]))
    return ops.mean(pooled, axis=tuple(range(2, 2 + 2 * len(sizes), 2)))


def _to_rank(features: Any, rank: int, mask: Any) -> Any:
    if len(features.shape) == rank:
        return features
    if rank == 2 and mask is not None and len(features.shape) == 3:
        seen = ops.cast(mask, features.dtype)[..., None]
        return ops.sum(features * seen, axis=1) / ops.maximum(ops.sum(seen, axis=1), 1.0)
    if rank == 2:
        return ops.mean(features, axis=tuple(range(1, len(features.shape) - 1)))
    positions = features.shape[1:-1]
    length = math.prod(positions) if None not in positions else -1
    batch = ops.shape(features)[0] if length == -1 else -1
    return ops.reshape(features, (batch, length, features.shape[-1]))


def _smaller(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else min(one, other)
