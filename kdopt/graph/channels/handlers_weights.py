"""Channel rules of the layers with kernels: dense, convolutions, embeddings."""

from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.activations import activated
from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, channel_rule, resize_rule

L = keras.layers
_TRANSPOSED = (L.Conv1DTranspose, L.Conv2DTranspose, L.Conv3DTranspose)


def channel_axis(layer: Any) -> int:
    """Axis of the channels in what a layer with `data_format` reads and makes."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def kernel_of(layer: Any) -> Any:
    """The Variable of a kernel; the public attribute of some layers is computed from it."""
    return layer._kernel if hasattr(layer, "_kernel") else layer.kernel


def freeze_others(labels: Labels, layer: Any, flow: Flow, axis: int) -> None:
    """Freezes what varies along other axes than the channels, such as space, which the layer mixes."""
    for other in flow.labeled():
        if other != axis % len(flow.shape):
            labels.freeze(flow.labels[other], f"{layer.name!r} mixes places along axis {other}")


@channel_rule(L.Dense)
def dense(labels: Labels, layer: Any, call: Call) -> Flow:
    kernel = kernel_of(layer)
    labels.reads(layer, kernel, 0, call.x.at(-1))
    made = labels.makes(layer, kernel, 1)
    labels.follows(layer, layer.bias, 0, made)
    others = dict(enumerate(call.x.labels[:-1]))
    return activated(labels, layer, call.x.given(call.shape, {**others, -1: made}))


@resize_rule(L.Dense)
def _dense(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"units": size(kernel_of(layer))[1]}


@channel_rule(L.Conv1D, L.Conv2D, L.Conv3D)
def conv(labels: Labels, layer: Any, call: Call) -> Flow:
    axis, kernel = channel_axis(layer), kernel_of(layer)
    freeze_others(labels, layer, call.x, axis)
    read, groups = call.x.at(axis), layer.groups
    made = labels.makes(layer, kernel, -1)
    if groups == 1:
        labels.reads(layer, kernel, -2, read)
    elif kernel.shape[-2] == 1:  # depthwise: a group is one input channel
        _follow_inputs(labels, layer, made, read, call.x.shape[axis])
    else:
        if read is not None:
            inside = read.reshape(groups, -1)
            labels.unite(inside[1:], np.broadcast_to(inside[0], inside[1:].shape))
        labels.reads(layer, kernel, -2, None if read is None else inside[0])
        inside = made.reshape(groups, -1)  # every group stays, and all groups lose the same places
        labels.unite(inside[1:], np.broadcast_to(inside[0], inside[1:].shape))
    labels.follows(layer, layer.bias, 0, made)
    return activated(labels, layer, call.x.given(call.shape, {axis: made}), axis)


def _follow_inputs(labels: Labels, layer: Any, made: np.ndarray, read: np.ndarray | None, inputs: Any) -> None:
    """Outputs of a depthwise layer, several in a row for each input channel, stay or go with it."""
    if read is None:
        labels.freeze(made, f"{layer.name!r} works on each channel of something that has none to remove")
    else:
        labels.unite(made, np.repeat(read, made.size // inputs))


@resize_rule(L.Conv1D, L.Conv2D, L.Conv3D)
def _conv(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    kernel = kernel_of(layer)
    filters = size(kernel)[-1]
    depthwise = layer.groups > 1 and kernel.shape[-2] == 1
    return {"filters": filters, "groups": filters * layer.groups // layer.filters if depthwise else layer.groups}


@channel_rule(*_TRANSPOSED)
def conv_transpose(labels: Labels, layer: Any, call: Call) -> Flow:
    axis = channel_axis(layer)
    freeze_others(labels, layer, call.x, axis)
    labels.reads(layer, layer.kernel, -1, call.x.at(axis))
    made = labels.makes(layer, layer.kernel, -2)
    labels.follows(layer, layer.bias, 0, made)
    return activated(labels, layer, call.x.given(call.shape, {axis: made}), axis)


@resize_rule(*_TRANSPOSED)
def _conv_transpose(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"filters": size(layer.kernel)[-2]}


@channel_rule(L.DepthwiseConv1D, L.DepthwiseConv2D)
def depthwise(labels: Labels, layer: Any, call: Call) -> Flow:
    axis = channel_axis(layer)
    freeze_others(labels, layer, call.x, axis)
    made = _depthwise(labels, layer, layer.kernel, call.x.at(axis))
    labels.follows(layer, layer.bias, 0, made)
    return activated(labels, layer, call.x.given(call.shape, {axis: made}), axis)


def _depthwise(labels: Labels, layer: Any, kernel: keras.Variable, read: np.ndarray | None) -> np.ndarray | None:
    """A depthwise kernel (..., inputs, multiplier) keeps the identities of its inputs, each `multiplier` times."""
    labels.follows(layer, kernel, -2, read)
    return None if read is None else np.repeat(read, kernel.shape[-1])


@channel_rule(L.SeparableConv1D, L.SeparableConv2D)
def separable(labels: Labels, layer: Any, call: Call) -> Flow:
    axis = channel_axis(layer)
    freeze_others(labels, layer, call.x, axis)
    between = _depthwise(labels, layer, layer.depthwise_kernel, call.x.at(axis))
    labels.reads(layer, layer.pointwise_kernel, -2, between)
    made = labels.makes(layer, layer.pointwise_kernel, -1)
    labels.follows(layer, layer.bias, 0, made)
    return activated(labels, layer, call.x.given(call.shape, {axis: made}), axis)


@resize_rule(L.SeparableConv1D, L.SeparableConv2D)
def _separable(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"filters": size(layer.pointwise_kernel)[-1]}


@channel_rule(L.Embedding)
def embedding(labels: Labels, layer: Any, call: Call) -> Flow:
    call.freeze(labels, f"{layer.name!r} looks numbers up")
    return call.x.given(call.shape, {-1: labels.makes(layer, layer._embeddings, 1)})


@resize_rule(L.Embedding)
def _embedding(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"output_dim": size(layer._embeddings)[1]}


@channel_rule(L.EinsumDense)
def einsum_dense(labels: Labels, layer: Any, call: Call) -> Flow:
    """Letters of the equation: one in input and kernel is read or followed, one in kernel and output alone is made."""
    kernel = kernel_of(layer)
    inputs, weights, result = letters(layer.equation, len(call.x.shape))
    made: dict[str, np.ndarray | None] = {}
    if len(set(inputs)) < len(inputs):
        call.freeze(labels, f"{layer.name!r} takes a diagonal")
        return Flow.plain(call.shape)
    for letter in weights:
        axis = weights.index(letter)
        if letter not in inputs:
            made[letter] = labels.makes(layer, kernel, axis)
            continue
        read = call.x.labels[inputs.index(letter)]
        if letter in result:
            labels.follows(layer, kernel, axis, read)
        else:
            labels.reads(layer, kernel, axis, read)
    found = {letter: call.x.labels[inputs.index(letter)] for letter in inputs} | made
    for letter in set(inputs) - set(weights) - set(result):
        labels.freeze(found[letter], f"{layer.name!r} sums over it")
    if layer.bias is not None:
        offset = len(result) - len(layer.bias.shape)
        for axis in range(len(layer.bias.shape)):
            if layer.bias.shape[axis] == call.shape[axis + offset]:
                labels.follows(layer, layer.bias, axis, found[result[axis + offset]])
    flow = call.x.given(call.shape, {i: found[letter] for i, letter in enumerate(result)})
    return activated(labels, layer, flow)


def letters(equation: str, rank: int) -> tuple[str, str, str]:
    """(input, kernel, output) of an einsum equation, an ellipsis written out with capital letters that are not used."""
    operands, result = equation.replace(" ", "").split("->")
    inputs, weights = operands.split(",")
    if "..." in equation:
        spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
        filling = "".join(spare[: rank - len(inputs.replace("...", ""))])
        inputs, result = inputs.replace("...", filling), result.replace("...", filling)
    return inputs, weights, result


@resize_rule(L.EinsumDense)
def _einsum_dense(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    shape = outputs[0]
    before = layer.partial_output_shape
    new = shape[len(shape) - len(before) :]
    return {"output_shape": [None if old is None else now for old, now in zip(before, new, strict=True)]}
