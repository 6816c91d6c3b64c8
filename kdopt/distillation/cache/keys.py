"""What tells one teacher from another: a fingerprint of its weights and config."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kdopt.core.recording import operations_of

# Where configs of Keras name layers; the names themselves depend on what the process built before.
_NAMED = ("name", "keras_history", "input_layers", "output_layers")


def fingerprint(model: keras.Model) -> str:
    """SHA-256, in hexadecimal, of a model's config and of its weights.

    Names of layers do not count: a net that is built again and loads the same weights is the same teacher. Of a
    subclassed model without a config only the class counts, beside the weights.
    """
    digest = hashlib.sha256(json.dumps(_config_of(model), sort_keys=True, default=_kind).encode())
    for variable in model.weights:
        value = ops.convert_to_numpy(variable)
        digest.update(f"{value.dtype.name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def key_of(made: dict[str, Any]) -> str:
    """Under which the answers of a teacher travel with the data: the same for every data set it was asked about."""
    named = [made[name] for name in ("teacher", "preprocessing", "from_logits", "taps")]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]


def described(function: Callable[..., Any] | None) -> str | None:
    """A function or layer in words that another run gives it, too."""
    if isinstance(function, keras.layers.Layer):
        config = json.dumps(keras.saving.serialize_keras_object(function.get_config()), sort_keys=True, default=_kind)
        return f"{type(function).__name__} {config}"
    return None if function is None else getattr(function, "__qualname__", type(function).__qualname__)


def _config_of(model: keras.Model) -> Any:
    try:
        config = keras.saving.serialize_keras_object(model.get_config())
    except (NotImplementedError, TypeError, ValueError):
        return type(model).__qualname__
    layers = [model, *model._flatten_layers(), *operations_of(model).values()]
    return [type(model).__name__, _numbered(config, {layer.name for layer in layers}, {})]


def _numbered(config: Any, names: set[str], numbers: dict[str, int], within: str = "") -> Any:
    """A config with numbers, in the order they turn up, in place of the names of layers."""
    if isinstance(config, dict):
        return {key: _numbered(value, names, numbers, key) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_numbered(value, names, numbers, within) for value in config]
    if within in _NAMED and isinstance(config, str) and config in names:
        return numbers.setdefault(config, len(numbers))
    return config


def _kind(value: Any) -> str:
    return type(value).__qualname__
