"""Data that gets worse, for any kind of net: noise on all that is continuous, and what happens to images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np

from kdopt.core.corruptions import blur, brightness, contrast
from kdopt.core.validation import check_one_of

Corrupt = Callable[[np.ndarray, float], np.ndarray]
OF_IMAGES: dict[str, Corrupt] = {"blur": blur, "contrast": contrast, "brightness": brightness}
NAMES = ("noise", *OF_IMAGES)


def noise(x: np.ndarray, severity: float, *, seed: int = 0) -> np.ndarray:
    """Adds white noise of a share of the data's own standard deviation.

        y = x + 0.1 * severity * std(x) * n,   n ~ N(0, 1) for each value; images clipped to the range of x

    The same `seed` gives the same n at every severity.

    Args:
        x: Float array (samples, ...).
        severity: Float >= 0.
        seed: Integer >= 0. Defaults to `0`.
    """
    drawn = np.random.default_rng(seed).standard_normal(x.shape, dtype="float32")
    worse = x + (0.1 * severity * x.std(dtype="float64")) * drawn
    return (np.clip(worse, x.min(), x.max()) if is_image(x) else worse).astype(x.dtype)


def is_image(x: np.ndarray) -> bool:
    """Whether an array has the shape (samples, height, width, channels) and values that are floats or bytes."""
    return x.ndim == 4 and (x.dtype.kind == "f" or x.dtype == np.uint8)


def corruptions_for(wanted: Any, x: Any, seed: int) -> dict[str, Callable[[Any, float], Any]]:
    """Corruptions of some data by name, each a function (data, severity) -> data.

    Args:
        wanted: `"auto"`: those of `NAMES` that fit; a list of names; a mapping from names to functions
            (array, severity) -> array, which get every array that is an image or a float; `None`: none.
        x: Array, or structure of arrays.
        seed: Integer >= 0, of the noise.

    Raises: ValueError, TypeError for what is unknown or fits nothing in `x`.
    """
    leaves = keras.tree.flatten(x)
    kinds: dict[str, Corrupt] = {"noise": partial(noise, seed=seed), **OF_IMAGES}
    fits = {name: is_image if name in OF_IMAGES else _is_continuous for name in NAMES}
    if wanted is None or (wanted == "auto" and isinstance(wanted, str)):
        names = [] if wanted is None else [name for name in NAMES if any(map(fits[name], leaves))]
        return {name: partial(_applied, kinds[name], fits[name]) for name in names}
    if isinstance(wanted, str) or not isinstance(wanted, (Mapping, Sequence)):
        raise TypeError(f'`corruptions` must be "auto", a list of names, a mapping or None; got {wanted!r}.')
    found: dict[str, Callable[[Any, float], Any]] = {}
    for name in wanted:
        fit = _is_continuous if isinstance(wanted, Mapping) else fits[check_one_of("corruptions", name, NAMES)]
        if not any(map(fit, leaves)):
            shapes = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in leaves)
            need = "images (samples, height, width, channels)" if fit is is_image else "floats, or images of bytes"
            raise ValueError(f"The corruption {name!r} needs {need}; the data is {shapes}. Leave it out.")
        found[name] = partial(_applied, wanted[name] if isinstance(wanted, Mapping) else kinds[name], fit)
    return found


def _is_continuous(x: np.ndarray) -> bool:
    return x.dtype.kind == "f" or is_image(x)


def _applied(function: Corrupt, fits: Callable[[np.ndarray], bool], x: Any, severity: float) -> Any:
    return keras.tree.map_structure(lambda leaf: _worse(function, leaf, severity) if fits(leaf) else leaf, x)


def _worse(function: Corrupt, x: np.ndarray, severity: float) -> np.ndarray:
    floats = x.dtype.kind == "f"
    worse = np.asarray(function(x.copy() if floats else x.astype("float32"), severity))  # a copy: it may work in place
    if worse.shape != x.shape:
        raise ValueError(f"A corruption returns an array of the shape it gets, {x.shape}; it returned {worse.shape}.")
    return worse if floats else np.clip(np.rint(worse), 0, 255).astype(x.dtype)
