"""Representative data: whatever the user has, checked, as one array for each input or a batch at a time."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_export.sources.protocol import InputSpec, safe_names

_FORMS = (
    "an array (n, ...), a dict input name -> array, a list with one array for each input, or a tf.data.Dataset or "
    "iterable of batches"
)
_BATCH = 32  # samples that arrays are read by
_HEAD = 8  # samples that a stream keeps


def read(
    inputs: Mapping[str, InputSpec], data: Any, *, limit: int | None = None, what: str = "representative_data"
) -> dict[str, np.ndarray]:
    """Reads and checks data for the inputs of a model.

    Forms, the batch dimension always first:
    - array (n, ...), for a model with one input;
    - dict input name -> array (n, ...);
    - list or tuple with one array (n, ...) for each input, in the model's order (never a list of samples);
    - `tf.data.Dataset`, generator, or any other iterable of batches, or a function without arguments that returns
      one. As in Keras, a batch is x, (x,), (x, y) or (x, y, weights); x is an array, a dict, or a list of arrays.
      It is read once, and no further than `limit`.

    Args:
        inputs: Input name -> `InputSpec`, in order.
        data: See above.
        limit: Largest number of samples, or None. Of arrays, `limit` evenly spaced samples are taken; of an iterable,
            the first.
        what: Name of the argument in messages.

    Returns: dict input name -> array (n, ...) of the input's dtype.
    Raises: TypeError, ValueError: wrong form, unknown or missing input, wrong shape or dtype, NaN or infinity, empty.
    """
    parts = list(_opened(inputs, data, limit, what)())
    return {name: np.concatenate([part[name] for part in parts]) for name in inputs}


class Stream:
    """Checked data in any form that `read` takes, of which memory holds a batch at a time.

    Arrays are checked whole at once. Of anything else the first samples are read and checked now, the rest when they
    are used; what cannot be iterated again (a generator) can be used once.

    Args:
        inputs, data, limit, what: See `read`.

    Attributes:
        head: Input name -> the first samples.
        count: Number of samples, or None where it is not known before they are read.

    Raises: As `read`.
    """

    def __init__(
        self, inputs: Mapping[str, InputSpec], data: Any, *, limit: int | None = None, what: str = "representative_data"
    ) -> None:
        self._what = what
        self._open: Callable[[], Batches] | None = _opened(inputs, data, limit, what)
        self._once = _is_iterator(data)
        batches = self._open()
        self.count: int | None = None
        if _is_whole(data):
            self.count = sum(len(next(iter(batch.values()))) for batch in batches)
            batches = self._open()
        begun: list[dict[str, np.ndarray]] = []
        for batch in batches:
            begun.append(batch)
            if sum(len(next(iter(part.values()))) for part in begun) >= _HEAD:
                break
        self.head = {name: np.concatenate([part[name] for part in begun])[:_HEAD] for name in inputs}
        self._rest = itertools.chain(begun, batches) if self._once else None

    def batches(self) -> "Batches":
        """All batches, from the first one on.

        Raises: ValueError for a bad batch, and for a generator that was used before.
        """
        if not self._once:
            assert self._open is not None
            return self._open()
        rest, self._rest = self._rest, None
        if rest is None:
            raise ValueError(
                f"`{self._what}` is a generator, which can be read only once, and this conversion needs it again. Pass "
                "the function that makes it, without calling it, a tf.data.Dataset, or an array."
            )
        return rest


Batches = Iterator[dict[str, np.ndarray]]


def _is_whole(data: Any) -> bool:
    return _is_array(data) or isinstance(data, Mapping | list | tuple)


def _is_iterator(data: Any) -> bool:
    return not callable(data) and isinstance(data, Iterator)


def _opened(inputs: Mapping[str, InputSpec], data: Any, limit: int | None, what: str) -> Callable[[], Batches]:
    """A function that begins to read the data; what can be seen at once of arrays is checked now."""
    if not _is_whole(data):
        return lambda: _of_iterable(inputs, data() if callable(data) else data, limit, what)
    arrays = {name: _shaped(name, inputs[name], value, what) for name, value in _by_name(inputs, data, what).items()}
    count = _count(arrays, what)
    chosen = np.arange(count) if limit is None or count <= limit else np.linspace(0, count - 1, limit).astype(int)
    return lambda: _of_arrays(inputs, arrays, chosen, what)


def _of_arrays(inputs: Mapping[str, InputSpec], arrays: Mapping[str, Any], chosen: np.ndarray, what: str) -> Batches:
    for start in range(0, len(chosen), _BATCH):
        rows = chosen[start : start + _BATCH]
        yield {name: _cast(name, inputs[name], array[rows], what) for name, array in arrays.items()}


def _of_iterable(inputs: Mapping[str, InputSpec], data: Any, limit: int | None, what: str) -> Batches:
    if _is_whole(data):  # what a function returned
        yield from _opened(inputs, data, limit, what)()
        return
    count = 0
    for number, batch in enumerate(_batches(data, what)):
        place = f"batch {number} of {what}"
        arrays = {
            name: _shaped(name, inputs[name], value, place)
            for name, value in _by_name(inputs, _features(batch, place), place).items()
        }
        size = _count(arrays, place)
        kept = size if limit is None else min(size, limit - count)
        yield {name: _cast(name, inputs[name], array[:kept], place) for name, array in arrays.items()}
        count += size
        if limit is not None and count >= limit:
            return
    if count == 0:
        raise ValueError(f"`{what}` is empty: it gave no batch. (A generator can be read only once.)")


def _batches(data: Any, what: str) -> Iterator[Any]:
    if isinstance(data, str | bytes) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise TypeError(f"`{what}` must be {_FORMS}; got {type(data).__name__}.")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__"):  # keras.utils.PyDataset
        return (data[index] for index in range(len(data)))
    return iter(data)


def _features(batch: Any, place: str) -> Any:
    """x of x, (x,), (x, y) or (x, y, weights)."""
    if not isinstance(batch, tuple):
        return batch
    if not 1 <= len(batch) <= 3:
        raise ValueError(
            f"{place} is a tuple of {len(batch)}; a tuple means (x, y) or (x, y, weights). Give several inputs as a "
            "list or a dict."
        )
    x = batch[0]
    return list(x) if isinstance(x, tuple) else x


def _by_name(inputs: Mapping[str, InputSpec], value: Any, place: str) -> dict[str, Any]:
    expected = f"the inputs {', '.join(map(repr, inputs))}"
    if isinstance(value, Mapping):
        given = dict(zip(safe_names(value), value.values(), strict=True))
        unknown, missing = sorted(set(given) - set(inputs)), [name for name in inputs if name not in given]
        if unknown or missing:
            problem = f"unknown {unknown}" if unknown else f"missing {missing}"
            raise ValueError(f"{place} must name {expected}; got {list(given)} ({problem}).")
        return {name: given[name] for name in inputs}
    if _is_array(value):
        if len(inputs) != 1:
            raise ValueError(f"{place} is one array, but the model has {expected}. Give a dict by name, or a list.")
        return {next(iter(inputs)): value}
    if isinstance(value, list | tuple):
        if len(value) != len(inputs) or not all(_is_array(item) or isinstance(item, list) for item in value):
            hint = " For a list of samples, pass np.stack(samples)." if len(inputs) == 1 else ""
            raise ValueError(
                f"{place} is a {type(value).__name__} of {len(value)}: it must hold one array for each of {expected}, "
                f"in this order.{hint}"
            )
        return dict(zip(inputs, value, strict=True))
    raise TypeError(f"{place} must be {_FORMS}; got {type(value).__name__}.")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic) or (hasattr(value, "__array__") and hasattr(value, "shape"))


def _shaped(name: str, spec: InputSpec, value: Any, place: str) -> np.ndarray:
    """The array if its kind of numbers and its shape are right."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}, input {name!r}: not an array of numbers: {error}") from None
    wanted = np.dtype(spec.dtype)
    kinds = {"f": "fiu", "i": "iu", "u": "iu", "b": "b"}.get(wanted.kind, wanted.kind)
    if array.dtype.kind not in kinds and array.dtype.name != "bfloat16":
        raise ValueError(f"{place}, input {name!r}: expected dtype {spec.dtype}; got {array.dtype}.")
    shape = ("n", *("any" if size is None else size for size in spec.shape[1:]))
    pairs = zip(array.shape[1:], spec.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(want is not None and got != want for got, want in pairs):
        missing = array.ndim == len(spec.shape) - 1 and array.shape == tuple(spec.shape[1:])
        hint = " The batch dimension is missing: array[np.newaxis], or dataset.batch(...)." if missing else ""
        written = "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{place}, input {name!r}: expected shape {written}; got {array.shape}.{hint}")
    if len(array) == 0:
        raise ValueError(f"{place}, input {name!r}: empty, shape {array.shape}.")
    return array


