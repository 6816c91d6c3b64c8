"""Rules for convolutions and dense layers, merges, poolings, shapes."""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from keras.src.ops import image
from keras.src.ops import numpy as knp

from kdopt.quantization.native.folding import factor_and_offset, is_trained
from kdopt.quantization.native.rules import UNKNOWN, Rule, quantization_rule, register

KERNEL: dict[str, Any] = {"fuses_relu": True, "fuses_norm": True}
SAME, ROUNDED, IDENTITY = Rule("input"), Rule("input", rounds=True), Rule("input", identity=True)
FLOAT = Rule("float")


@quantization_rule(layers.Dense, layers.Conv1D, layers.Conv2D, **KERNEL)
def channels_last(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs)


@quantization_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D, **KERNEL)
def depthwise(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=(-2, -1))


@quantization_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, **KERNEL)
def transposed(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=(-2,))


@quantization_rule(layers.SeparableConv1D, layers.SeparableConv2D, inner=("depthwise",), **KERNEL)
def separable(scope: Any, layer: Any, inputs: Any) -> Any:
    """Two convolutions; the tensor between them has a range of its own."""

    def spatial(x: Any, weights: Any) -> Any:
        strides, dilation = layer.strides, layer.dilation_rate
        return ops.depthwise_conv(x, weights, strides, layer.padding, layer.data_format, dilation)

    def pointwise(x: Any, weights: Any) -> Any:
        return ops.conv(x, weights, 1, "valid", layer.data_format)

    between = spatial(inputs, ops.cast(scope.weight(layer.depthwise_kernel, axes=(-2, -1)), inputs.dtype))
    return scope.linear(layer, scope.inner("depthwise", between), kernel="pointwise_kernel", call=pointwise)


@quantization_rule(layers.BatchNormalization, fuses_relu=True)
def batch_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """One that is not folded."""
    if scope.is_float or is_trained(layer, scope.training) or layer.axis % len(inputs.shape) != len(inputs.shape) - 1:
        return layer(inputs, training=scope.training)
    return scope.scaled(inputs, lambda: factor_and_offset(layer))


@quantization_rule(layers.Rescaling, fuses_relu=True)
def rescaling(scope: Any, layer: Any, inputs: Any) -> Any:
    return _by_channel(scope, layer, inputs, lambda: (layer.scale, layer.offset))


@quantization_rule(layers.Normalization, fuses_relu=True)
def normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """What it subtracts and divides by, kept from its data."""
    if layer.invert:
        return layer(inputs)

    def values() -> tuple[Any, Any]:
        factor = 1.0 / ops.maximum(ops.sqrt(layer.variance), keras.config.epsilon())
        return factor, -layer.mean * factor

    return _by_channel(scope, layer, inputs, values)


def _by_channel(scope: Any, layer: Any, inputs: Any, values: Callable[[], tuple[Any, Any]]) -> Any:
    """A factor and an offset for each channel, or one for all; layers with more stay as they are."""
    channels = inputs.shape[-1]

    def single(value: Any) -> bool:
        shape = tuple(np.shape(value))
        return int(np.prod(shape)) in (1, channels) and shape[-1:] in ((), (1,), (channels,))

    integers = "float" not in keras.backend.standardize_dtype(inputs.dtype)
    if scope.is_float or integers or not all(map(single, scope.constant(values))):
        return layer(inputs)

    def flat() -> tuple[Any, Any]:
        factor, offset = (ops.reshape(ops.cast(value, "float32"), (-1,)) for value in values())
        return ops.broadcast_to(factor, (channels,)), ops.broadcast_to(offset, (channels,))

    return scope.scaled(inputs, flat)


def _einsum_dense(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=_made_by(layer.equation)[0])


def _made_by(equation: str) -> tuple[tuple[int, ...], bool]:
    """(axes of the kernel that are channels, whether they are the last of the output in their order)."""
    source, kernel, output = re.split(",|->", equation.replace("...", ""))
    made = "".join(letter for letter in kernel if letter in output)
    last = output.endswith(made) and not set(made) & set(source)
    return tuple(i for i, one in enumerate(kernel) if one in output), last


def _is_dense(step: Any) -> Rule:
    """A dense layer: what its kernel makes are the last axes of the output, all with a bias or none."""
    layer = step.operation
    axes, last = _made_by(layer.equation)
    sizes = tuple(layer.kernel.shape[axis] for axis in axes)
    fits = layer.bias is None or tuple(layer.bias.shape) == sizes
    return Rule(call=_einsum_dense, fuses_relu=True) if last and fits else UNKNOWN


register(layers.EinsumDense, choose=_is_dense)


@quantization_rule(layers.Average, inner=("sum",))
def average(scope: Any, layer: Any, inputs: Any) -> Any:
    if len(inputs) != 2:
        return layer(inputs)
    return scope.inner("sum", inputs[0] + inputs[1]) * 0.5


@quantization_rule(knp.Square)
def square(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite has no SQUARE in int8."""
    return x * x


def _resizing(step: Any) -> Rule:
    method = getattr(step.operation, "interpolation", "")
    cropped = getattr(step.operation, "crop_to_aspect_ratio", False) or getattr(step.operation, "antialias", False)
    return UNKNOWN if cropped else {"nearest": SAME, "bilinear": ROUNDED}.get(method, UNKNOWN)


FUSING = Rule(fuses_relu=True)
register(layers.Add, layers.Subtract, layers.Multiply, rule=FUSING)
register(knp.Add, knp.Subtract, knp.Multiply, ops.add, ops.multiply, rule=FUSING)
register(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, knp.Mean, rule=Rule())
register(layers.MaxPooling1D, layers.MaxPooling2D, rule=SAME)
register(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, knp.Max, knp.Amax, rule=SAME)
register(layers.AveragePooling1D, layers.AveragePooling2D, rule=ROUNDED)
register(layers.Embedding, rule=Rule())  # of a table with the scale of its output
register(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, rule=SAME)
register(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.Cropping1D, layers.Cropping2D, rule=SAME)
register(layers.UpSampling1D, rule=SAME)
register(layers.UpSampling2D, layers.Resizing, image.Resize, choose=_resizing)
register(knp.Matmul, knp.Dot, knp.Einsum, layers.Dot, rule=Rule())
register(layers.Maximum, layers.Minimum, knp.Maximum, knp.Minimum, rule=Rule("joined"))
register(knp.Reshape, knp.Transpose, knp.Squeeze, knp.ExpandDims, knp.GetItem, knp.Split, knp.Repeat, rule=SAME)
register(layers.Concatenate, knp.Concatenate, rule=Rule("joined"))
register(
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise),
    *(layers.Identity, layers.AlphaDropout, layers.ActivityRegularization),
    rule=IDENTITY,
)
register(
    *(layers.Conv3D, layers.Conv3DTranspose, layers.MaxPooling3D, layers.AveragePooling3D),
    rule=FLOAT,
)
