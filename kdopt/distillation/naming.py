"""Layers of a model by their paths, and what names them."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any

import keras


def layers_of(model: keras.Model, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """(path, layer) of all layers of a model and of those nested in it, names from the model down joined by `/`."""
    for layer in model._layers:
        own = f"{path}/{layer.name}" if path else layer.name
        yield own, layer
        if isinstance(layer, keras.Model):
            yield from layers_of(layer, own)


def is_named(key: str, path: str) -> bool:
    """Whether a name means the layer at a path: it is the path, or the name of the layer or of a model around it."""
    return path == key or path.startswith(f"{key}/") or key in path.split("/")


def paths_of(model: keras.Model, chosen: Any, argument: str) -> list[str]:
    """Paths of the layers that are chosen.

    Args:
        model: The model.
        chosen: List of layers, names, paths, classes and regular expressions (`re.compile`, searched for in the path).
        argument: Its name, for messages.

    Raises: TypeError for what is no such list; ValueError for an item that no layer fits, with those there are.
    """
    if isinstance(chosen, (str, type, keras.layers.Layer, re.Pattern)) or not isinstance(chosen, Sequence):
        raise TypeError(f"`{argument}` must be a list, e.g. ['conv1']; got {chosen!r}.")
    layers = list(layers_of(model))
    found: list[str] = []
    for item in chosen:
        hits = [path for path, layer in layers if _fits(item, path, layer)]
        if not hits:
            raise ValueError(unknown(item, [path for path, _ in layers], argument))
        found.extend(hits)
    return found


def unknown(item: Any, paths: Sequence[str], argument: str) -> str:
    """What to say of a name that no layer has."""
    names = list(dict.fromkeys(name for path in paths for name in (path, path.split("/")[-1])))
    close = get_close_matches(item, names, n=1) if isinstance(item, str) else []
    hint = f" Did you mean {close[0]!r}?" if close else f" Its layers: {', '.join(paths[:20])}."
    return f"{item!r} in `{argument}` fits no layer of the model.{hint}"


def _fits(item: Any, path: str, layer: keras.layers.Layer) -> bool:
    if isinstance(item, str):
        return is_named(item, path)
    if isinstance(item, re.Pattern):
        return item.search(path) is not None
    inner = [layer] if isinstance(layer, keras.Model) else layer._flatten_layers()
    if isinstance(item, type):
        return any(isinstance(one, item) for one in inner)
    return any(one is item for one in inner)
