"""Rules for convolutions and dense layers, merges, poolings, shapes."""

import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
from keras import layers, ops
from keras.src.applications.convnext import LayerScale
from keras.src.ops import image, nn
from keras.src.ops import numpy as knp

from kdopt.quantization.native.folding import factor_and_offset, is_trained
from kdopt.quantization.native.rules import FLOAT, UNKNOWN, Rule, quantization_rule, refused, register
from kdopt.quantization.native.steps import Scaled

KERNEL: dict[str, Any] = {"fuses_relu": True, "fuses_norm": True}
SAME, ROUNDED, IDENTITY = Rule("input"), Rule("input", rounds=True), Rule("input", identity=True)


@quantization_rule(layers.Dense, **KERNEL)
def dense(scope: Any, layer: Any, inputs: Any) -> Any:
    if len(inputs.shape) < 5:
        return scope.linear(layer, inputs)
    # The converter takes the bias of such a dense layer for a sum of its own.
    rows = scope.linear(layer, ops.reshape(inputs, (-1, inputs.shape[-1])))
    return ops.reshape(rows, (-1, *inputs.shape[1:-1], rows.shape[-1]))


@quantization_rule(layers.Conv1D, layers.Conv2D, **KERNEL)
def convolution(scope: Any, layer: Any, inputs: Any) -> Any:
    dilated = scope.exporting and max(layer.dilation_rate) > 1
    return scope.linear(layer, inputs, call=partial(_dilated, layer) if dilated else None)


def _dilated(layer: Any, x: Any, weights: Any) -> Any:
    """A convolution with holes as one operation. TensorFlow's own way cuts the input into batches and joins them again,
    which the converter makes one operation of only where nothing else reads the input."""
    import tensorflow as tf

    padding, series = layer.padding, len(x.shape) == 3
    if padding == "causal":
        x, padding = ops.pad(x, [[0, 0], [layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0], [0, 0]]), "valid"
    if series:
        x, weights = ops.expand_dims(x, 1), ops.expand_dims(weights, 0)
    before = (1,) * (1 + series)
    strides, dilation = ((*before, *sizes, 1) for sizes in (layer.strides, layer.dilation_rate))
    y = tf.nn.conv2d(x, weights, strides, padding.upper(), dilations=dilation)
    return ops.squeeze(y, 1) if series else y


@quantization_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D, **KERNEL)
def depthwise(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=(-2, -1))


def _transposed(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=(-2,))


def _is_dense_transposed(step: Any) -> Rule:
    plain = all(rate == 1 for rate in step.operation.dilation_rate)
    return Rule(call=_transposed, **KERNEL) if plain else refused("TFLite has no transposed convolution with dilation")


register(layers.Conv1DTranspose, layers.Conv2DTranspose, choose=_is_dense_transposed)


@quantization_rule(layers.SeparableConv1D, layers.SeparableConv2D, inner=("depthwise",), **KERNEL)
def separable(scope: Any, layer: Any, inputs: Any) -> Any:
    """Two convolutions; the tensor between them has a range of its own."""

    def spatial(x: Any, weights: Any) -> Any:
        strides, dilation = layer.strides, layer.dilation_rate
        return ops.depthwise_conv(x, weights, strides, layer.padding, layer.data_format, dilation)

    def pointwise(x: Any, weights: Any) -> Any:
        return ops.conv(x, weights, 1, "valid", layer.data_format)

    first = SimpleNamespace(kernel=layer.depthwise_kernel, bias=None, compute_dtype=layer.compute_dtype)
    between = scope.without_norm().linear(first, inputs, axes=(-2, -1), call=spatial)
    return scope.linear(layer, scope.inner("depthwise", between), kernel="pointwise_kernel", call=pointwise)


@quantization_rule(layers.BatchNormalization, fuses_relu=True)
def batch_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """One that is not folded; channels on another axis than the last are brought there."""
    last = layer.axis % len(inputs.shape) == len(inputs.shape) - 1
    if scope.is_float or is_trained(layer, scope.training):
        return scope.normalized(layer, inputs) if last else layer(inputs, training=scope.training)
    if layer.axis % len(inputs.shape) == len(inputs.shape) - 1:
        return scope.scaled(inputs, lambda: factor_and_offset(layer))
    moved = scope.scaled(
        scope.as_rounded(ops.moveaxis(inputs, layer.axis, -1), inputs), lambda: factor_and_offset(layer)
    )
    return ops.moveaxis(moved, -1, layer.axis)


