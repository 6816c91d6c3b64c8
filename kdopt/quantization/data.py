"""Calibration data in the forms users have it, as batches of one array an input."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

BATCH = 32
MAX_BATCHES = 128


class InputSpec(Protocol):
    """What is known about an input: its name, shape with the batch dimension, dtype."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int | None, ...]: ...
    @property
    def dtype(self) -> str: ...


def calibration_batches(data: Any, inputs: Sequence[InputSpec]) -> list[list[np.ndarray]]:
    """Batches of calibration data, checked.

    Args:
        data: One array of samples (a model with one input); a dict from input name to array; a list with one array
            an input, or for one input a list of samples or batches; a `tf.data.Dataset` or another iterable of
            batches, where a tuple is read as `(inputs, targets, ...)`. Of an iterable the first 128 batches are taken.
        inputs: The model's inputs.

    Returns: A non-empty list of batches; a batch is one array an input, samples first.
    Raises: TypeError for another kind of data; ValueError for empty data, a wrong name, shape or dtype, NaN or
        infinity.
    """
    batches = [_checked(batch, inputs) for batch in _split(data, inputs)]
    if not batches or not len(batches[0][0]):
        raise ValueError("`calibration` is empty; expected a few hundred real samples, e.g. `x_train[:256]`.")
    return batches


def as_arrays(data: Any, inputs: Sequence[InputSpec]) -> dict[str, np.ndarray]:
    """Data in any of its forms, read once: input name -> array."""
    batches = calibration_batches(data, inputs)
    return {entry.name: np.concatenate([batch[i] for batch in batches]) for i, entry in enumerate(inputs)}


def sample(batches: list[list[np.ndarray]], count: int = 128) -> list[np.ndarray]:
    """The first `count` samples of `batches`, one array an input."""
    arrays = []
    for columns in zip(*batches, strict=True):
        taken, size = [], 0
        for array in columns:
            taken.append(array[: count - size])
            size += len(taken[-1])
            if size >= count:
                break
        arrays.append(np.concatenate(taken))
    return arrays


def _split(data: Any, inputs: Sequence[InputSpec]) -> Iterator[list[Any]]:
    if isinstance(data, Mapping):
        missing = [entry.name for entry in inputs if entry.name not in data]
        unknown = sorted(set(data) - {entry.name for entry in inputs})
        if missing or unknown:
            raise ValueError(
                f"`calibration` must have the keys {[entry.name for entry in inputs]}; missing "
                f"{missing}, unknown {unknown}."
            )
        yield from _slices([data[entry.name] for entry in inputs])
    elif hasattr(data, "__array__"):
        yield from _slices([data])
    elif isinstance(data, (list, tuple)):
        yield from _of_list(data, inputs)
    elif isinstance(data, Iterable) and not isinstance(data, (str, bytes, os.PathLike)):
        yield from _of_iterable(data, inputs)
    else:
        raise TypeError(
            "`calibration` must be an array, a dict or list of arrays, a tf.data.Dataset or an iterable of batches; "
            f"got {type(data).__name__}."
        )


def _slices(arrays: Sequence[Any]) -> Iterator[list[np.ndarray]]:
    columns = [np.asarray(array) for array in arrays]
    if any(column.ndim == 0 for column in columns):
        raise ValueError("`calibration` must hold arrays of samples; got a scalar.")
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise ValueError(f"`calibration` has a different number of samples for each input: {sorted(lengths)}.")
    for start in range(0, lengths.pop(), BATCH):
        yield [column[start : start + BATCH] for column in columns]


def _of_list(data: Sequence[Any], inputs: Sequence[InputSpec]) -> Iterator[list[np.ndarray]]:
    if not data:
        return
    rank = len(inputs[0].shape)
    if len(inputs) > 1:
        if len(data) != len(inputs):
            raise ValueError(f"`calibration` must be a list of {len(inputs)} arrays, one an input; got {len(data)}.")
        yield from _slices(data)
    elif np.ndim(data[0]) == rank:
        for batch in data:
            yield from _slices([batch])
    else:
        yield from _slices([np.stack([np.asarray(entry) for entry in data])])


def _of_iterable(data: Iterable[Any], inputs: Sequence[InputSpec]) -> Iterator[list[np.ndarray]]:
    for number, element in enumerate(data):
        if number == MAX_BATCHES:
            return
        features = element[0] if isinstance(element, tuple) else element
        if isinstance(features, (list, tuple)) and len(inputs) > 1:
            features = dict(zip((entry.name for entry in inputs), features, strict=True))
        yield from _split(features, inputs)


def _checked(batch: list[Any], inputs: Sequence[InputSpec]) -> list[np.ndarray]:
    if len(batch) != len(inputs):
        raise ValueError(
            f"`calibration` has data for {len(batch)} input; the model has {len(inputs)}: "
            f"{[entry.name for entry in inputs]}. Pass a dict by input name."
        )
    return [_checked_array(np.asarray(array), entry) for array, entry in zip(batch, inputs, strict=True)]


def _checked_array(array: np.ndarray, entry: InputSpec) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ValueError(f"`calibration` for input {entry.name!r} must be numbers; got dtype {array.dtype}.")
    expected = entry.shape
    fits = len(array.shape) == len(expected) and all(
        e is None or e == a for e, a in zip(expected[1:], array.shape[1:], strict=False)
    )
    if not fits:
        raise ValueError(f"`calibration` for input {entry.name!r} must have the shape {expected}; got {array.shape}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"`calibration` for input {entry.name!r} contains NaN or infinity.")
    return array.astype(entry.dtype)
