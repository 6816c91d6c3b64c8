"""Channel rules of what acts on every channel alone, pools over space, or moves values around."""

import math
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.activations import is_elementwise, why
from kdopt.graph.channels.handlers_weights import channel_axis, freeze_others
from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, channel_rule, resize_rule

L = keras.layers


@channel_rule(
    *(L.Dropout, L.SpatialDropout1D, L.SpatialDropout2D, L.SpatialDropout3D, L.GaussianDropout, L.GaussianNoise),
    *(L.AlphaDropout, L.ActivityRegularization, L.ReLU, L.LeakyReLU, L.ELU, L.Identity),
)
def elementwise(labels: Labels, layer: Any, call: Call) -> Flow:
    return call.x


@channel_rule(L.Activation)
def activation(labels: Labels, layer: Any, call: Call) -> Flow:
    if not is_elementwise(layer.activation):
        name = getattr(layer.activation, "__name__", repr(layer.activation))
        call.freeze(labels, f"the activation {name} of {layer.name!r} {why(name)}")
    return call.x.given(call.shape, dict(enumerate(call.x.labels)))


@channel_rule(L.Softmax)
def softmax(labels: Labels, layer: Any, call: Call) -> Flow:
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    for axis in axes:
        if not labels.cut_normalized_axes:
            labels.freeze(call.x.labels[axis], f"{layer.name!r} mixes channels")
    return call.x


@channel_rule(L.Rescaling)
def rescaling(labels: Labels, layer: Any, call: Call) -> Flow:
    if np.ndim(layer.scale) or np.ndim(layer.offset):
        call.freeze(labels, f"{layer.name!r} has a number of its own for each channel")
    return call.x


@channel_rule(
    *(L.MaxPooling1D, L.MaxPooling2D, L.MaxPooling3D, L.AveragePooling1D, L.AveragePooling2D, L.AveragePooling3D),
    *(L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D, L.Cropping1D, L.Cropping2D, L.Cropping3D),
    *(L.UpSampling1D, L.UpSampling2D, L.UpSampling3D, L.Resizing, L.CenterCrop),
)
def spatial(labels: Labels, layer: Any, call: Call) -> Flow:
    axis = channel_axis(layer)
    if isinstance(layer, (L.Resizing, L.CenterCrop)) and len(call.x.shape) < 4:
        call.freeze(labels, f"{layer.name!r} takes the batch for an axis of an image")
        return Flow.plain(call.shape)
    freeze_others(labels, layer, call.x, axis)
    return call.x.given(call.shape, {axis: call.x.labels[axis]})


@channel_rule(
    *(L.GlobalAveragePooling1D, L.GlobalAveragePooling2D, L.GlobalAveragePooling3D),
    *(L.GlobalMaxPooling1D, L.GlobalMaxPooling2D, L.GlobalMaxPooling3D),
)
def global_pooling(labels: Labels, layer: Any, call: Call) -> Flow:
    axis = channel_axis(layer)
    freeze_others(labels, layer, call.x, axis)
    return call.x.given(call.shape, {axis if len(call.shape) > 2 else 1: call.x.labels[axis]})


@channel_rule(L.Permute)
def permute(labels: Labels, layer: Any, call: Call) -> Flow:
    return transposed(call.x, (0, *layer.dims))


@channel_rule(L.RepeatVector)
def repeat_vector(labels: Labels, layer: Any, call: Call) -> Flow:
    return call.x.given(call.shape, {2: call.x.labels[1]})


@channel_rule(L.Flatten)
def flatten(labels: Labels, layer: Any, call: Call) -> Flow:
    if getattr(layer, "data_format", None) == "channels_first" and len(call.x.shape) > 2:
        order = (0, *range(2, len(call.x.shape)), 1)
        return reshaped(labels, layer, transposed(call.x, order), call.shape)
    return reshaped(labels, layer, call.x, call.shape)


@channel_rule(L.Reshape)
def reshape(labels: Labels, layer: Any, call: Call) -> Flow:
    return reshaped(labels, layer, call.x, call.shape)


@resize_rule(L.Reshape)
def _reshape(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    target = [old if old == -1 else new for old, new in zip(layer.target_shape, outputs[0][1:], strict=True)]
    return {"target_shape": target}


def transposed(flow: Flow, order: tuple[int, ...]) -> Flow:
    """The axes of a tensor in another order."""
    return Flow(tuple(flow.shape[axis] for axis in order), tuple(flow.labels[axis] for axis in order))


def reshaped(labels: Labels, layer: Any, flow: Flow, shape: tuple[int | None, ...]) -> Flow:
    """A tensor in another shape.

    Along each axis with identities the place numbers are reshaped as the tensor is; they end on the last axis along
    which they then vary, and what falls together in one place there is united, so that what goes leaves a whole box.
    """
    placed: dict[int, np.ndarray] = {}
    before, after = [1, *flow.shape[1:]], [1, *shape[1:]]
    opened, reopened = ([axis for axis, size in enumerate(sizes) if size is None] or [0] for sizes in (before, after))
    known = len(opened) == len(reopened) == 1 and bool(opened[0]) == bool(reopened[0])
    sizes, wanted = _balanced(before, after, opened[0], reopened[0])
    for axis in flow.labeled():
        label = flow.labels[axis]
        assert label is not None
        if axis == 0 or not known:
            labels.freeze(label, f"{layer.name!r} changes a shape with open sizes")
            continue
        numbers = np.broadcast_to(_along(np.arange(label.size), axis, len(sizes)), sizes).reshape(wanted)
        end = _last_varying(numbers)
        if end in placed or end == reopened[0]:
            labels.freeze(label, f"{layer.name!r} lays two kinds of channels, or channels and space, along one axis")
            continue
        inside = axis > opened[0] and end > reopened[0]
        alone = flow.shape[0] == shape[0] and math.prod(sizes[: opened[0]]) == math.prod(wanted[: reopened[0]])
        if not inside and not (alone and axis < opened[0] and end < reopened[0]):
            labels.freeze(label, f"{layer.name!r} moves it over an open size")
            continue
        columns = np.moveaxis(numbers, end, -1).reshape(-1, numbers.shape[end])
        made = label[columns[0]]
        labels.unite(label[columns], np.broadcast_to(made, columns.shape))
        placed[end] = made
    return flow.given(shape, dict(placed))


def _balanced(
    before: list[int | None], after: list[int | None], opened: int, reopened: int
) -> tuple[list[int], list[int]]:
    """Two shapes with the smallest open sizes, the batch's where there is no other, that hold as many values."""
    one, other = (
        [1 if axis == place else size or 1 for axis, size in enumerate(sizes)]
        for sizes, place in ((before, opened), (after, reopened))
    )
    values, wanted = math.prod(one), math.prod(other)
    one[opened], other[reopened] = wanted // math.gcd(values, wanted), values // math.gcd(values, wanted)
    return one, other


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    return values.reshape([-1 if other == axis else 1 for other in range(rank)])


def _last_varying(numbers: np.ndarray) -> int:
    for axis in reversed(range(numbers.ndim)):
        if (numbers != np.take(numbers, [0], axis=axis)).any():
            return axis
    return numbers.ndim - 1


def indexed(flow: Flow, axis: int, places: slice, shape: Any) -> Flow:
    """A tensor of which some places along one axis are taken."""
    label = flow.labels[axis]
    axis %= len(flow.shape)
    return flow.given(shape, {**dict(enumerate(flow.labels)), axis: None if label is None else label[places]})
