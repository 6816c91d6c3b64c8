"""Data and what a teacher said of them, side by side."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdopt.distillation.cache.samples import Augment, as_written, augmented, fingerprints, numbered, unpacked
from kdopt.distillation.cache.shards import PRINT, Rows
from kdopt.distillation.joined import join, split

SAMPLE, VIEW = "sample", "view"  # travel with the answers, so that another cache finds its rows for data in any order
# Columns that have room in this much memory are held there, from the smallest up; the others are read as needed.
IN_MEMORY_BYTES = 2**28
_CHECKED_AT_ONCE = 4096
_CAUSES = (
    "These are other data, or they come in another order (shuffle after joining, or let `cache.join((x, y))` do it), "
    "or they were changed at random before (such a change goes into `cache_teacher(..., augment=)`, which replays it)."
)
Batch = tuple[tf.Tensor, Any, tuple[Any, ...]]  # numbers of the samples, inputs, labels and weights


class Joiner:
    """Puts the rows of a cache beside samples.

    Args:
        key: Under which they travel.
        path: Of the cache, for messages.
        rows: Of the cache.
        views: How many rows each sample has.
    """

    def __init__(self, key: str, path: str, rows: Rows, views: int) -> None:
        self._key, self._path, self._rows, self._views = key, path, rows, views
        self._samples = rows.count // views
        with tf.device("CPU:0"):
            self._prints = tf.constant(rows.column(PRINT))
            self._held = {name: tf.constant(rows.column(name)) for name in _fitting(rows)}
        self._read = [name for name in rows.fields if name not in self._held]

    def of_arrays(
        self,
        x: Any,
        rest: tuple[Any, ...],
        batch_size: int,
        shuffle: bool,
        seed: int | None,
        augment: Augment | None,
        passes: Sequence[int] | None,
    ) -> tf.data.Dataset:
        """Arrays, batched; shuffled anew in each pass over them."""
        count = len(keras.tree.flatten(x)[0])
        if count > self._samples:
            raise ValueError(f"The data hold {count} samples, the cache {self._path!r} {self._samples}.")
        known = augment is None and self._views == 1
        if known:
            self._check_arrays(x, count)
        with tf.device("CPU:0"):
            tensors = _each(tf.convert_to_tensor, (x, rest))

        def take(samples: tf.Tensor) -> Batch:
            own, others = _each(lambda tensor: tf.gather(tensor, samples), tensors)
            return samples, own, others

        return self._joined(orders(count, batch_size, shuffle, seed), take, seed, augment, passes, check=not known)

    def of_dataset(
        self, data: tf.data.Dataset, seed: int | None, augment: Augment | None, passes: Sequence[int] | None
    ) -> tf.data.Dataset:
        """A dataset of batches, in its order."""

        def take(element: tuple[tf.Tensor, Any]) -> Batch:
            x, rest = unpacked(element[1])
            return element[0] + tf.range(tf.shape(tf.nest.flatten(x)[0], tf.int64)[0]), x, rest

        return self._joined(numbered(data), take, seed, augment, passes)

    def of_joined(self, data: tf.data.Dataset) -> tf.data.Dataset:
        """Data that carry the answers of another cache, in any order."""

        @as_written
        def beside(*element: Any) -> tuple[Any, ...]:
            x, rest = unpacked(_one(element))
            carried = next(iter(split(x)[1].values()))
            return self._beside((carried[SAMPLE], x, rest), carried[VIEW])

        return data.map(beside, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def _joined(
        self,
        data: tf.data.Dataset,
        take: Callable[[Any], Batch],
        seed: int | None,
        augment: Augment | None,
        passes: Sequence[int] | None,
        check: bool = True,
    ) -> tf.data.Dataset:
        """The data once in each of the views that `passes` names; `None`: once, in views that are drawn."""
        # Threads cost more than they bring where nothing but small tables is read.
        calls = tf.data.AUTOTUNE if self._read or augment is not None else None

        def beside(element: Any, views: Callable[[tf.Tensor], tf.Tensor]) -> tuple[Any, ...]:
            batch = take(element)
            return self._beside(batch, views(tf.shape(batch[0])), augment, check)

        @as_written
        def drawn(element: Any, draw: tf.Tensor) -> tuple[Any, ...]:
            return beside(element, lambda n: tf.random.stateless_uniform(n, [draw, 0], 0, self._views, tf.int32))

        def seen_in(number: int) -> tf.data.Dataset:
            views = functools.partial(tf.fill, value=tf.constant(number))
            return data.map(as_written(lambda *element: beside(_one(element), views)), calls)

        if passes is None:
            draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True)
            return tf.data.Dataset.zip(data, draws).map(drawn, calls).prefetch(tf.data.AUTOTUNE)
        each = [seen_in(number) for number in passes]
        return functools.reduce(lambda some, more: some.concatenate(more), each).prefetch(tf.data.AUTOTUNE)

    def _beside(
        self, batch: Batch, views: tf.Tensor, augment: Augment | None = None, check: bool = True
    ) -> tuple[Any, ...]:
        samples, x, rest = batch
        if augment is not None:
            x = augmented(augment, x, samples, views)
        rows = samples if self._views == 1 else samples * self._views + tf.cast(views, tf.int64)
        with tf.control_dependencies(self._check(split(x)[0], samples, rows) if check else []):
            rows = tf.identity(rows)
        said = {SAMPLE: samples, VIEW: views, **{name: tf.gather(held, rows) for name, held in self._held.items()}}
        if self._read:
            said |= self._mapped(rows)
        return join(x, {self._key: said}), *rest

    def _mapped(self, rows: tf.Tensor) -> dict[str, tf.Tensor]:
        fields = [self._rows.fields[name] for name in self._read]
        found = tf.numpy_function(
            lambda numbers: self._rows.read(self._read, numbers),
            [rows],
            [tf.as_dtype(field.dtype) for field in fields],
            stateful=False,
        )
        for values, field in zip(found, fields, strict=True):
            values.set_shape((rows.shape[0], *field.shape))
        return dict(zip(self._read, found, strict=True))

    def _check(self, x: Any, samples: tf.Tensor, rows: tf.Tensor) -> list[tf.Operation]:
        # Raw operations: the functions around them would put each check into a branch of its own.
        inside = samples < self._samples
        there = tf.gather(self._prints, tf.minimum(rows, self._rows.count - 1))
        same = tf.logical_or(~inside, fingerprints(x) == there)
        refused = []
        for right, before, after in (
            (inside, "The data go on with sample", self._beyond()),
            (same, "Sample", self._differs()),
        ):
            first = samples[tf.argmin(tf.cast(right, tf.int8))]
            refused.append(tf.raw_ops.Assert(condition=tf.reduce_all(right), data=[before, first, after]))
        return refused

    def _check_arrays(self, x: Any, count: int) -> None:
        for start in range(0, count, _CHECKED_AT_ONCE):
            end = start + _CHECKED_AT_ONCE
            with tf.device("CPU:0"):
                here, there = fingerprints(_rows_of(x, start, end)).numpy(), self._prints[start:end].numpy()
            wrong = np.flatnonzero(here != there[: len(here)])
            if len(wrong):
                raise ValueError(f"Sample {start + wrong[0]} {self._differs()}")

    def _beyond(self) -> str:
        return f"but the cache {self._path} holds {self._samples}. Join the data it was made of, before `.repeat()`."

    def _differs(self) -> str:
        return f"of the data is not the one that the cache {self._path} was made of. {_CAUSES}"


def _fitting(rows: Rows) -> list[str]:
    """The columns to hold in memory."""
    names = sorted(rows.fields, key=rows.bytes_of)
    sizes = np.cumsum([rows.bytes_of(name) for name in names])
    return [name for name, size in zip(names, sizes, strict=True) if size <= IN_MEMORY_BYTES]


def _rows_of(x: Any, start: int, end: int) -> Any:
    return _each(lambda array: tf.constant(array[start:end]), x)


def _each(function: Callable[[Any], Any], values: Any) -> Any:
    return keras.tree.map_structure(lambda value: None if value is None else function(value), values)


def _one(element: tuple[Any, ...]) -> Any:
    """What `tf.data` gives to a function as one argument, or a tuple as several."""
    return element[0] if len(element) == 1 else element


def orders(count: int, batch_size: int, shuffle: bool, seed: int | None) -> tf.data.Dataset:
    """The numbers of the samples, int64, batch by batch; in another order in each pass if they are shuffled."""
    starts = tf.data.Dataset.range(0, count, batch_size)
    if not shuffle:
        return starts.map(as_written(lambda start: tf.range(start, tf.minimum(start + batch_size, count))))

    @as_written
    def once(draw: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.experimental.stateless_shuffle(tf.range(count, dtype=tf.int64), [draw, 0])
        return starts.map(as_written(lambda start: order[start : start + batch_size]))

    draws = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).take(1)
    return draws.flat_map(once).apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
