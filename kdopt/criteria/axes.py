"""Which axes of a kernel number the features its layer reads, and which the channels it makes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kdopt.core.kernels import KernelView
from kdopt.criteria.base import per_weight


@dataclass(frozen=True)
class Meeting:
    """Where a kernel and a tensor share an index.

    Attributes:
        tensor_axes: Axes of the tensor, in the order of `kernel_axes`; fewer where one axis of the tensor numbers the
            pairs of two axes of the kernel (a depthwise kernel's channel and multiplier).
        kernel_axes: Axes of the kernel.
        groups: Integer >= 1. Above 1 the tensor has that many times the kernel's features, and each group of filters
            reads its own part.
    """

    tensor_axes: tuple[int, ...]
    kernel_axes: tuple[int, ...]
    groups: int = 1

    def reduce(self, tensor: Any) -> Any:
        """Sum over all other axes: float32, shape = sizes of `tensor_axes`."""
        rank = len(tensor.shape)
        kept = [axis % rank for axis in self.tensor_axes]
        others = [axis for axis in range(rank) if axis not in kept]
        turned = ops.transpose(ops.cast(tensor, "float32"), [*kept, *others])
        return ops.sum(turned, axis=tuple(range(len(kept), rank)))

    def spread(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Gives each weight the value of its feature: shape `shape`."""
        if self.groups > 1:
            each = np.repeat(values.reshape(self.groups, -1), shape[-1] // self.groups, axis=0)
            return np.broadcast_to(each.T, tuple(shape)).copy()
        return self.share(values, shape) * (np.prod(shape) / values.size)

    def share(self, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """Gives each weight an equal share of the value of its channel: shape `shape`."""
        return per_weight(values, self.kernel_axes, shape)


@dataclass(frozen=True)
class Meetings:
    """What a kernel reads and makes; `None` where that is inside a loop or no tensor at all."""

    reads: Meeting | None
    makes: Meeting | None


def meetings(view: KernelView) -> Meetings | None:
    """How a kernel meets the tensors of its layer; `None` for a layer of a kind without a rule."""
    if hasattr(view.layer, "tie_weights"):  # ReversibleEmbedding: one layer that is two
        return None
    for kinds, rule in _RULES:
        if isinstance(view.layer, kinds):
            return rule(view.layer, view)
    return None


def _dense(layer: Any, view: KernelView) -> Meetings:
    return Meetings(Meeting((-1,), (-2,)), Meeting((-1,), (-1,)))


def _channels(layer: Any) -> tuple[int]:
    return (-1,) if layer.data_format == "channels_last" else (1,)


def _conv(layer: Any, view: KernelView) -> Meetings:
    axis = _channels(layer)
    return Meetings(Meeting(axis, (-2,), layer.groups), Meeting(axis, (-1,)))


def _transposed(layer: Any, view: KernelView) -> Meetings:
    return Meetings(Meeting(_channels(layer), (-1,)), Meeting(_channels(layer), (-2,)))


def _depthwise(layer: Any, view: KernelView) -> Meetings:
    return Meetings(Meeting(_channels(layer), (-2,)), Meeting(_channels(layer), (-2, -1)))


def _separable(layer: Any, view: KernelView) -> Meetings:
    if view.variable is layer.depthwise_kernel:
        return _depthwise(layer, view)
    return Meetings(Meeting(_channels(layer), (-2,)), Meeting(_channels(layer), (-1,)))


def _embedding(layer: Any, view: KernelView) -> Meetings:
    return Meetings(Meeting((-1,), (-2,)), Meeting((-1,), (-1,)))  # reads one-hot vectors


def _cell(layer: Any, view: KernelView) -> Meetings:
    """A cell's columns are gates, no channels of an output; its recurrent kernel reads what only the loop knows."""
    return Meetings(Meeting((-1,), (-2,)) if view.variable is layer.kernel else None, None)


def _einsum(layer: Any, view: KernelView) -> Meetings:
    operands, result = layer.equation.replace(" ", "").split("->")
    source, kernel = operands.split(",")
    return Meetings(_shared(source, kernel), _shared(result, kernel))


def _shared(tensor: str, kernel: str) -> Meeting | None:
    places = _places(tensor)
    letters = [letter for letter in kernel if letter in places]
    if not letters:
        return None
    return Meeting(
        tuple(places[letter] for letter in letters), tuple(kernel.index(letter) - len(kernel) for letter in letters)
    )


def _places(labels: str) -> dict[str, int]:
    """Axis of each letter; counted from the end after an ellipsis."""
    before, dots, after = labels.partition("...")
    places = {letter: axis for axis, letter in enumerate(before)}
    return {**places, **{letter: axis - len(after) for axis, letter in enumerate(after)}} if dots else places


_RULES: tuple[tuple[Any, Callable[[Any, KernelView], Meetings]], ...] = (
    (layers.Dense, _dense),
    (layers.EinsumDense, _einsum),
    (layers.Embedding, _embedding),
    ((layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose), _transposed),
    ((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _depthwise),
    ((layers.SeparableConv1D, layers.SeparableConv2D), _separable),
    ((layers.Conv1D, layers.Conv2D, layers.Conv3D), _conv),
    ((layers.SimpleRNNCell, layers.LSTMCell, layers.GRUCell), _cell),
)


def one_hot_counts(layer: keras.layers.Embedding, tokens: Any) -> Any:
    """How often each row of an embedding is read: the sum of the squared one-hot vectors, shape (input_dim,)."""
    flat = ops.cast(ops.reshape(tokens, (-1,)), "int32")
    return ops.segment_sum(ops.ones_like(flat, "float32"), flat, num_segments=layer.input_dim)
