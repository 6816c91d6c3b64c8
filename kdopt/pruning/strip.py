"""Back to plain Keras: the wrappers for training taken off."""

import keras

from kdopt.pruning.wrapper import Prunable


def strip(model: keras.Model) -> keras.Model:
    """A copy of a model with every `Prunable`, `L0` and `SparseRegularized` replaced by the plain layer inside.

    The outputs are those of `model` at inference, to the last bit. Other layers and all weights are copied; `model`
    stays as it is. Compiled as `model` is, with a new optimizer.

    Args:
        model: Built Functional or Sequential `keras.Model`; nested ones are gone through.

    Raises: ValueError for a model that is not built; TypeError for a subclassed model, or a `Prunable` inside another
        layer, with the way out.

    Example:
    ```
    strip(model).save("plain.keras")
    ```
    """
    if not all(layer.built for layer in model._flatten_layers()):
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        _refuse_hidden(layer)
        if hasattr(layer, "to_plain"):
            plain = layer.to_plain()
            while hasattr(plain, "to_plain"):  # a wrapper in a wrapper
                plain = plain.to_plain()
            return plain
        pairs.append((layer, type(layer).from_config(layer.get_config())))
        return pairs[-1][1]

    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except (ValueError, NotImplementedError) as error:
        raise TypeError(
            f"strip needs a Functional or Sequential model; {model.name!r} is a {type(model).__name__} ({error}). "
            "Build it once more without Prunable, and give each layer what `wrapper.to_plain().get_weights()` returns."
        ) from error
    for old, new in pairs:
        new.set_weights(old.get_weights())
    return copy


def _refuse_hidden(layer: keras.layers.Layer) -> None:
    """Refuses a layer that holds a Prunable which a copy cannot reach."""
    inside = [inner for inner in layer._flatten_layers(include_self=False) if isinstance(inner, Prunable)]
    if inside:
        raise TypeError(
            f"strip cannot reach {inside[0].name!r} inside {layer.name!r} ({type(layer).__name__}). Write the model as "
            f"Prunable({type(layer).__name__}(...)), or build it once more without Prunable, and give each plain layer "
            "what `wrapper.to_plain().get_weights()` returns."
        )
