"""Rows of a teacher cache on disk: what was said of each view of each sample, in files that are mapped, not read."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdopt.core.files import write_atomic

PRINT = "fingerprint"


@dataclass(frozen=True)
class Field:
    """One column of the rows.

    Attributes:
        name: `"output_0"`, `"tap_0"`, ...
        dtype: Of NumPy.
        shape: Of one row.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


def row_type(fields: Sequence[Field]) -> np.dtype:
    """A row as NumPy holds it: the fingerprint of what the teacher saw, then the fields, without gaps."""
    columns = [(field.name, np.dtype(field.dtype).newbyteorder("<"), field.shape) for field in fields]
    return np.dtype([(PRINT, "<i8"), *columns])


def shard_name(number: int) -> str:
    """The file of a shard in the folder of its cache."""
    return f"shard-{number:05d}.npy"


def write_shard(folder: Path, number: int, rows: np.ndarray) -> dict[str, Any]:
    """Writes a shard, whole or not at all; returns what the manifest holds of it."""
    buffer = io.BytesIO()
    np.save(buffer, rows, allow_pickle=False)
    content = buffer.getbuffer()
    write_atomic(folder / shard_name(number), content)
    return {"rows": len(rows), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def is_whole(path: Path, entry: dict[str, Any]) -> bool:
    """Whether a shard is the one that was written."""
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]


class Rows:
    """The rows of a complete cache; a shard is mapped into memory when it is first needed.

    Args:
        folder: Of the cache.
        fields: Columns.
        per_shard: Rows of every shard but the last.
        count: Rows in all.
    """

    def __init__(self, folder: Path, fields: Sequence[Field], per_shard: int, count: int) -> None:
        self.fields, self.count = {field.name: field for field in fields}, count
        self._folder, self._type, self._per_shard = folder, row_type(fields), per_shard
        self._mapped: dict[int, np.ndarray] = {}

    def bytes_of(self, field: str) -> int:
        """Size of a column in bytes."""
        return self._type[field].itemsize * self.count

    def column(self, field: str) -> np.ndarray:
        """A whole column, in memory; shape (rows, ...)."""
        numbers = range(-(-self.count // self._per_shard))
        return np.concatenate([self._shard(number)[field] for number in numbers])

    def read(self, fields: Sequence[str], rows: np.ndarray) -> list[np.ndarray]:
        """Rows of some columns.

        Args:
            fields: Names of columns.
            rows: Numbers of rows, shape (n,), in any order.

        Returns: for each field an array of shape (n, ...).
        """
        shards, within = np.divmod(rows, self._per_shard)
        found = [np.empty((len(rows), *self._type[field].shape), self._type[field].base) for field in fields]
        for number in np.unique(shards):
            here = np.flatnonzero(shards == number)
            shard = self._shard(int(number))
            for field, values in zip(fields, found, strict=True):
                values[here] = shard[field][within[here]]
        return found

    def _shard(self, number: int) -> np.ndarray:
        if number not in self._mapped:
            path = self._folder / shard_name(number)
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.dtype != self._type:
                raise ValueError(f"{path} holds rows of another kind than its manifest says; make the cache anew.")
            self._mapped[number] = mapped
        return self._mapped[number]
