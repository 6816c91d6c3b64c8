"""What a kernel is connected to: the axes of its input channels, the normalization after its layer."""

from typing import Any

import keras

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)
_NO_SUM = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D, keras.layers.Embedding)


def input_axes(layer: keras.layers.Layer, variable: keras.Variable, channel_axis: int) -> tuple[int, ...]:
    """Axes (integers < 0) of `variable` that are summed over the layer's input channels; see `KernelView`."""
    if isinstance(layer, keras.layers.EinsumDense):
        return _einsum_axes(layer.equation)
    if isinstance(layer, _NO_SUM) or len(variable.shape) < 2:
        return ()
    if isinstance(layer, _TRANSPOSED):
        return (-1,)
    return (-2,) if channel_axis == -1 else ()  # a depthwise kernel of SeparableConv has its channels at -2


def _einsum_axes(equation: str) -> tuple[int, ...]:
    operands, result = equation.split("->")
    kernel = operands.split(",")[1]
    return tuple(i - len(kernel) for i, letter in enumerate(kernel) if letter not in result)


def norms_after(model: keras.Model) -> dict[int, keras.layers.BatchNormalization]:
    """Identity of a layer -> the BatchNormalization that alone reads its output, over the last axis.

    Read from the graphs of Functional and Sequential models, nested ones included; a subclassed model has none.
    """
    layers = model._flatten_layers()
    inside = {id(layer) for layer in layers}
    found = {}
    for layer in layers:
        readers = {id(r): r for r in _readers(layer) if id(r) in inside or not isinstance(r, keras.layers.Layer)}
        if len(readers) != 1:
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
