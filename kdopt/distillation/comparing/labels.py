"""Labels as people write them, as one class for each answer of a net."""

from typing import Any

import numpy as np

from kdopt.distillation.activations import SIGMOID


def labels_of(y: Any, shape: tuple[int, ...], name: str, index: int, activation: str, rows: np.ndarray) -> np.ndarray:
    """The right class of every answer, integers in the order of `log_probabilities`.

    Args:
        y: Labels of all outputs, or of the one that is compared.
        shape: Of its logits, (samples, ..., units).
        name, index: Which output that is.
        activation: `"softmax"` or `"sigmoid"`.
        rows: Bool array, which answers count.

    Raises: ValueError for labels of another shape, or that are no classes.
    """
    if isinstance(y, (dict, list)):
        keys = y if isinstance(y, dict) else range(len(y))
        found = [key for key in keys if key in (name, index)]
        if not found:
            raise ValueError(f"`data` has no labels for output {name!r}; it has them for {list(keys)}.")
        y = y[found[0]]
    sigmoid, units = activation == SIGMOID, shape[-1]
    if y.shape in (shape[:-1], (*shape[:-1], 1)) and not (sigmoid and units > 1):
        flat = y.reshape(-1)
    elif y.shape == shape:
        flat = y.reshape(-1) if sigmoid else y.argmax(axis=-1).reshape(-1)
    else:
        one = "" if sigmoid and units > 1 else f"{shape[:-1]} or "
        raise ValueError(f"The labels of output {name!r} must have the shape {one}{shape}; got {y.shape}.")
    flat = flat[rows]
    classes = 2 if sigmoid else units
    if not np.isin(flat, np.arange(classes)).all():
        raise ValueError(
            f"The labels of output {name!r} must be classes from 0 to {classes - 1}; got values from "
            f"{flat.min():g} to {flat.max():g}."
        )
    return flat.astype(int)
