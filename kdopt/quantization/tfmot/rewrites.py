"""Layers written with other ops, because TFLite's int8 kernels lack one the usual form lowers to.

LayerNormalization as Keras and tf_keras write it lowers to a negation, ELU to an ELU op; both stay float in an int8
file. The forms here compute the same.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kdopt.graph.inline import Call
from kdopt.quantization.tfmot.steps import Step, Weight, variable_keys


def rewrite(call: Call) -> Step | None:
    """The step for `call` in the other form, None if it needs none."""
    layer = call.operation
    if type(layer) is keras.layers.LayerNormalization and not getattr(layer, "rms_scaling", False):
        return _step(call, layer_normalization(layer))
    if type(layer) is keras.layers.ELU:
        return _step(call, elu(float(layer.alpha)))
    return None


def layer_normalization(layer: Any) -> Callable[[Any], Any]:
    """`(x - mean) * rsqrt(mean((x - mean)^2) + epsilon) * gamma + beta` over `layer.axis`."""
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)

    def call(x: Any) -> Any:
        shape = [x.shape[i] if i in {axis % len(x.shape) for axis in axes} else 1 for i in range(len(x.shape))]
        centered = x - ops.mean(x, axis=axes, keepdims=True)
        y = centered * ops.rsqrt(ops.mean(ops.square(centered), axis=axes, keepdims=True) + layer.epsilon)
        if layer.scale:
            y = y * ops.reshape(layer.gamma, shape)
        return y + ops.reshape(layer.beta, shape) if layer.center else y

    return call


def elu(alpha: float = 1.0) -> Callable[[Any], Any]:
    """`max(x, 0) + alpha * (exp(min(x, 0)) - 1)`."""

    def call(x: Any) -> Any:
        return ops.maximum(x, 0.0) + alpha * (ops.exp(ops.minimum(x, 0.0)) - 1.0)

    return call


def _step(call: Call, function: Callable[[Any], Any]) -> Step:
    weights = [Weight(key, variable, i) for i, (key, variable) in enumerate(variable_keys(call.name, call.operation))]
    own = Call(call.name, function, call.args, {}, call.outputs, call.shapes, call.dtypes)
    extra = {"label": type(call.operation).__name__}
    trainable = call.operation.trainable
    return Step(
        call.name,
        call.name,
        "Opaque",
        {"call": own},
        call.inputs(),
        call.outputs,
        tuple(weights),
        trainable=trainable,
        extra=extra,
    )
