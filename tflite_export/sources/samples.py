"""Representative data: whatever the user has, checked, as one array for each input."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tflite_export.sources.protocol import InputSpec, safe_names

_FORMS = (
    "an array (n, ...), a dict input name -> array, a list with one array for each input, or a tf.data.Dataset or "
    "iterable of batches"
)


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
    if callable(data) and not _is_array(data):
        data = data()
    if _is_array(data) or isinstance(data, Mapping | list | tuple):
        arrays = _by_name(inputs, data, what)
        arrays = {name: _checked(name, inputs[name], value, what) for name, value in arrays.items()}
        count = _count(arrays, what)
        if limit is not None and count > limit:
            chosen = np.linspace(0, count - 1, limit).astype(int)
            arrays = {name: value[chosen] for name, value in arrays.items()}
        return arrays
    return _read_batches(inputs, data, limit, what)


def _read_batches(inputs: Mapping[str, InputSpec], data: Any, limit: int | None, what: str) -> dict[str, np.ndarray]:
    parts: list[dict[str, np.ndarray]] = []
    count = 0
    for number, batch in enumerate(_batches(data, what)):
        place = f"batch {number} of {what}"
        arrays = _by_name(inputs, _features(batch, place), place)
        arrays = {name: _checked(name, inputs[name], value, place) for name, value in arrays.items()}
        count += _count(arrays, place)
        parts.append(arrays)
        if limit is not None and count >= limit:
            break
    if not parts:
        raise ValueError(f"`{what}` is empty: it gave no batch. (A generator can be read only once.)")
    return {name: np.concatenate([part[name] for part in parts])[:limit] for name in inputs}


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


def _checked(name: str, spec: InputSpec, value: Any, place: str) -> np.ndarray:
    """The array in the dtype of the input, or an error."""
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


def groups(arrays: Mapping[str, np.ndarray], size: int) -> Iterator[dict[str, np.ndarray]]:
    """Batches of exactly `size`; the last one is filled up from the start."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, size):
        index = list(itertools.islice(itertools.cycle(range(count)), start, start + size))
        yield {name: array[index] for name, array in arrays.items()}


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
