"""Activation functions as layers of their own."""

from functools import partial
from typing import Any

import keras

from kdopt.graph.inline import Call, Ref
from kdopt.quantization.tfmot.rewrites import elu
from kdopt.quantization.tfmot.steps import Step

# Equal in both Keras; `hard_sigmoid` and `hard_silu` are not.
_ACTIVATIONS = {
    *("linear", "softmax", "sigmoid", "tanh", "swish", "gelu"),
    *("selu", "softplus", "softsign", "exponential"),
}


def activation_steps(
    call: Call, function: Any, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> list[Step]:
    """An activation as a layer of its own.

    Args:
        call: The call it belongs to.
        function: Keras 3 activation function.
        name: Name of the step.
        inputs: One tensor number.
        outputs: One tensor number.
    """
    known = activation_name(function)
    step = partial(Step, name, call.name, inputs=inputs, outputs=outputs)
    if known in ("relu", "relu6"):
        return [step("ReLU", {"max_value": 6.0} if known == "relu6" else {})]
    if known in _ACTIVATIONS:
        return [step("Activation", {"activation": known})]
    if known == "elu":
        own = Call(name, elu(), tuple(Ref(i) for i in inputs), {}, outputs, call.shapes, call.dtypes)
        return [Step(name, call.name, "Opaque", {"call": own}, inputs, outputs, extra={"label": "elu"})]
    layer = function if isinstance(function, keras.Layer) else keras.layers.Activation(function, name=name)
    own = Call(name, layer, tuple(Ref(i) for i in inputs), {}, outputs, call.shapes, call.dtypes)
    return [Step(name, call.name, "Opaque", {"call": own}, inputs, outputs)]


def activation_name(function: Any) -> str | None:
    """Name of a Keras activation as tf_keras has it, `"custom"` for any other function."""
    if function is None:
        return None
    name = getattr(function, "__name__", None)
    if name is None or getattr(keras.activations, name, None) is not function:
        return "custom"
    return {"silu": "swish"}.get(name, name)
