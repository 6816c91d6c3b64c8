"""A second model with the same weights."""

import tempfile
from typing import Any

import keras
from keras.src.models.functional import Functional

from kdopt.core.compiling import compile_as


def copy_model(model: keras.Model, dtype: str | None = None) -> keras.Model:
    """A new model like `model`, with the same weights, compiled the same way.

    Args:
        model: Built `keras.Model`. A subclassed one needs `get_config`, as for saving, and a recorded build.
        dtype: What all layers that compute in floating point compute in instead. Defaults to `None`: as they do.

    Returns: a model that shares nothing with `model`; the state of its optimizer is new.
    Raises: ValueError for a model that Keras cannot make again from its config.
    """
    copied = remade(model) if dtype is None else _from_config(model, dtype)
    if [tuple(w.shape) for w in copied.weights] != [tuple(w.shape) for w in model.weights]:
        raise ValueError(
            f"{model.name!r} made again from its config has other weights. Way out: build a second model yourself and "
            "pass it with `set_weights(model.get_weights())`."
        )
    copied.set_weights(model.get_weights())
    for own, other in zip(model._flatten_layers(), copied._flatten_layers(), strict=False):
        if own.trainable != other.trainable:
            other.trainable = own.trainable
        copy_assets(own, other)
    settle(copied)
    compile_as(copied, model)
    return copied


def copy_assets(own: keras.layers.Layer, other: keras.layers.Layer) -> None:
    """What a layer keeps beside its weights: the vocabulary of a `StringLookup` or `TextVectorization`."""
    if hasattr(own, "save_assets") and not isinstance(own, keras.Model):
        with tempfile.TemporaryDirectory() as folder:
            own.save_assets(folder)
            other.load_assets(folder)


def settle(layer: keras.layers.Layer) -> None:
    """Computes what layers derive from weights that were assigned: the mean and variance of a `Normalization`."""
    for one in layer._flatten_layers():
        if isinstance(one, keras.layers.Normalization):
            one.finalize_state()


def _uncompiled(config: Any) -> Any:
    """A config without how the model, and those in it, are compiled."""
    if isinstance(config, dict):
        return {name: _uncompiled(value) for name, value in config.items() if name != "compile_config"}
    return [_uncompiled(value) for value in config] if isinstance(config, list) else config


def _in_dtype(config: Any, dtype: str) -> Any:
    """A config with another dtype policy for all that computes in floating point."""
    if isinstance(config, list):
        return [_in_dtype(value, dtype) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy":
        policy = keras.DTypePolicy(config["config"]["name"])
        return keras.saving.serialize_keras_object(keras.DTypePolicy(dtype)) if "float" in policy.name else config
    return {name: _in_dtype(value, dtype) for name, value in config.items()}


def remade(model: keras.Model) -> keras.Model:
    """A model like it with weights of its own, as its initializers draw them; not compiled.

    Raises: ValueError for a model that Keras cannot make again from its config.
    """
    if _lambdas(model) and type(model) in (keras.Sequential, Functional):
        return keras.models.clone_model(model, clone_function=_same_layer, recursive=True)
    if isinstance(model, keras.Sequential) or type(model) is keras.Model:
        return keras.models.clone_model(model)
    return _from_config(model)


def _same_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    """A new layer; a `Lambda` with the same function, which its config holds as bytecode without what it refers to."""
    if type(layer) is not keras.layers.Lambda:
        return type(layer).from_config(layer.get_config())
    options = {"name": layer.name, "trainable": layer.trainable, "dtype": layer.dtype_policy}
    return keras.layers.Lambda(layer.function, layer._output_shape, layer.mask, layer.arguments, **options)


def _lambdas(model: keras.Model) -> list[str]:
    return [layer.name for layer in model._flatten_layers() if type(layer) is keras.layers.Lambda]


def _from_config(model: keras.Model, dtype: str | None = None) -> keras.Model:
    try:
        classes = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
        own = {name: cls for name, cls in classes.items() if not cls.__module__.startswith("keras.")}
        config = _uncompiled(keras.saving.serialize_keras_object(model))
        config = config if dtype is None else _in_dtype(config, dtype)
        copied = keras.saving.deserialize_keras_object(config, custom_objects=own, safe_mode=False)
        if not copied.built:
            copied.build_from_config(model.get_build_config())
    except Exception as error:  # whatever a foreign `get_config` or `__init__` does
        raise ValueError(
            f"{model.name!r} ({type(model).__name__}) cannot be made again from its config ({error}). Way out: "
            "give the class `get_config` and `from_config`, as saving needs them, or build a second model yourself."
            + _about_lambdas(_lambdas(model))
        ) from error
    return copied


def _about_lambdas(names: list[str]) -> str:
    if not names:
        return ""
    return (
        f" It has {', '.join(map(repr, names))}: what the function of a Lambda refers to is not in its config. Use "
        "`keras.ops` in the graph, or a layer class of your own."
    )
