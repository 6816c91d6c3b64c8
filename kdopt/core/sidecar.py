"""State that must survive a kill, kept beside Keras' backup and tied to it by step."""

import io
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kdopt.core.files import write_atomic


class Entry(NamedTuple):
    """Masks as they were from optimizer update `step` on, and floats that belong to them."""

    step: int
    meta: dict[str, Any]
    masks: list[np.ndarray]
    values: list[np.ndarray] = []


class Sidecar:
    """Boolean masks, and floats beside them, on disk, one file per step at which they changed.

    `BackupAndRestore` saves weights whenever it likes, and not atomically. Each entry here is written
    whole, before any weights that depend on it can be saved, so that whichever weights come back after
    a kill, the masks that belong to them are found by the step of those weights.

    Args:
        folder: Folder of the backup; created when the first entry is written.
        name: String, told apart from other sidecars in the folder.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str) -> None:
        self.folder = Path(folder)
        self._prefix = f"kdopt-{name}-"

    def steps(self) -> list[int]:
        """Steps with an entry, ascending."""
        names = (path.name for path in self.folder.glob(f"{self._prefix}*.npz"))
        return sorted(int(name.removeprefix(self._prefix).removesuffix(".npz")) for name in names)

    def write(self, entry: Entry) -> None:
        """Writes an entry, atomically; one bit per weight of a mask, values in float32."""
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {f"mask_{i}": np.packbits(mask) for i, mask in enumerate(entry.masks)}
        shapes = [list(mask.shape) for mask in entry.masks]
        arrays.update({f"value_{i}": np.asarray(value, "float32") for i, value in enumerate(entry.values)})
        header = json.dumps({"meta": entry.meta, "shapes": shapes}).encode()
        np.savez(buffer, header=np.frombuffer(header, np.uint8), **arrays)
        write_atomic(self._path(entry.step), buffer.getvalue())

    def read(self, step: int) -> Entry:
        """Reads the entry of `step`.

        Raises: ValueError if the file is damaged.
        """
        path = self._path(step)
        try:
            with np.load(path) as stored:
                header = json.loads(stored["header"].tobytes())
                masks = [
                    np.unpackbits(stored[f"mask_{i}"], count=int(np.prod(shape))).reshape(shape).astype(bool)
                    for i, shape in enumerate(header["shapes"])
                ]
                values = [stored[f"value_{i}"] for i in range(sum(name.startswith("value_") for name in stored.files))]
        except Exception as error:
            raise ValueError(
                f"The masks in {path} are damaged ({error}). Delete {self.folder} to start anew."
            ) from error
        return Entry(step, header["meta"], masks, values)

    def forget(self, *, after: int | None = None, before: int | None = None) -> None:
        """Deletes the entries with a step > `after` or < `before`."""
        for step in self.steps():
            if (after is not None and step > after) or (before is not None and step < before):
                self._path(step).unlink(missing_ok=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{self._prefix}{step:012d}.npz"
