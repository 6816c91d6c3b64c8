"""How a model stands images that got worse: noise, blur, low contrast."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    low, high = _range(_checked(x), value_range)
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
    _checked(x)
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
        return _checked(x).copy()
    mean = _checked(x).mean(axis=(1, 2), keepdims=True, dtype="float64")
    return (mean + 0.7**severity * (x - mean)).astype(x.dtype)


def corruptions(seed: int = 0, value_range: tuple[float, float] | None = None) -> dict[str, Corruption]:
    """The corruptions by name, each a function (x, severity) -> array.

    Args:
        seed: Integer >= 0, of the noise. Defaults to `0`.
        value_range: (low, high) of the values. Defaults to `None`: the least and the greatest in `x`.
    """
    noise = functools.partial(gaussian_noise, seed=seed, value_range=value_range)
    return {"gaussian_noise": noise, "blur": blur, "contrast": contrast}


@dataclass(frozen=True)
class Robustness:
    """What `robustness` measured; `print` shows a table.

    Attributes:
        clean: Float, the metric on unchanged images.
        rows: (corruption, severity, value) of every measurement.
    """

    clean: float
    rows: tuple[tuple[str, float, float], ...]

    @property
    def mean(self) -> float:
        """Mean of the metric over all rows, the unchanged images left out."""
        return float(np.mean([value for _, _, value in self.rows]))

    def value(self, corruption: str, severity: float) -> float:
        """The metric under one corruption.

        Raises: KeyError with what was measured.
        """
        for name, measured, value in self.rows:
            if (name, measured) == (corruption, severity):
                return value
        known = sorted({(name, measured) for name, measured, _ in self.rows})
        raise KeyError(f"({corruption!r}, {severity}) was not measured. Measured: {known}.")

    def __str__(self) -> str:
        names = list(dict.fromkeys(name for name, _, _ in self.rows))
        severities = list(dict.fromkeys(severity for _, severity, _ in self.rows))
        width = max(map(len, ["corruption", *names]))
        head = "".join(f"{f'severity {severity:g}':>14}" for severity in severities)
        lines = [f"{'corruption':<{width}}{head}", f"{'none':<{width}}{self.clean:>14.4f}"]
        for name in names:
            cells = "".join(f"{self.value(name, severity):>14.4f}" for severity in severities)
            lines.append(f"{name:<{width}}{cells}")
        return "\n".join([*lines, f"mean over all rows but the first: {self.mean:.4f}"])


def robustness(
    metric: Callable[[np.ndarray], float],
    x: np.ndarray,
    severities: Sequence[float] = (1, 3, 5),
    corruptions: Mapping[str, Corruption] | None = None,
) -> Robustness:
    """Measures a model on images under every corruption at every severity.

    Args:
        metric: Function from images, in the order of `x`, to a float, e.g. the accuracy against labels it knows.
        x: Float array of shape (samples, height, width, channels).
        severities: Numbers > 0. Defaults to `(1, 3, 5)`.
        corruptions: Mapping from name to function (x, severity) -> array. Defaults to `None`: `corruptions()`, with
            noise and clipping by the range of `x`.

    Returns: `Robustness`.
    Raises: TypeError, ValueError for another kind of array, severities, or a metric that is no finite number.

    Example:
    ```
    def accuracy(images):
        return np.mean(model.predict(images, verbose=0).argmax(-1) == labels)

    print(robustness(accuracy, images))
    ```
    """
    chosen = _chosen(corruptions)
    _checked(x)
    if not callable(metric):
        raise TypeError(f"`metric` must be a function from images to a float; got {metric!r}.")
    strengths = [check_positive("severity", severity) for severity in severities]
    if not strengths or not chosen or len(set(strengths)) < len(strengths):
        raise ValueError(f"Expected corruptions and different severities; got {list(chosen)} and {severities!r}.")
    clean = _measured(metric, x, "unchanged images")
    rows = [
        (name, severity, _measured(metric, corrupt(x, severity), f"{name}, severity {severity:g}"))
        for name, corrupt in chosen.items()
        for severity in strengths
    ]
    return Robustness(clean, tuple(rows))


def _chosen(given: Mapping[str, Corruption] | None) -> dict[str, Corruption]:
    return corruptions() if given is None else dict(given)


def _measured(metric: Callable[[np.ndarray], Any], x: np.ndarray, what: str) -> float:
    value = float(metric(x))
    if not np.isfinite(value):
        raise ValueError(f"`metric` gave {value} on {what}; expected a finite number.")
    return value


def _along(x: np.ndarray, kernel: np.ndarray, axis: int) -> np.ndarray:
    """Correlation of `x` with a symmetric kernel along one axis, mirrored at the border."""
    radius, length = len(kernel) // 2, x.shape[axis]
    lines = np.moveaxis(x, axis, 0)
    padded = np.pad(lines, [(radius, radius)] + [(0, 0)] * (x.ndim - 1), mode="symmetric")
    result = np.zeros_like(lines)
    for start, weight in enumerate(kernel):
        result += float(weight) * padded[start : start + length]
    return np.moveaxis(result, 0, axis)


def _checked(x: Any) -> np.ndarray:
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
