"""Masks that survive a killed `fit`, beside `keras.callbacks.BackupAndRestore`."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdopt.core.sidecar import Entry, Sidecar

_EPOCHS_KEPT = 3  # the backup, the one before it, and one for good measure


class MaskBackup:
    """Keeps masks in a backup's folder and finds the ones that belong to restored weights.

    Args:
        backup: `BackupAndRestore` of this `fit`; with `None` nothing is kept and nothing restored.
        identity: What the masks depend on (schedule, criterion, kernels), JSON-able.
    """

    def __init__(self, backup: keras.callbacks.BackupAndRestore | None, identity: dict[str, Any]) -> None:
        self._backup = backup
        self._identity = json.loads(json.dumps(identity))
        self._epoch_ends: list[int] = []
        if backup is not None:
            digest = hashlib.sha256(json.dumps(identity["kernels"]).encode()).hexdigest()[:8]
            self._sidecar = Sidecar(backup.backup_dir, f"pruning-{digest}")

    def write(
        self, step: int, masks: list[np.ndarray], *, begin: int, updated: bool, values: Sequence[np.ndarray] = ()
    ) -> None:
        """Stores the masks that hold from optimizer update `step` on.

        Args:
            step: Integer, updates in the optimizer's life.
            masks: Bool arrays.
            begin: Integer, `step` at which the schedule began.
            updated: False for the masks from before the first update of the schedule.
            values: Float arrays that belong to the weights at `step`. Defaults to none.
        """
        if self._backup is not None:
            meta = {"identity": self._identity, "begin": begin, "updated": updated}
            self._sidecar.write(Entry(step, meta, masks, list(values)))

    def restore(self, now: int, weights: list[np.ndarray]) -> Entry | None:
        """Finds the masks of restored weights.

        Args:
            now: Integer, updates in the (restored) optimizer's life.
            weights: Kernels as they are now.

        Returns: the newest entry at or before `now` whose zeros the weights have; `None` where no
            backup was restored (entries of a run that died before its first backup are deleted).

        Raises: RuntimeError if weights were restored whose masks are missing, or are of another
            schedule, model or run.
        """
        if self._backup is None:
            return None
        folder = self._backup.backup_dir
        if not Path(folder, "latest.weights.h5").exists():
            self._sidecar.forget(after=-1)
            return None
        way_out = f"Delete {folder} to start anew, or continue with the model and callbacks it was made with."
        steps = [step for step in self._sidecar.steps() if step <= now]
        if not steps:
            raise RuntimeError(
                f"GradualPruning: the weights restored from {folder} (at update {now}) have no masks there: they "
                f"come from a run with other kernels or without pruning. {way_out}"
            )
        for step in reversed(steps):
            entry = self._sidecar.read(step)
            self._check_identity(entry, way_out)
            if all(not weight[~mask].any() for weight, mask in zip(weights, entry.masks, strict=True)):
                self._sidecar.forget(after=step)
                return entry
        raise RuntimeError(
            f"GradualPruning: the masks in {folder} do not fit the restored weights (at update {now}): weights that "
            f"should be zero are not. {way_out}"
        )

    def epoch_ended(self, now: int) -> None:
        """Deletes masks that no backup still on disk can need."""
        if self._backup is None or self._backup.save_freq != "epoch":
            return
        self._epoch_ends = [*self._epoch_ends, now][-_EPOCHS_KEPT:]
        if len(self._epoch_ends) == _EPOCHS_KEPT:
            needed = [step for step in self._sidecar.steps() if step <= self._epoch_ends[0]]
            if needed:
                self._sidecar.forget(before=needed[-1])

    def _check_identity(self, entry: Entry, way_out: str) -> None:
        stored = entry.meta["identity"]
        other = [key for key in self._identity if stored.get(key) != self._identity[key]]
        if other:
            raise RuntimeError(
                f"GradualPruning: the backup was made with {', '.join(f'{k}={stored.get(k)}' for k in other)}; this "
                f"run has {', '.join(f'{k}={self._identity[k]}' for k in other)}. {way_out}"
            )