def _rescaled(layer: Any) -> tuple[Any, Any]:
    """Factor and offset."""
    if isinstance(layer, layers.Rescaling):
        return layer.scale, layer.offset
    deviation = ops.maximum(ops.sqrt(layer.variance), keras.config.epsilon())
    return (deviation, layer.mean) if layer.invert else (1.0 / deviation, -layer.mean / deviation)


@quantization_rule(LayerScale)
def layer_scale(scope: Any, layer: Any, inputs: Any) -> Any:
    """What has no range comes from a kernel, which it becomes a part of."""
    if scope.step_of(inputs) is None:
        return layer(inputs)
    return scope.scaled(inputs, lambda: (ops.cast(layer.gamma, "float32"), ops.zeros_like(layer.gamma)))


@quantization_rule(Scaled)
def scaled(scope: Any, operation: Any, inputs: Any) -> Any:
    """As `layer_scale`, with one factor for all channels."""
    if scope.step_of(inputs) is None:
        return operation(inputs)
    factor = np.full(inputs.shape[-1], operation.factor, "float32")
    return scope.scaled(inputs, lambda: (ops.convert_to_tensor(factor), ops.zeros_like(factor)))


def _by_channel(scope: Any, layer: Any, inputs: Any) -> Any:
    """A factor and an offset for each channel, or one for all."""
    integers = "float" not in keras.backend.standardize_dtype(inputs.dtype)
    if scope.is_float or integers:
        return layer(inputs)
    channels = inputs.shape[-1]

    def flat() -> tuple[Any, Any]:
        factor, offset = (ops.reshape(ops.cast(value, "float32"), (-1,)) for value in _rescaled(layer))
        return ops.broadcast_to(factor, (channels,)), ops.broadcast_to(offset, (channels,))

    return scope.scaled(inputs, flat)


def _rescales(step: Any) -> Rule:
    """A layer with values for other axes than the last has no rule."""

    def single(value: Any) -> bool:
        return all(size == 1 for size in np.shape(value)[:-1])

    layer = step.operation
    values = (layer.scale, layer.offset) if isinstance(layer, layers.Rescaling) else (layer.mean, layer.variance)
    return Rule(call=_by_channel, fuses_relu=True) if all(map(single, values)) else UNKNOWN


register(layers.Rescaling, layers.Normalization, choose=_rescales)


def _einsum_dense(scope: Any, layer: Any, inputs: Any) -> Any:
    return scope.linear(layer, inputs, axes=_made_by(layer.equation)[0])


def _made_by(equation: str) -> tuple[tuple[int, ...], bool]:
    """(axes of the kernel that are channels, whether they are the last of the output in their order)."""
    source, kernel, output = re.split(",|->", equation.replace("...", ""))
    made = "".join(letter for letter in kernel if letter in output)
    last = output.endswith(made) and not set(made) & set(source)
    return tuple(i for i, one in enumerate(kernel) if one in output), last


def _is_dense(step: Any) -> Rule:
    """A dense layer: what its kernel makes are the last axes of the output, all with a bias or none.

    The converter refuses the bias of another axis.
    """
    layer = step.operation
    axes, last = _made_by(layer.equation)
    sizes = tuple(layer.kernel.shape[axis] for axis in axes)
    fits = layer.bias is None or tuple(layer.bias.shape) == sizes
    if last and fits:
        return Rule(call=_einsum_dense, fuses_relu=True)
    inside = layer.bias is not None and layer.bias_axes != layer.equation[-len(layer.bias_axes) :]
    return refused("the converter refuses a bias along another axis than the last ones") if inside else UNKNOWN


register(layers.EinsumDense, choose=_is_dense)


def _average(scope: Any, layer: Any, inputs: Any) -> Any:
    total = inputs[0]
    for number, one in enumerate(inputs[1:], 1):
        total = scope.inner(f"sum_{number}", total + one)
    return total * (1 / len(inputs))


