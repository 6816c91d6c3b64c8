"""Rules for activations: as layers, as functions inside layers, as `keras.ops`."""

from typing import Any

from keras import activations, layers, ops
from keras.src.activations import activations as kinds
from keras.src.ops import nn
from keras.src.ops import numpy as knp

from kdopt.quantization.native.rules import FLOAT, UNKNOWN, Rule, quantization_rule, register
from kdopt.quantization.native.shapes import together

RELU = Rule(relu=True)
UNIT = Rule("fixed", limits=(0.0, 255 / 256))
SIGNED_UNIT = Rule("fixed", limits=(-1.0, 127 / 128))


def _relu(step: Any) -> Rule:
    """ReLU and ReLU6 are fused; with a slope it is a LEAKY_RELU.

    With a threshold, at which it jumps, values that the file rounds to the other side are many steps away.
    """
    layer = step.operation
    if layer.threshold:
        return UNKNOWN
    if layer.max_value is None:
        return Rule() if layer.negative_slope else RELU
    if layer.max_value == 6 and not layer.negative_slope:
        return RELU
    return Rule(call=_clipped, relu=not layer.negative_slope)


def _clipped(scope: Any, layer: Any, x: Any) -> Any:
    """The range of the output ends at the largest value: in the file integers end there, and nothing has to clip."""
    bent = ops.leaky_relu(x, layer.negative_slope) if layer.negative_slope else ops.relu(x)
    return bent if scope.exporting else ops.minimum(bent, layer.max_value)


def _softmax(step: Any) -> Rule:
    """Over one axis; over several it is another function in the file."""
    axis = getattr(step.operation, "axis", -1)
    return UNIT if isinstance(axis, int) or len(axis) == 1 else Rule("fixed", limits=UNIT.limits, call=_over_axes)


def _over_axes(scope: Any, operation: Any, x: Any) -> Any:
    """A softmax over several axes is one over a single axis, which they are brought to."""
    flat, back = together(x, operation.axis)
    return back(ops.softmax(flat, axis=-1))


register(activations.relu, activations.relu6, nn.Relu, nn.Relu6, rule=RELU)
register(layers.ReLU, kinds.ReLU, choose=_relu)
register(activations.linear, rule=Rule("input", identity=True))
register(activations.leaky_relu, layers.LeakyReLU, nn.LeakyRelu, activations.gelu, nn.Gelu, rule=Rule())
register(layers.Softmax, nn.Softmax, choose=_softmax)
register(activations.softmax, activations.sigmoid, nn.Sigmoid, rule=UNIT)
register(activations.tanh, knp.Tanh, rule=SIGNED_UNIT)
register(activations.log_softmax, nn.LogSoftmax, rule=Rule("fixed", limits=(-255 / 16, 0.0)))
register(activations.exponential, knp.Exp, activations.soft_shrink, nn.SoftShrink, rule=Rule())
register(activations.sparsemax, nn.Sparsemax, rule=FLOAT)


@quantization_rule(activations.silu, nn.Silu)
def silu(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite has a LOGISTIC, whose output has a fixed scale, and a MUL."""
    return x * scope.fixed(ops.sigmoid(x), 0.0, 255 / 256)


@quantization_rule(activations.glu, nn.Glu)
def glu(scope: Any, operation: Any, x: Any) -> Any:
    """Half of the entries times the logistic function of the others."""
    axis = getattr(operation, "axis", -1) % len(x.shape)
    size = x.shape[axis] // 2
    value, gate = (x[(*[slice(None)] * axis, slice(start, start + size))] for start in (0, size))
    return value * scope.fixed(ops.sigmoid(gate), 0.0, 255 / 256)


@quantization_rule(activations.tanh_shrink, nn.TanhShrink)
def tanh_shrink(scope: Any, operation: Any, x: Any) -> Any:
    return x - scope.fixed(ops.tanh(x), -1.0, 127 / 128)


@quantization_rule(activations.hard_silu, nn.HardSilu)
def hard_silu(scope: Any, operation: Any, x: Any) -> Any:
    """In the form that the converter makes one HARD_SWISH of."""
    return x * ops.relu6(x + 3.0) * (1 / 6)


@quantization_rule(activations.hard_sigmoid, nn.HardSigmoid, inner=("clipped",))
def hard_sigmoid(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite adds and clips, then multiplies."""
    return scope.inner("clipped", ops.relu6(x + 3.0)) * (1 / 6)


@quantization_rule(activations.sparse_sigmoid, nn.SparseSigmoid, inner=("tripled", "clipped"))
def sparse_sigmoid(scope: Any, operation: Any, x: Any) -> Any:
    """min(max((x + 1) / 2, 0), 1), a hard_sigmoid of 3 x."""
    return scope.inner("clipped", ops.relu6(scope.inner("tripled", x * 3.0) + 3.0)) * (1 / 6)


@quantization_rule(activations.hard_tanh, nn.HardTanh, inner=("clipped",))
def hard_tanh(scope: Any, operation: Any, x: Any) -> Any:
    """min(max(x + 1, 0), 2) - 1. In the file the range in between ends at 2, and integers with it."""
    above = ops.relu(x + 1.0)
    return scope.inner("clipped", above if scope.exporting else ops.minimum(above, 2.0)) - 1.0


def _prelu(scope: Any, layer: Any, inputs: Any) -> Any:
    """In the form that the converter makes one PRELU of."""
    slopes = ops.cast(-scope.weight(layer.alpha), inputs.dtype)
    return ops.relu(inputs) + slopes * ops.relu(-inputs)


def _is_built(step: Any) -> Rule:
    if getattr(step.operation, "alpha", None) is None:
        raise ValueError(
            f"{step.layer!r} has a PReLU as its activation, which Keras builds only when the model first runs, and not "
            "in a copy. Way out: PReLU as a layer of its own behind it."
        )
    return Rule(call=_prelu)


register(layers.PReLU, choose=_is_built)
