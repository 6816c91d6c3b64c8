"""Which activation a model ends with: logits, softmax or sigmoid, read from its graph."""

from typing import Any

import keras

LINEAR, SOFTMAX, SIGMOID = "linear", "softmax", "sigmoid"

_BY_FUNCTION = {
    "linear": LINEAR,
    "relu": LINEAR,
    "relu6": LINEAR,
    "leaky_relu": LINEAR,
    "tanh": LINEAR,
    "log_softmax": LINEAR,  # a softmax of log-probabilities gives the probabilities back
    "softmax": SOFTMAX,
    "sigmoid": SIGMOID,
}
_BY_CLASS = {
    "Softmax": SOFTMAX,
    "Sigmoid": SIGMOID,
    "LogSoftmax": LINEAR,
    "Lambda": None,
    "HardSigmoid": None,
    "SparseSigmoid": None,
    "Sparsemax": None,
    "Normalize": None,
}
# Operations whose output is distributed as their inputs are: they move, average or select whole class vectors.
_PASS_THROUGH = frozenset(
    {"Identity", "Cast", "Average", "Maximum", "Minimum"}
    | {"Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianDropout", "GaussianNoise"}
    | {
        f"{kind}{d}D"
        for kind in ("GlobalAveragePooling", "AveragePooling", "UpSampling", "Cropping")
        for d in (1, 2, 3)
    }
)
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze"})


def output_activations(model: keras.Model) -> list[str | None] | None:
    """The last activation of each output of `model`.

    Nested models and wrappers with a `.layer` are seen through; dropout, reshapes that keep the class axis, and average
    pooling are stepped over. Any other operation of Keras gives logits, unless it has no weights and works on
    probabilities. A subclassed model (no graph) may say it itself by an attribute or method
    `output_activation`: `"linear"`, `"softmax"`, `"sigmoid"`, a list of them in the order of its outputs, or the graph
    model whose outputs it stands for (a method, then: Keras saves models it finds in attributes).

    Returns: per output, in the order of `keras.tree.flatten`, `"linear"` (logits), `"softmax"`, `"sigmoid"` or `None`
        (cannot be known: a custom layer, a Lambda); `None` alone if the model has no graph and does not say.
    """
    declared = getattr(model, "output_activation", None)
    if callable(declared):
        declared = declared()
    if isinstance(declared, keras.Model):
        return output_activations(declared)
    if declared is not None:
        return [_known(value) for value in keras.tree.flatten(declared)]
    outputs = getattr(model, "outputs", None)
    if outputs:
        return [_of_tensor(tensor) for tensor in outputs]
    if isinstance(model, keras.Sequential) and model.layers:  # not built yet: no graph, but a list of layers
        return [_of_stack(list(model.layers))]
    return None


def _known(value: Any) -> str:
    if value not in (LINEAR, SOFTMAX, SIGMOID):
        raise ValueError(f"`output_activation` must hold 'linear', 'softmax' or 'sigmoid'; got {value!r}.")
    return value


def _of_tensor(tensor: Any) -> str | None:
    operation, node_index, tensor_index = tensor._keras_history
    if isinstance(operation, keras.Model):
        nested = output_activations(operation)
        return nested[tensor_index] if nested and tensor_index < len(nested) else None
    inputs = operation._inbound_nodes[node_index].input_tensors
    if _steps_over(operation, inputs, tensor):
        found = {_of_tensor(parent) for parent in inputs}
        return found.pop() if len(found) == 1 else None
    kind = _of_operation(operation)
    if kind == LINEAR and not getattr(operation, "weights", None):
        # `a + b`, `x / 2` or a concatenation of logits are logits; of probabilities nobody knows.
        return LINEAR if all(_of_tensor(parent) == LINEAR for parent in inputs) else None
    return kind


def _of_stack(layers: list[Any]) -> str | None:
    for layer in reversed(layers):
        if isinstance(layer, keras.Model):
            nested = output_activations(layer)
            return nested[0] if nested else None
        if type(layer).__name__ not in _PASS_THROUGH | _RESHAPES and not _is_linear_activation(layer):
            return _of_operation(layer)
    return None


def _steps_over(operation: Any, inputs: list[Any], output: Any) -> bool:
    name = type(operation).__name__
    if not inputs:
        return False
    if name in _RESHAPES:
        return inputs[0].shape[-1] == output.shape[-1]
    return name in _PASS_THROUGH or _is_linear_activation(operation)


def _is_linear_activation(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Activation) and operation.activation is keras.activations.linear


def _of_operation(operation: Any) -> str | None:
    """Activation of one layer or operation, whatever came before it."""
    name = type(operation).__name__
    if name in _BY_CLASS:
        return _BY_CLASS[name] if getattr(operation, "axis", -1) in (-1, (-1,), [-1]) else None
    activation = getattr(operation, "activation", None)
    if isinstance(activation, keras.layers.Layer):
        return _of_operation(activation)
    if activation is not None:
        return _BY_FUNCTION.get(getattr(activation, "__name__", ""))
    if isinstance(inner := getattr(operation, "layer", None), keras.layers.Layer):
        return _of_operation(inner)
    return LINEAR if type(operation).__module__.startswith("keras.") else None
