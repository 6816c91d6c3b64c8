"""Inputs and labels as arrays, from whatever holds them."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def gathered(data: Any) -> tuple[Any, Any, int]:
    """All samples in memory.

    Args:
        data: Array of inputs, or a dict or list of them; a tuple `(x, y)`; a `tf.data.Dataset` or `PyDataset` of
            batches of one of these.

    Returns: (inputs, labels or `None`, how many): arrays, or structures of arrays.
    Raises: ValueError for no samples, unequally many, no end, or sample weights.
    """
    if isinstance(data, (tf.data.Dataset, keras.utils.PyDataset)):
        parts = [_parts(batch) for batch in _batches(data)]
        if not parts:
            raise ValueError("`data` holds no batch.")
        x, y = map(_joined, zip(*parts, strict=True))
    else:
        x, y = _parts(data)
    counts = {leaf.shape[0] for leaf in keras.tree.flatten((x, () if y is None else y))}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(
            f"`data` must hold as many labels as inputs, one at least; got arrays of {sorted(counts)} rows."
        )
    return x, y, counts.pop()


def _joined(parts: tuple[Any, ...]) -> Any:
    return None if parts[0] is None else keras.tree.map_structure(lambda *rows: np.concatenate(rows), *parts)


def _parts(data: Any) -> tuple[Any, Any]:
    if isinstance(data, tuple) and len(data) != 2:
        raise ValueError(
            f"`data` must be inputs or a tuple (inputs, labels); got a tuple of {len(data)}. Sample weights are not "
            "used: leave them out; several inputs go into a list or dict."
        )
    x, y = data if isinstance(data, tuple) else (data, None)
    x, y = keras.tree.map_structure(_array, x), None if y is None else keras.tree.map_structure(_array, y)
    if any(leaf.ndim == 0 for leaf in keras.tree.flatten((x, () if y is None else y))):
        raise ValueError("`data` gives single samples, not batches of them. Batch a data set: `dataset.batch(64)`.")
    return x, y


def _array(values: Any) -> np.ndarray:
    if not hasattr(values, "__array__") and not isinstance(values, int | float | bool):
        raise TypeError(
            "`data` must be arrays, a tuple (inputs, labels) of them, a tf.data.Dataset or a PyDataset of batches; got "
            f"{type(values).__module__}.{type(values).__name__}."
        )
    return values if isinstance(values, np.ndarray) else np.asarray(keras.ops.convert_to_numpy(values))


def _batches(data: Any) -> Any:
    count = data.num_batches if isinstance(data, keras.utils.PyDataset) else int(data.cardinality())
    if count is None or count == tf.data.INFINITE_CARDINALITY:
        raise ValueError("`data` has no end: give a part of it, e.g. `dataset.take(40)`.")
    return (data[i] for i in range(count)) if isinstance(data, keras.utils.PyDataset) else data
