"""The data of a criterion in the forms users have it, as batches (inputs, labels, sample weights)."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

Batch = tuple[Any, Any, Any]


def batches(data: Any, model: keras.Model, *, owner: str, size: int, labels: bool) -> Iterator[Batch]:
    """Batches of `data`, as tensors.

    Args:
        data: A tuple of arrays `(x, y)` or `(x, y, sample_weight)`; a `tf.data.Dataset`, `keras.utils.PyDataset` or
            another iterable of such tuples, each one batch. Where no labels are needed also `x` alone (an array, a
            dict by input name, or a list with one array an input), or batches of it.
        model: The model the data is for.
        owner: Criterion, for error messages.
        size: Integer >= 1, samples in a batch cut from arrays.
        labels: Whether labels are needed.

    Raises: ValueError for missing, empty or endless data, arrays of different lengths, missing labels.
    """
    if data is None:
        what = "`data=(x, y)` or batches of (x, y)" if labels else "`data=x` or batches of samples"
        raise ValueError(f"Criterion {owner} needs data: pass {what}, a few hundred samples are enough.")
    count = 0
    for batch in _split(data, model, owner, size):
        x, y, weight = batch
        if labels and y is None and getattr(model, "_compile_loss", None) is not None:
            raise ValueError(
                f"Criterion {owner} needs labels: pass `data=(x, y)`, or batches that are tuples (x, y); a batch "
                f"without labels was received."
            )
        count += len(keras.tree.flatten(x)[0])
        yield _tensors(x), _tensors(y), _tensors(weight)
    if not count:
        raise ValueError(f"Criterion {owner}: `data` is empty; a few hundred samples are enough.")


def singles(whole: Iterable[Batch]) -> Iterator[Batch]:
    """The same samples, each a batch of its own."""
    for batch in whole:
        for i in range(len(keras.tree.flatten(batch[0])[0])):
            yield keras.tree.map_structure(lambda part, i=i: None if part is None else part[i : i + 1], batch)


def _split(data: Any, model: keras.Model, owner: str, size: int) -> Iterator[Batch]:
    several_inputs = isinstance(data, list) and 1 < len(data) == len(getattr(model, "inputs", None) or ())
    if isinstance(data, tuple):
        yield from _slices(_triple(data, owner), owner, size)
    elif _is_array(data) or isinstance(data, Mapping) or (several_inputs and all(map(_is_array, data))):
        yield from _slices((data, None, None), owner, size)
    elif isinstance(data, keras.utils.PyDataset):
        yield from (_triple(data[i], owner) for i in range(_length(data, owner)))
    elif isinstance(data, Iterable) and not isinstance(data, str | bytes):
        _refuse_endless(data, owner)
        yield from (_triple(element, owner) for element in data)
    else:
        raise TypeError(
            f"Criterion {owner}: `data` must be a tuple of arrays (x, y), a tf.data.Dataset or another iterable of "
            f"batches; got {type(data).__name__}."
        )


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _triple(element: Any, owner: str) -> Batch:
    parts = element if isinstance(element, tuple) else (element,)
    if not 1 <= len(parts) <= 3:
        raise ValueError(
            f"Criterion {owner}: `data` and its batches must be (x, y) or (x, y, sample_weight); got {len(parts)} "
            "parts."
        )
    return (*parts, None, None)[:3]


def _slices(arrays: Batch, owner: str, size: int) -> Iterator[Batch]:
    arrays = keras.tree.map_structure(lambda part: None if part is None else _rows(part, owner), arrays)
    lengths = sorted({len(part) for part in keras.tree.flatten(arrays) if part is not None})
    if len(lengths) != 1:
        raise ValueError(f"Criterion {owner}: the arrays of `data` have different numbers of samples: {lengths}.")
    for start in range(0, lengths[0], size):
        yield keras.tree.map_structure(
            lambda part, start=start: None if part is None else part[start : start + size], arrays
        )


def _rows(part: Any, owner: str) -> Any:
    part = part if _is_array(part) else np.asarray(part)
    if not part.shape:
        raise ValueError(f"Criterion {owner}: `data` must hold arrays of samples; got a scalar.")
    return part


def _length(data: keras.utils.PyDataset, owner: str) -> int:
    count = data.num_batches
    if count is None:
        raise ValueError(f"Criterion {owner}: `data` never ends; take a part of it.")
    return int(count)


def _refuse_endless(data: Any, owner: str) -> None:
    cardinality = getattr(data, "cardinality", None)
    if callable(cardinality) and int(cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError(f"Criterion {owner}: `data` never ends (it repeats); take a part of it, `data.take(16)`.")


def _tensors(structure: Any) -> Any:
    convert = keras.ops.convert_to_tensor
    return keras.tree.map_structure(lambda part: None if part is None else convert(part), structure)
