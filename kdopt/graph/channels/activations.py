"""Which activations act on every channel alone."""

from typing import Any

import keras

from kdopt.graph.channels.labels import Flow, Labels

_NAMES = (
    *(
        "linear",
        "relu",
        "relu6",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "gelu",
        "silu",
        "mish",
        "sigmoid",
        "hard_sigmoid",
    ),
    *("hard_silu", "hard_tanh", "tanh", "tanh_shrink", "softplus", "softsign", "exponential", "log_sigmoid"),
    *("hard_shrink", "soft_shrink", "squareplus", "sparse_plus", "sparse_sigmoid", "threshold"),
)
_ELEMENTWISE = {id(keras.activations.get(name)) for name in _NAMES if hasattr(keras.activations, name)}
_MIXES = {"softmax", "log_softmax", "sparsemax", "glu"}


def activated(labels: Labels, layer: Any, flow: Flow, axis: int = -1) -> Flow:
    """The output of a layer's own activation: one that mixes channels freezes them."""
    activation = getattr(layer, "activation", None)
    if activation is None or is_elementwise(activation):
        return flow
    name = getattr(activation, "__name__", repr(activation))
    for label in [flow.labels[axis]] if name in _MIXES else flow.labels:
        labels.freeze(label, f"the activation {name} of {layer.name!r} {why(name)}")
    return flow


def is_elementwise(activation: Any) -> bool:
    """Whether an activation function is known to act on every value alone."""
    if isinstance(activation, keras.layers.Layer):
        return isinstance(activation, (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)) or (
            isinstance(activation, keras.layers.Activation) and is_elementwise(activation.activation)
        )
    return id(activation) in _ELEMENTWISE


def why(name: str) -> str:
    """End of the sentence on an activation that is not elementwise."""
    return "mixes channels" if name in _MIXES else "is not known to act on every channel alone"
