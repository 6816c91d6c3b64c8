"""Back to plain Keras: the wrappers of this package taken off."""

import keras


def strip_regularizers(model: keras.Model) -> keras.Model:
    """A copy of a model with every `L0` and `SparseRegularized` replaced by the plain layer inside.

    `L0` gates are multiplied into the kernels, so the outputs are those of `model` at inference. Other layers
    and all weights are copied; `model` stays as it is. The copy is not compiled.

    Args:
        model: Built Functional or Sequential `keras.Model`; nested ones are gone through.

    Raises: TypeError for a subclassed model: use `to_plain()` of its layers.

    Example:
    ```
    small = strip_regularizers(model)
    small.save("plain.keras")
    ```
    """
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        plain = hasattr(layer, "to_plain")
        new = layer.to_plain() if plain else type(layer).from_config(layer.get_config())
        while hasattr(new, "to_plain"):  # a wrapper in a wrapper
            new = new.to_plain()
        pairs.append((new if plain else layer, new))
        return new

    try:
        copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise TypeError(
            f"strip_regularizers needs a Functional or Sequential model; {model.name!r} is a {type(model).__name__} "
            f"({error}). Replace its layers by what their to_plain() returns."
        ) from error
    left = [layer.name for layer in copy._flatten_layers() if hasattr(layer, "to_plain")]
    if left:
        raise TypeError(
            f"strip_regularizers cannot reach {', '.join(map(repr, left))} inside another layer. Replace it by what "
            "its to_plain() returns."
        )
    for old, new in pairs:
        if old is not new:
            new.set_weights(old.get_weights())
    return copy
