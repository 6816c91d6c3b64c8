"""How many multiply-accumulates: matrix products and convolutions, and the layers that loop in the backend.

Conventions: one sample; biases, normalization, activations, pooling, gate products and interpolation count
nothing; padding counts like data; a transposed convolution counts every input position times the whole kernel.
Shapes: kernels (*window, in_channels / groups, out_channels); the batch dimension is 1, so a product over
all dimensions of an output is its size for one sample.
"""

import math
from typing import Any

import keras
from keras import layers

from kdopt.core.macs import UnknownMacs, call_macs, macs_rule, operation_rule


def size(x: Any) -> int:
    """Number of elements of a tensor with a static shape."""
    if None in x.shape:
        raise UnknownMacs(f"a shape inside is open: {tuple(x.shape)}")
    return math.prod(x.shape)


@operation_rule("Matmul")
@operation_rule("Dot")
@operation_rule("Inner")
def _matmul(operation: Any, args: Any, output: Any) -> int:
    """(..., m, k) x (..., k, n): m * n * k."""
    inner = args[0].shape[-1:] if args[1].shape else ()
    if None in inner:
        raise UnknownMacs(f"a shape inside is open: {tuple(args[0].shape)}")
    return size(output) * math.prod(inner)


@operation_rule("Vdot")
def _vdot(operation: Any, args: Any, output: Any) -> int:
    return size(args[0])


@operation_rule("Outer")
@operation_rule("Kron")
def _outer(operation: Any, args: Any, output: Any) -> int:
    return size(output)


@operation_rule("Tensordot")
def _tensordot(operation: Any, args: Any, output: Any) -> int:
    """Sizes: a = free_a * contracted, b = contracted * free_b, output = free_a * free_b."""
    return math.isqrt(size(args[0]) * size(args[1]) * size(output))


@operation_rule("Einsum")
def _einsum(operation: Any, args: Any, output: Any) -> int:
    """The product of all index sizes of two operands; a single one is only summed or transposed."""
    if len(args) == 1:
        return 0
    if len(args) > 2:
        raise UnknownMacs(f"keras.ops.einsum of {len(args)} operands depends on the order; write it in pairs")
    sizes: dict[str, int] = {}
    for labels, x in zip(operation.subscripts.split("->")[0].replace(" ", "").split(","), args, strict=True):
        for label, length in _label_sizes(labels, x.shape):
            sizes[label] = max(length, sizes.get(label, 1))
    return math.prod(sizes.values())


def _label_sizes(labels: str, shape: tuple[int, ...]) -> list[tuple[str, int]]:
    """Pairs of index and length; the dimensions under `...` are named from the right."""
    before, dots, after = labels.partition("...")
    hidden = len(shape) - len(before) - len(after)
    return list(zip([*before, *(f"{dots}{i}" for i in range(hidden, 0, -1)), *after], shape, strict=True))


@operation_rule("DotProductAttention")
def _dot_product_attention(operation: Any, args: Any, output: Any) -> int:
    """Query (1, T, heads, d), key and value (1, S, heads, d): Q K^T and its product with V; masks save nothing."""
    query, key, value = args[:3]
    return size(query) * key.shape[1] + math.prod(query.shape[:3]) * value.shape[1] * value.shape[3]


@operation_rule("Conv")
def _conv(operation: Any, args: Any, output: Any) -> int:
    return size(output) * math.prod(args[1].shape[:-1])


@operation_rule("DepthwiseConv")
def _depthwise(operation: Any, args: Any, output: Any) -> int:
    return size(output) * math.prod(args[1].shape[:-2])


@operation_rule("SeparableConv")
def _separable(operation: Any, args: Any, output: Any) -> int:
    depthwise, pointwise = args[1], args[2]
    channels, filters = pointwise.shape[-2:]
    return size(output) // filters * channels * (math.prod(depthwise.shape[:-2]) + filters)


@operation_rule("ConvTranspose")
def _transposed(operation: Any, args: Any, output: Any) -> int:
    return size(args[0]) * math.prod(args[1].shape[:-1])


# Layers by their kernels rather than traced: an activation may be untraceable, and `keras.ops.conv` refuses a
# symbolic grouped kernel.
@macs_rule(layers.Dense)
def _dense(layer: Any, inputs: Any, outputs: Any) -> int:
    return size(outputs) * layer.kernel.shape[0]


@macs_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def _conv_layer(layer: Any, inputs: Any, outputs: Any) -> int:
    return _conv(None, (inputs, layer.kernel), outputs)


@macs_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def _depthwise_layer(layer: Any, inputs: Any, outputs: Any) -> int:
    return _depthwise(None, (inputs, layer.kernel), outputs)


@macs_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def _separable_layer(layer: Any, inputs: Any, outputs: Any) -> int:
    return _separable(None, (inputs, layer.depthwise_kernel, layer.pointwise_kernel), outputs)


@macs_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def _transposed_layer(layer: Any, inputs: Any, outputs: Any) -> int:
    return _transposed(None, (inputs, layer.kernel), outputs)


@macs_rule(layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization, layers.RMSNormalization)
@macs_rule(layers.Normalization, layers.PReLU, layers.Embedding)
def _no_products(layer: Any, inputs: Any, outputs: Any) -> int:
    """Elementwise or a table look-up, with weights."""
    return 0


@macs_rule(layers.MelSpectrogram, layers.STFTSpectrogram)
def _transform(layer: Any, inputs: Any, outputs: Any) -> int:
    raise UnknownMacs("a Fourier transform is not a matrix product")


@macs_rule(layers.AdditiveAttention)
def _additive_attention(layer: Any, inputs: Any, outputs: Any) -> int:
    """Query (1, T, d), value (1, S, dv): the scaled sum of tanh(q + k) where learned, and scores times value."""
    query, value = inputs[:2]
    scores = query.shape[1] * value.shape[1]
    return scores * ((query.shape[2] if layer.use_scale else 0) + value.shape[2])


@macs_rule(layers.RNN, layers.LSTM, layers.GRU, layers.SimpleRNN)
@macs_rule(layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D)
def _recurrent(layer: Any, inputs: Any, outputs: Any) -> int:
    """Timesteps times one step of the cell, which can be traced."""
    x = keras.tree.flatten(inputs)[0]
    states = keras.tree.map_structure(
        lambda state: keras.KerasTensor(tuple(state.shape), x.dtype), layer.get_initial_state(batch_size=1)
    )
    step = keras.KerasTensor((1, *x.shape[2:]), x.dtype)
    return x.shape[1] * call_macs(layer.cell, step, states)


@macs_rule(layers.Bidirectional)
def _bidirectional(layer: Any, inputs: Any, outputs: Any) -> int:
    x = keras.tree.flatten(inputs)[0]
    return call_macs(layer.forward_layer, x) + call_macs(layer.backward_layer, x)


@macs_rule(layers.TimeDistributed)
def _time_distributed(layer: Any, inputs: Any, outputs: Any) -> int:
    step = keras.KerasTensor((1, *inputs.shape[2:]), inputs.dtype)
    return inputs.shape[1] * call_macs(layer.layer, step)