def _cast(name: str, spec: InputSpec, array: np.ndarray, place: str) -> np.ndarray:
    """The array in the dtype of the input, if all its values are numbers that fit."""
    wanted = np.dtype(spec.dtype)
    with np.errstate(over="ignore"):
        cast = np.ascontiguousarray(array.astype(wanted))
    if wanted.kind == "f":
        bad = int(cast.size - np.isfinite(cast).sum())
        if bad:
            raise ValueError(f"{place}, input {name!r}: {bad} of {cast.size} values are NaN or infinite in {wanted}.")
    elif wanted.kind in "iu" and not np.array_equal(cast, array):
        raise ValueError(f"{place}, input {name!r}: values from {array.min()} to {array.max()} do not fit {wanted}.")
    return cast


def _count(arrays: Mapping[str, np.ndarray], place: str) -> int:
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"{place}: every input must have as many samples as the others; got {counts}.")
    return next(iter(counts.values()))


def groups(arrays: Mapping[str, np.ndarray], size: int) -> Batches:
    """Batches of exactly `size`; the last one is filled up from the start."""
    return regrouped(iter([dict(arrays)]), size)


def regrouped(batches: Batches, size: int) -> Batches:
    """The samples of batches of any size in batches of exactly `size`; the last one is filled up from the start."""
    first: dict[str, np.ndarray] | None = None
    left: dict[str, np.ndarray] | None = None
    for batch in batches:
        held = batch if left is None else _joined(left, batch)
        count = len(next(iter(held.values())))
        whole = count - count % size
        for start in range(0, whole, size):
            part = {name: array[start : start + size] for name, array in held.items()}
            first = part if first is None else first
            yield part
        left = None if whole == count else {name: array[whole:] for name, array in held.items()}
    if left is not None:
        held = left if first is None else _joined(left, first)
        rows = np.arange(size) % len(next(iter(held.values())))
        yield {name: array[rows] for name, array in held.items()}


def _joined(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([array, other[name]]) for name, array in one.items()}


def random_sample(inputs: Mapping[str, InputSpec], count: int, *, any_size: int = 32) -> dict[str, np.ndarray]:
    """Seeded stand-in data: standard normal floats, integers and bools 0 or 1; `any_size` where a size is open."""
    generator = np.random.default_rng(0)
    sample = {}
    for name, spec in inputs.items():
        shape = (count, *(any_size if size is None else size for size in spec.shape[1:]))
        dtype = np.dtype(spec.dtype)
        values = generator.normal(size=shape) if dtype.kind == "f" else generator.integers(0, 2, size=shape)
        sample[name] = values.astype(dtype)
    return sample
