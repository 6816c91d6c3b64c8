"""How a model stands images that got worse: noise, blur, low contrast."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdopt.core.corruptions import Corruption, check_images, corruptions
from kdopt.core.validation import check_positive


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
    check_images(x)
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