def _averages(step: Any) -> Rule:
    return Rule(call=_average, inner=tuple(f"sum_{number}" for number in range(1, len(step.inputs))))


register(layers.Average, choose=_averages)


@quantization_rule(knp.Square)
def square(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite has no SQUARE in int8."""
    return x * x


def _resizing(step: Any) -> Rule:
    method = getattr(step.operation, "interpolation", "")
    smoothed = getattr(step.operation, "antialias", False)
    known = {"nearest": SAME, "bilinear": ROUNDED}.get(str(method))
    return refused(f"TFLite has no resizing by {method!r}, nor with antialias") if smoothed or known is None else known


def _dot(step: Any) -> Rule:
    no = refused("TFLite has no int8 kernel for its normalization; a UnitNormalization in front of it has a rule")
    return no if getattr(step.operation, "normalize", False) else Rule()


def _pads(step: Any) -> Rule:
    """With zeros, or with values of the tensor."""
    constant = [*step.args[1:], *step.kwargs.values()]
    return SAME if step.operation.mode in ("constant", "reflect", "symmetric") and not any(constant) else UNKNOWN


FUSING = Rule(fuses_relu=True)
register(layers.Add, layers.Subtract, layers.Multiply, rule=FUSING)
register(knp.Add, knp.Subtract, knp.Multiply, ops.add, ops.multiply, rule=FUSING)
register(layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D, layers.GlobalAveragePooling3D, rule=Rule())
register(knp.Mean, knp.Sum, knp.Abs, knp.Absolute, rule=Rule())
register(layers.MaxPooling1D, layers.MaxPooling2D, nn.MaxPool, rule=SAME)
register(layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.GlobalMaxPooling3D, knp.Max, knp.Amax, rule=SAME)
register(layers.AveragePooling1D, layers.AveragePooling2D, nn.AveragePool, rule=ROUNDED)
register(layers.AdaptiveMaxPooling1D, layers.AdaptiveMaxPooling2D, rule=SAME)
register(layers.AdaptiveAveragePooling1D, layers.AdaptiveAveragePooling2D, layers.CenterCrop, rule=ROUNDED)
register(layers.Embedding, rule=Rule())  # of a table with the scale of its output
register(layers.Flatten, layers.Reshape, layers.Permute, layers.RepeatVector, rule=SAME)
register(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D, rule=SAME)
register(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D, rule=SAME)
register(layers.UpSampling1D, layers.UpSampling3D, rule=SAME)
register(knp.Pad, choose=_pads)
register(layers.UpSampling2D, layers.Resizing, image.Resize, choose=_resizing)
register(knp.Matmul, knp.Dot, knp.Einsum, rule=Rule())
register(layers.Dot, choose=_dot)
register(layers.Maximum, layers.Minimum, knp.Maximum, knp.Minimum, rule=Rule("joined"))
register(knp.Reshape, knp.Transpose, knp.Squeeze, knp.ExpandDims, knp.GetItem, knp.Split, knp.Repeat, rule=SAME)
register(layers.Concatenate, knp.Concatenate, rule=Rule("joined"))
register(
    *(layers.Dropout, layers.SpatialDropout1D, layers.SpatialDropout2D, layers.SpatialDropout3D),
    *(
        layers.GaussianDropout,
        layers.GaussianNoise,
        layers.AlphaDropout,
        layers.Identity,
        layers.ActivityRegularization,
    ),
    *(layers.RandomFlip, layers.RandomRotation, layers.RandomZoom, layers.RandomTranslation, layers.RandomShear),
    *(layers.RandomBrightness, layers.RandomContrast, layers.RandomErasing, layers.RandomHue, layers.RandomSaturation),
    *(layers.RandomSharpness, layers.RandomGrayscale, layers.RandomColorJitter, layers.RandomPerspective),
    rule=IDENTITY,
)
register(
    *(layers.Conv3D, layers.Conv3DTranspose, layers.MaxPooling3D, layers.AveragePooling3D),
    *(layers.AdaptiveMaxPooling3D, layers.AdaptiveAveragePooling3D),
    rule=FLOAT,
)
