"""Images that get worse, as those of a real camera do: noise, blur, low contrast, too much light."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kdopt.core.validation import check_integer, check_positive

Corruption = Callable[[np.ndarray, float], np.ndarray]


def gaussian_noise(
    x: np.ndarray, severity: float, *, seed: int = 0, value_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Adds noise, as a sensor does in the dark.

        y = clip(x + 0.04 * severity * (high - low) * n, low, high),   n ~ N(0, 1) for each value

    The same `seed` gives the same n at every severity.

    Args:
        x: Float array of shape (samples, height, width, channels).
        severity: Float >= 0; 0 changes nothing, 1 to 5 is usual.
        seed: Integer >= 0. Defaults to `0`.
        value_range: (low, high) of the values. Defaults to `None`: the least and the greatest in `x`.

    Returns: array of the shape and dtype of `x`.
    Raises: TypeError, ValueError for another kind of array or severity.

    Example:
    ```
    gaussian_noise(np.full((1, 32, 32, 1), 0.5), 1, value_range=(0, 1)).std()      # 0.04
    ```

    Reference: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and
        perturbations", ICLR 2019 (kinds of change; severities here are formulas of our own).
    """
    check_positive("severity", severity, zero=True)
    low, high = _range(check_images(x), value_range)
    noise = np.random.default_rng(check_integer("seed", seed, minimum=0)).standard_normal(x.shape, dtype="float32")
    if severity == 0:
        return x.copy()
    return np.clip(x + 0.04 * severity * (high - low) * noise, low, high).astype(x.dtype)


def blur(x: np.ndarray, severity: float) -> np.ndarray:
    """Blurs with a Gaussian, much as a lens out of focus does.

        y[i, j] = sum_(a, b) k[a] * k[b] * x[i + a, j + b],   k[a] = exp(-a ** 2 / (2 * sigma ** 2)) / sum
        sigma = 0.4 * severity * sqrt(min(height, width) / 32) pixels,   |a|, |b| <= 4 sigma rounded up

    Beyond the border the image is mirrored. A larger image is blurred over more pixels, over a smaller part of it.

    Args:
        x: Float array of shape (samples, height, width, channels).
        severity: Float >= 0; 0 changes nothing, 1 to 5 is usual.

    Returns: array of the shape and dtype of `x`.
    Raises: TypeError, ValueError for another kind of array or severity.

    Reference: as `gaussian_noise`.
    """
    check_positive("severity", severity, zero=True)
    check_images(x)
    kernel = blur_kernel(0.4 * severity * math.sqrt(min(x.shape[1:3]) / 32))
    wide = x.astype(np.result_type(x, np.float32), copy=False)
    return _along(_along(wide, kernel, 1), kernel, 2).astype(x.dtype)


def blur_kernel(sigma: float) -> np.ndarray:
    """k[a] = exp(-a ** 2 / (2 * sigma ** 2)) / sum, for |a| <= 4 sigma, rounded up; shape (2 * radius + 1,)."""
    if sigma == 0:
        return np.ones(1)
    radius = math.ceil(4 * sigma)
    # The exponent is bounded so that a tiny sigma gives 0 and not an overflow.
    kernel = np.exp(-np.minimum(0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2, 700))
    return kernel / kernel.sum()


def contrast(x: np.ndarray, severity: float) -> np.ndarray:
    """Lowers the contrast, as fog does; the mean of every image and channel stays.

        y = mean + 0.7 ** severity * (x - mean),   mean over height and width

    Args:
        x: Float array of shape (samples, height, width, channels).
        severity: Float >= 0; 0 changes nothing, 1 to 5 is usual.

    Returns: array of the shape and dtype of `x`.
    Raises: TypeError, ValueError for another kind of array or severity.

    Reference: as `gaussian_noise`.
    """
    check_positive("severity", severity, zero=True)
    if severity == 0:
        return check_images(x).copy()
    mean = check_images(x).mean(axis=(1, 2), keepdims=True, dtype="float64")
    return (mean + 0.7**severity * (x - mean)).astype(x.dtype)


def brightness(x: np.ndarray, severity: float, *, value_range: tuple[float, float] | None = None) -> np.ndarray:
    """Makes images lighter, as too long an exposure does.

        y = min(x + 0.1 * severity * (high - low), high)

    Args:
        x: Float array of shape (samples, height, width, channels).
        severity: Float >= 0; 0 changes nothing, 1 to 5 is usual.
        value_range: (low, high) of the values. Defaults to `None`: the least and the greatest in `x`.

    Returns: array of the shape and dtype of `x`.
    Raises: TypeError, ValueError for another kind of array or severity.

    Reference: as `gaussian_noise`.
    """
    check_positive("severity", severity, zero=True)
    low, high = _range(check_images(x), value_range)
    return np.minimum(x + 0.1 * severity * (high - low), high).astype(x.dtype)


def corruptions(seed: int = 0, value_range: tuple[float, float] | None = None) -> dict[str, Corruption]:
    """The corruptions by name, each a function (x, severity) -> array.

    Args:
        seed: Integer >= 0, of the noise. Defaults to `0`.
        value_range: (low, high) of the values. Defaults to `None`: the least and the greatest in `x`.
    """
    noise = functools.partial(gaussian_noise, seed=seed, value_range=value_range)
    return {"gaussian_noise": noise, "blur": blur, "contrast": contrast}


def _along(x: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Correlation of `x` with a symmetric kernel along one axis, mirrored at the border."""
    radius, length = len(kernel) // 2, x.shape[axis]
    lines = np.moveaxis(x, axis, 0)
    padded = np.pad(lines, [(radius, radius)] + [(0, 0)] * (x.ndim - 1), mode="symmetric")
    result = np.zeros_like(lines)
    for start, weight in enumerate(kernel):
        result += float(weight) * padded[start : start + length]
    return np.moveaxis(result, 0, axis)


def check_images(x: Any) -> np.ndarray:
    """Returns `x` if it is a float array of images.

    Raises: TypeError, ValueError.
    """
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        got = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise TypeError(f"Images must be a float NumPy array, e.g. x.astype('float32') / 255; got {got}.")
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"Images must have the shape (samples, height, width, channels); got {x.shape}.")
    return x


def _range(x: np.ndarray, value_range: tuple[float, float] | None) -> tuple[float, float]:
    least, greatest = float(x.min()), float(x.max())
    if value_range is None:
        return least, greatest
    low, high = value_range
    if not low <= least <= greatest <= high or low == high:
        raise ValueError(
            f"`value_range` must be (low, high) around the values of the images, which are between {least:g} and "
            f"{greatest:g}; got {value_range!r}."
        )
    return float(low), float(high)
