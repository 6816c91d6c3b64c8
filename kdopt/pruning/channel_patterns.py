"""Patterns of whole channels and heads."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_one_of
from kdopt.pruning.coupling import CoupledChannels
from kdopt.pruning.patterns import PATTERNS, Companion, Pattern

_RECURRENT = (keras.layers.SimpleRNNCell, keras.layers.LSTMCell, keras.layers.GRUCell)


def _along(scores: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Callable]:
    """Units that are the positions along some axes, over all others."""
    others = tuple(i - scores.ndim for i in range(scores.ndim) if i - scores.ndim not in axes)
    sums = scores.sum(axis=others, keepdims=True)

    def mask(keep: np.ndarray) -> np.ndarray:
        return np.broadcast_to(keep.reshape(sums.shape), scores.shape)

    return sums.reshape(-1), np.broadcast_to(scores.size // sums.size, sums.size), mask


@PATTERNS.register("channel")
class Channel(Pattern):
    """Whole output channels: kernel and bias, and gamma and beta of the BatchNormalization that alone follows.

    Such a channel gives exact zeros, and can be removed physically. Without its BatchNormalization (one that others
    share, or after an activation, or in a subclassed model, whose calls are not recorded) the channel is constant
    instead. Where all layers are pruned, those whose channels are outputs of the model, such as classes, are left out.

    With `groups="coupled"` the layers that share a channel (at a residual connection, through depthwise layers, gates,
    recurrences) lose it together, with all biases and normalizations that it goes through: these are the channels that
    `kdopt.pruning.structural.prune_channels(model, criterion="mask")` removes without loss, also in residual nets.
    Works on models whose graph can be traced; channels that must stay keep their weights.

    Args:
        groups: `"layer"` (default): each layer's channels alone; or `"coupled"`.
    """

    def __init__(self, groups: str = "layer") -> None:
        self.groups = check_one_of("groups", groups, ("layer", "coupled"))

    @property
    def keeps_outputs(self) -> bool:  # type: ignore[override]
        return self.groups == "layer"  # coupled channels know for themselves that outputs stay

    def bound(self, model: keras.Model, views: Sequence[KernelView]) -> Pattern:
        return self if self.groups == "layer" else CoupledChannels(model, views)

    def reason(self, view: KernelView) -> str | None:
        return "recurrent: a channel is spread over the gates" if isinstance(view.layer, _RECURRENT) else None

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        return _along(scores, (view.channel_axis,))

    def companions(self, views: Sequence[KernelView]) -> list[Companion]:
        return [_of_kernel(i, view, variable) for i, view in enumerate(views) for variable in beside(view)]

    def get_config(self) -> dict[str, Any]:
        return {"groups": self.groups}


def beside(view: KernelView) -> list[keras.Variable]:
    """Bias of a kernel, gamma and beta of its BatchNormalization, as far as they are trained."""
    found = [_wide_bias(view) if view.bias is None else view.bias]
    if view.norm is not None:
        found += [getattr(view.norm, "gamma", None), getattr(view.norm, "beta", None)]
    return [variable for variable in found if variable is not None and variable.trainable]


def _of_kernel(index: int, view: KernelView, variable: keras.Variable) -> Companion:
    """A companion of one kernel: a channel with no weight left is gone."""

    def mask(masks: Sequence[np.ndarray]) -> np.ndarray:
        own, rank = masks[index], len(variable.shape)
        if rank == 1:
            axis = view.channel_axis % own.ndim
            return np.asarray(own.any(axis=tuple(i for i in range(own.ndim) if i != axis)))
        return np.asarray(own.any(axis=tuple(range(own.ndim - rank))))  # (heads, key) of (in, heads, key)

    return variable, mask


def _wide_bias(view: KernelView) -> keras.Variable | None:
    """The bias of an `EinsumDense` with several axes, if they are the last ones of the kernel: (heads, key)."""
    bias: Any = getattr(view.layer, "bias", None)
    if not isinstance(view.layer, keras.layers.EinsumDense) or bias is None or len(bias.shape) < 2:
        return None
    return bias if tuple(bias.shape) == tuple(view.variable.shape)[-len(bias.shape) :] else None


@PATTERNS.register("input_channel")
class InputChannel(Pattern):
    """Whole input channels of a kernel: the layer no longer reads them."""

    def reason(self, view: KernelView) -> str | None:
        if not view.input_axes:
            return "its kernel has no axis of input channels"
        inputs = int(np.prod([view.variable.shape[axis] for axis in view.input_axes]))
        return "it has one input channel" if inputs == 1 else None

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        return _along(scores, view.input_axes)


@PATTERNS.register("head")
class Head(Pattern):
    """Whole heads of `keras.layers.MultiHeadAttention`: query, key, value and output projection together.

    Reference: Michel, Levy & Neubig, "Are Sixteen Heads Really Better than One?", NeurIPS 2019.
    """

    def reason(self, view: KernelView) -> str | None:
        attention = view.around[-1] if view.around else None
        if not isinstance(attention, keras.layers.MultiHeadAttention):
            return "it is no projection of a MultiHeadAttention"
        return None if len(view.variable.shape) == 3 else "its attention makes several axes of outputs"

    def couple(self, model: keras.Model, views: Sequence[KernelView]) -> list[tuple[int, ...]]:
        place = {id(view.layer): i for i, view in enumerate(views)}
        coupled = []
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.MultiHeadAttention):
                parts = (layer._query_dense, layer._key_dense, layer._value_dense, layer._output_dense)
                coupled.append(tuple(place[id(part)] for part in parts if id(part) in place))
        return [members for members in coupled if members]

    def units(self, scores: np.ndarray, view: KernelView) -> tuple[np.ndarray, np.ndarray, Callable]:
        # Kernel of the output projection: (heads, key, out); of the others: (in, heads, key).
        return _along(scores, (-3,) if len(view.input_axes) == 2 else (-2,))

    def companions(self, views: Sequence[KernelView]) -> list[Companion]:
        return [
            _of_kernel(i, view, view.layer.bias)
            for i, view in enumerate(views)
            if len(view.input_axes) == 1 and getattr(view.layer, "bias", None) is not None and view.layer.bias.trainable
        ]
