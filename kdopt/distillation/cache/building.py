"""A teacher cache that grows batch by batch, shard by shard."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdopt.distillation.cache.answers import Answers
from kdopt.distillation.cache.keys import key_of
from kdopt.distillation.cache.manifest import Manifest
from kdopt.distillation.cache.shards import PRINT, Field, row_type, shard_name, write_shard

SHARD_SAMPLES = 4096  # at most, so that little is lost where the rows of a slow teacher are small
TOLERANCE = 0.02  # of the largest number: what float16 and another machine may change


class Making:
    """A cache that is being made, or gone on with.

    Args:
        folder: Of the cache.
        answers: Asks the teacher.
        manifest: Of what is there already; None: nothing is.
        made: The arguments.
        tensors: All that can be tapped in the teacher.
        teacher: The teacher.

    Attributes:
        done: Samples that have come by.
    """

    def __init__(
        self,
        folder: Path,
        answers: Answers,
        manifest: Manifest | None,
        made: dict[str, Any],
        tensors: list[dict[str, Any]],
        teacher: keras.Model,
    ) -> None:
        self.done = 0
        self._folder, self._answers, self._manifest = folder, answers, manifest
        self._made, self._tensors, self._teacher = made, tensors, teacher
        self._views = made["views"]
        self._open: dict[int, list[np.ndarray]] = {}  # number of a shard -> rows, batch by batch

    def take(self, seen: tuple[Any, ...], prints: np.ndarray) -> None:
        """A batch: asks the teacher where its rows are missing, looks at the data where they are there.

        Args:
            seen: The inputs in each view.
            prints: Fingerprints, shape (batch, views).
        """
        size = len(prints)
        first = None
        if self._manifest is None:
            first = self._rows(seen, prints)
            self._manifest = self._begun(first)
            self._manifest.write(self._folder)
        manifest, per = self._manifest, self._manifest.per_shard // self._views
        if manifest.samples is not None and self.done + size > manifest.samples:
            raise ValueError(other_length(self._folder, manifest.samples, f"at least {self.done + size}"))
        parts = _parts(self.done, size, per)
        missing = [(low, high) for number, low, high in parts if number not in manifest.shards]
        for number, low, high in parts:
            if number in manifest.shards:
                self._compare(number, prints[low:high], self.done + low - number * per)
        if self.done == 0 and 0 in manifest.shards:
            self._ask_again(seen, prints)
        if missing:
            low, high = missing[0][0], missing[-1][1]
            rows = first if first is not None else self._rows(_cut(seen, low, high, size), prints[low:high])
            self._keep(rows, self.done + low, high - low, per)
        self.done += size

    def finished(self) -> Manifest:
        """After the last batch.

        Raises: ValueError if there was no sample, or fewer than before.
        """
        manifest = self._manifest
        if manifest is None:
            raise ValueError("`data` holds no samples.")
        if manifest.samples not in (None, self.done):
            raise ValueError(other_length(self._folder, manifest.samples, self.done))
        for number in list(self._open):
            self._write(number)
        if (there := sum(entry["rows"] for entry in manifest.shards.values()) // self._views) != self.done:
            raise ValueError(other_length(self._folder, there, self.done))
        manifest.samples = self.done
        manifest.write(self._folder)
        return manifest

    def _begun(self, rows: np.ndarray) -> Manifest:
        answers = self._answers
        fields = [
            Field(name, rows.dtype[name].base.name, rows.dtype[name].shape)
            for name in rows.dtype.names or ()
            if name != PRINT
        ]
        per = max(1, min(self._made["shard_bytes"] // (rows.dtype.itemsize * self._views), SHARD_SAMPLES))
        return Manifest(
            key=key_of(self._made),
            name=self._teacher.name,
            made=self._made,
            outputs=answers.outputs,
            kinds=answers.kinds,
            forms=answers.forms,
            tensors=self._tensors,
            layers=[layer.name for layer in self._teacher.layers],
            fields=fields,
            per_shard=per * self._views,
        )

    def _rows(self, seen: tuple[Any, ...], prints: np.ndarray) -> np.ndarray:
        """The rows of a batch, sample by sample, and in each view by view."""
        rows: Any = None
        for view, x in enumerate(seen):
            columns = self._answers.ask(x)
            if rows is None:
                fields = [Field(name, values.dtype.name, values.shape[1:]) for name, values in columns.items()]
                rows = np.empty(prints.shape, row_type(fields))
                rows[PRINT] = prints
            for name, values in columns.items():
                rows[name][:, view] = values
        rows = rows.reshape(-1)
        if self._manifest is not None and rows.dtype != row_type(self._manifest.fields):
            raise ValueError(
                f"The teacher gives {_shapes(rows.dtype)} for the samples from {self.done} on, and gave "
                f"{_shapes(row_type(self._manifest.fields))} before. A cache needs samples of equal shapes: pad or "
                "resize them."
            )
        return rows

    def _keep(self, rows: np.ndarray, start: int, size: int, per: int) -> None:
        assert self._manifest is not None
        for number, low, high in _parts(start, size, per):
            if number in self._manifest.shards:
                continue
            kept = self._open.setdefault(number, [])
            kept.append(rows[low * self._views : high * self._views])
            if sum(map(len, kept)) == self._manifest.per_shard:
                self._write(number)

    def _write(self, number: int) -> None:
        assert self._manifest is not None
        rows = np.concatenate(self._open.pop(number))
        self._manifest.shards[number] = write_shard(self._folder, number, rows)
        self._manifest.write(self._folder)

    def _compare(self, number: int, prints: np.ndarray, start: int) -> None:
        """Refuses other data than those that a shard was made of."""
        shard = np.load(self._folder / shard_name(number), mmap_mode="r", allow_pickle=False)
        there = shard[PRINT].reshape(-1, self._views)[start : start + len(prints)]
        if len(there) < len(prints) or not np.array_equal(there, prints):
            wrong = np.flatnonzero((there != prints[: len(there)]).any(axis=1))
            sample = self.done + int(wrong[0]) if len(wrong) else self.done + len(there)
            raise ValueError(
                f"The cache in {str(self._folder)!r} was made of other data: sample {sample} is another one. The data "
                "must come in the same order and without random changes (shuffle after joining; pass `augment=`). For "
                "other data give another path, or `overwrite=True`."
            )

    def _ask_again(self, seen: tuple[Any, ...], prints: np.ndarray) -> None:
        """Refuses a teacher that answers the first batch otherwise: its code or its `preprocessing` has changed."""
        rows = self._rows(seen, prints)
        there = np.load(self._folder / shard_name(0), mmap_mode="r", allow_pickle=False)[: len(rows)]
        rows = rows[: len(there)]
        unlike = _differs(there, rows)
        # A teacher that draws anew each time answers for all its draws.
        if unlike and not _differs(self._rows(seen, prints)[: len(rows)], rows):
            raise ValueError(
                f"The teacher answers the first batch otherwise than the cache in {str(self._folder)!r} holds it "
                f"({unlike}), by the same weights: another `preprocessing` function of the same name, or changed code "
                "of a layer. Give another path, or `overwrite=True`."
            )


def _differs(one: np.ndarray, other: np.ndarray) -> str:
    """The first column in which rows differ by more than rounding, and by how much; empty if none does."""
    for name in one.dtype.names or ():
        a, b = one[name].astype("float64"), other[name].astype("float64")
        change = float(np.abs(a - b).max(initial=0)) / max(float(np.abs(a).max(initial=0)), 1e-12)
        if name != PRINT and not change <= TOLERANCE:
            return f"{name}: by {100 * change:.3g} % of its largest number"
    return ""


def _parts(start: int, size: int, per: int) -> list[tuple[int, int, int]]:
    """(shard, first, end) of the samples of a batch that lie in each shard; first and end count within the batch."""
    found = []
    low = 0
    while low < size:
        number = (start + low) // per
        high = min(size, (number + 1) * per - start)
        found.append((number, low, high))
        low = high
    return found


def _cut(seen: tuple[Any, ...], low: int, high: int, size: int) -> tuple[Any, ...]:
    return seen if high - low == size else tf.nest.map_structure(lambda tensor: tensor[low:high], seen)


def other_length(folder: Path, there: int | None, here: int | str) -> str:
    """The refusal of data of another length."""
    return (
        f"The cache in {str(folder)!r} was made of {there} samples; the data hold {here}. For other data give another "
        "path, or `overwrite=True`."
    )


def _shapes(dtype: np.dtype) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, dtype[name].shape))}" for name in dtype.names or () if name != PRINT)
