"""Looks at the first training data without consuming it."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import keras
import numpy as np

from kdopt.quantization.data import InputSpec

_SAMPLES = 512
_BATCHES = 8


def peek(x: Any, inputs: Sequence[InputSpec]) -> Any:
    """Up to 512 samples, or 8 batches, of what `fit` is given.

    Args:
        x: First argument of `fit`.
        inputs: The model's inputs.

    Returns: Calibration data, or None if `x` can be read only once or is of a kind unknown here.
    """
    import tensorflow as tf

    if isinstance(x, dict):
        return {key: _spread(value) for key, value in x.items() if key in {entry.name for entry in inputs}}
    if isinstance(x, (list, tuple)) and len(inputs) > 1:
        return [_spread(value) for value in x]
    if isinstance(x, (np.ndarray, tf.Tensor)):
        return _spread(x)
    if isinstance(x, tf.data.Dataset):
        return _batches(x.take(_BATCHES), inputs)
    if isinstance(x, keras.utils.PyDataset):
        return _batches((x[i] for i in range(min(_BATCHES, len(x)))), inputs)
    return None


def _spread(array: Any) -> np.ndarray:
    """Samples from all over the array: sorted classes would bias the first ones."""
    array = np.asarray(array)
    return array[:: max(1, -(-len(array) // _SAMPLES))]


def _batches(data: Any, inputs: Sequence[InputSpec]) -> Any:
    elements = [element[0] if isinstance(element, (tuple, list)) else element for element in islice(data, _BATCHES)]
    columns = [
        list(e.values()) if isinstance(e, dict) else e if isinstance(e, (tuple, list)) else [e] for e in elements
    ]
    if not elements:
        return None
    names = list(elements[0]) if isinstance(elements[0], dict) else [entry.name for entry in inputs]
    return {name: np.concatenate([np.asarray(c[i]) for c in columns]) for i, name in enumerate(names)}
