"""Rules for activations: as layers, as functions inside layers, as `keras.ops`."""

from typing import Any

from keras import activations, layers, ops
from keras.src.ops import nn
from keras.src.ops import numpy as knp

from kdopt.quantization.native.rules import UNKNOWN, Rule, quantization_rule, register

RELU = Rule(relu=True)
UNIT = Rule("fixed", limits=(0.0, 255 / 256))
SIGNED_UNIT = Rule("fixed", limits=(-1.0, 127 / 128))


def _relu(step: Any) -> Rule:
    """ReLU and ReLU6 are fused; with a slope it is a LEAKY_RELU, otherwise several operations."""
    layer = step.operation
    if layer.threshold or layer.max_value not in (None, 6.0) or (layer.negative_slope and layer.max_value):
        return UNKNOWN
    return Rule() if layer.negative_slope else RELU


register(activations.relu, activations.relu6, nn.Relu, nn.Relu6, rule=RELU)
register(layers.ReLU, choose=_relu)
register(activations.linear, rule=Rule("input", identity=True))
register(activations.leaky_relu, layers.LeakyReLU, nn.LeakyRelu, activations.gelu, nn.Gelu, rule=Rule())
register(activations.softmax, layers.Softmax, nn.Softmax, activations.sigmoid, nn.Sigmoid, rule=UNIT)
register(activations.tanh, knp.Tanh, rule=SIGNED_UNIT)
register(activations.log_softmax, nn.LogSoftmax, rule=Rule("fixed", limits=(-255 / 16, 0.0)))
register(activations.exponential, knp.Exp, rule=Rule())


@quantization_rule(activations.silu, nn.Silu)
def silu(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite has a LOGISTIC, whose output has a fixed scale, and a MUL."""
    return x * scope.fixed(ops.sigmoid(x), 0.0, 255 / 256)


@quantization_rule(activations.hard_silu, nn.HardSilu)
def hard_silu(scope: Any, operation: Any, x: Any) -> Any:
    """In the form that the converter makes one HARD_SWISH of."""
    return x * ops.relu6(x + 3.0) * (1 / 6)


@quantization_rule(activations.hard_sigmoid, nn.HardSigmoid, inner=("clipped",))
def hard_sigmoid(scope: Any, operation: Any, x: Any) -> Any:
    """TFLite adds and clips, then multiplies."""
    return scope.inner("clipped", ops.relu6(x + 3.0)) * (1 / 6)


@quantization_rule(activations.elu, layers.ELU, nn.Elu, inner=("positive", "negative", "exp", "minus_one", "scaled"))
def elu(scope: Any, operation: Any, x: Any) -> Any:
    """The converter leaves an ELU in float; these are EXP, MUL and sums."""
    positive = scope.inner("positive", ops.relu(x))
    grown = scope.inner("exp", ops.exp(scope.inner("negative", x - positive)))
    below, alpha = scope.inner("minus_one", grown - 1.0), float(getattr(operation, "alpha", 1.0))
    return positive + (below if alpha == 1 else scope.inner("scaled", below * alpha))


@quantization_rule(layers.PReLU)
def prelu(scope: Any, layer: Any, inputs: Any) -> Any:
    """In the form that the converter makes one PRELU of."""
    slopes = ops.cast(-scope.weight(layer.alpha), inputs.dtype)
    return ops.relu(inputs) + slopes * ops.relu(-inputs)
