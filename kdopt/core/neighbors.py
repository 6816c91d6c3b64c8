"""What a kernel is connected to: the axes of its input channels, the normalization after its layer."""

from typing import Any

import keras

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_NO_SUM = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D, keras.layers.Embedding)


def input_axes(layer: keras.layers.Layer, variable: keras.Variable, channel_axis: int) -> tuple[int, ...]:
    """Axes (integers < 0) of `variable` that are summed over the layer's input channels; see `KernelView`."""
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_axes(layer.equation)
    if variable is getattr(layer, "reverse_embeddings", None):
        return (-2,)
    if isinstance(layer, _NO_SUM) or len(variable.shape) < 2:
        return ()
    if isinstance(layer, _TRANSPOSED):
        return (-1,)
    return (-2,) if channel_axis == -1 else ()  # a depthwise kernel of SeparableConv has its channels at -2


def _einsum_axes(equation: str) -> tuple[int, ...]:
    operands, result = equation.replace(" ", "").split("->")
    kernel = operands.split(",")[1]
    return tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter not in result)


def einsum_channel_axis(equation: str) -> int:
    """Axis (integer < 0) of an `EinsumDense` kernel that makes the last channels of the output."""
    operands, result = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    made = [letter for letter in result if letter in kernel and letter not in inputs]
    return kernel.index(made[-1]) - len(kernel) if made else -1


def norms_after(model: keras.Model) -> dict[int, keras.layers.BatchNormalization]:
    """Identity of a layer -> the BatchNormalization that alone reads its output, over the last axis.

    Read from the graphs of Functional and Sequential models, nested ones included; a subclassed model has none.
    """
    layers = model._flatten_layers()
    inside = {id(layer) for layer in layers}
    ends = {id(t._keras_history.operation) for graph in layers for t in getattr(graph, "outputs", None) or []}
    found = {}
    for layer in layers:
        readers = {id(r): r for r in _readers(layer) if id(r) in inside or not isinstance(r, keras.layers.Layer)}
        if len(readers) != 1 or id(layer) in ends:
            continue
        (reader,) = readers.values()
        alone = isinstance(reader, keras.layers.BatchNormalization) and len(reader._inbound_nodes) == 1
        if alone and _is_last_axis(reader):
            found[id(layer)] = reader
    return found


def _readers(layer: keras.layers.Layer) -> list[Any]:
    return [node.operation for node in layer._outbound_nodes]


def _is_last_axis(norm: keras.layers.BatchNormalization) -> bool:
    rank = getattr(norm.input_spec, "ndim", None)
    return norm.axis == -1 or (rank is not None and norm.axis == rank - 1)
