"""The number a model is judged by, and what it was measured on."""

import hashlib
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kdopt.pruning.robustness import Robustness, robustness

Measure = Callable[[keras.Model], Any]


def metric_of(metric: str | Measure, data: Any) -> Measure:
    """A function model -> float from a function, or from the name of a compiled metric and the data to measure on.

    Raises: TypeError, ValueError for a name without data, data that can be read only once, data nobody uses; the
        function, for a model without this metric or one where lower is better.
    """
    if callable(metric):
        if data is not None:
            raise ValueError("`metric` is a function of the model alone, so `data` would not be used: leave it out.")
        return metric
    if not isinstance(metric, str):
        raise TypeError(f"`metric` must be the name of a compiled metric or a function model -> float; got {metric!r}.")
    if data is None or hasattr(data, "__next__"):
        what = "none was given" if data is None else f"a {type(data).__name__} can be read only once"
        raise ValueError(f"The metric {metric!r} needs data, e.g. (x_val, y_val) or a tf.data.Dataset; {what}.")
    return lambda model: _evaluated(model, metric, *(data if isinstance(data, tuple) else (data,)))


def _evaluated(model: keras.Model, metric: str, x: Any, y: Any = None, sample_weight: Any = None) -> float:
    if not model.compiled:
        raise ValueError(
            f"{model.name!r} is not compiled, or not in a way that can be copied: compile it with "
            f"metrics=[{metric!r}], or pass a function model -> float as `metric`."
        )
    logs = model.evaluate(x, y, sample_weight=sample_weight, verbose=0, return_dict=True)
    if metric not in logs:
        raise ValueError(f"`metric` must be a metric the model is compiled with: {', '.join(logs)}; got {metric!r}.")
    parts = [part for group in model.metrics for part in getattr(group, "metrics", [group])]
    falls = metric.endswith("loss") or any(p.name == metric and getattr(p, "_direction", "") == "down" for p in parts)
    if falls:
        raise ValueError(f"Of {metric!r} lower is better; pass a function model -> float that is higher where better.")
    return logs[metric]


def robustness_of(wanted: bool | Measure | None, metric: str | Measure, data: Any) -> Measure | None:
    """A function model -> mean under corruptions, or `None` where it is not wanted.

    Raises: TypeError, ValueError for `True` without a metric's name and the arrays `(x, y)`.
    """
    if wanted is None or wanted is False:
        return None
    if callable(wanted):
        return wanted
    if wanted is not True:
        raise TypeError(f"`robustness_metric` must be True or a function model -> Robustness; got {wanted!r}.")
    if not isinstance(metric, str) or not isinstance(data, tuple) or not isinstance(data[0], np.ndarray):
        raise ValueError(
            "robustness_metric=True needs the name of a metric and data=(images, labels) as arrays. Or pass a "
            "function, e.g. lambda model: robustness(accuracy_of(model), images)."
        )
    images, *rest = data
    return lambda model: robustness(lambda x: _evaluated(model, metric, x, *rest), images)


def measured(measure: Measure, model: keras.Model, what: str) -> float:
    """What `measure` gives for a model; of a `Robustness` its mean.

    Raises: ValueError for a value that is not finite.
    """
    value = measure(model)
    number = float(value.mean if isinstance(value, Robustness) else value)
    if not math.isfinite(number):
        raise ValueError(f"The metric of {what} is {number}; expected a finite number.")
    return number


def name_of(metric: Any) -> str:
    """The name of a metric or a function, for tables and files."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", type(metric).__name__)


def digest(data: Any) -> str | None:
    """A short name of the values in arrays, equal for equal values.

    Args:
        data: Array, or lists, tuples, dicts of arrays and numbers. Anything else in it (a `tf.data.Dataset`) counts as
            its kind, because reading it may not end.

    Returns: hexadecimal string; `None` for `None`.
    """
    if data is None:
        return None
    total = hashlib.sha256(str(keras.tree.map_structure(lambda _: 0, data)).encode())
    for leaf in keras.tree.flatten(data):
        if not hasattr(leaf, "__array__"):
            number = isinstance(leaf, (bool, int, float, str))
            total.update((repr(leaf) if number else type(leaf).__name__).encode())
            continue
        array = np.asarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:32]
