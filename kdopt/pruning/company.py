"""The other callbacks of a `fit`: their order, their best epochs, their backup."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
from keras.callbacks import BackupAndRestore, EarlyStopping, ModelCheckpoint, ProgbarLogger

from kdopt.core.notices import warn_user

Logs = dict[str, Any]


class _LogsHook(keras.callbacks.Callback):
    """Calls a function with the logs of each epoch."""

    def __init__(self, owner: keras.callbacks.Callback, function: Callable[[Logs], None]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None:
            self.function(logs)


class _EndHook(keras.callbacks.Callback):
    """Calls a function when training has ended."""

    def __init__(self, owner: keras.callbacks.Callback, function: Callable[[], None]) -> None:
        super().__init__()
        self.owner, self.function = owner, function

    def on_train_end(self, logs: Logs | None = None) -> None:
        self.function()


class Company:
    """What a pruning callback must know of the callbacks it runs with.

    Args:
        run: `CallbackList` of the running `fit`; `None` in a custom loop that calls the hooks itself.
        owner: The pruning callback.
    """

    def __init__(self, run: keras.callbacks.CallbackList | None, owner: keras.callbacks.Callback) -> None:
        self.run = run
        self.owner = owner
        self._best_at_start = [(c, c.best) for c in self._all(ModelCheckpoint) if c.save_best_only]
        self._best_is_final = False

    def gather(self, *, after_progress: Callable[[Logs], None], last: Callable[[], None]) -> None:
        """Puts the owner first, so that all others see its logs, and its end after all others.

        Args:
            after_progress: Called with the logs of an epoch when the progress bar has printed them and
                before the others get them: per-layer numbers are for plots and files.
            last: Called at the end of training, after every callback.
        """
        if self.run is None:
            return
        order = (type(self.owner), ProgbarLogger, _LogsHook, keras.callbacks.Callback, _EndHook)

        def rank(callback: keras.callbacks.Callback) -> int:
            return next((i for i in (0, 1, 2, 4) if isinstance(callback, order[i])), 3)

        callbacks = [c for c in self.run.callbacks if getattr(c, "owner", None) is not self.owner]
        callbacks += [_LogsHook(self.owner, after_progress), _EndHook(self.owner, last)]
        self.run.callbacks = sorted(callbacks, key=rank)  # a new list: Keras is iterating over the old one

    def backup(self) -> BackupAndRestore | None:
        """The backup callback of this `fit`."""
        return next(iter(self._all(BackupAndRestore)), None)

    def discard_unfinished_backup(self) -> None:
        """Deletes a first backup whose writing was cut off by a kill: Keras would stop at it, and nothing is in it.

        Raises: RuntimeError if a later backup is damaged and there is none before it.
        """
        backup = self.backup()
        weights = None if backup is None else Path(backup.backup_dir, "latest.weights.h5")
        if weights is None or not weights.exists() or weights.with_suffix(".h5.bkp").exists() or _opens(weights):
            return
        if weights.with_name("training_metadata.json").exists():
            raise RuntimeError(
                f"The backup {weights} is damaged and there is none before it: the process was killed while Keras "
                f"wrote it. Delete {weights.parent} to start anew, and give BackupAndRestore double_checkpoint=True."
            )
        weights.unlink()

    def has_backup(self) -> bool:
        """Whether weights of an earlier run lie in the backup's folder."""
        backup = self.backup()
        return backup is not None and Path(backup.backup_dir, "latest.weights.h5").exists()

    def forget_best(self) -> None:
        """Makes "the best epoch so far" begin anew: earlier epochs were less sparse."""
        self._best_is_final = True
        for stopping in self._all(EarlyStopping):
            stopping.best, stopping.best_weights, stopping.wait = None, None, 0
        for checkpoint, best in self._best_at_start:
            checkpoint.best = best

    def describe_early_best(self) -> str:
        """A sentence on the best epochs kept before the final sparsity; empty where nothing keeps any."""
        names = [type(c).__name__ for c, _ in self._best_at_start]
        names += [type(c).__name__ for c in self._all(EarlyStopping) if c.restore_best_weights]
        return f" The best epoch that {' and '.join(names)} kept is no sparser than that." if names else ""

    def warn_of_early_best(self) -> None:
        """Warns of files that still hold an epoch from before the final sparsity."""
        for checkpoint, best in self._best_at_start:
            if self._best_is_final and checkpoint.best == best and Path(checkpoint.filepath).exists():
                warn_user(
                    f"GradualPruning: no epoch since the final sparsity was better than {best} for ModelCheckpoint; "
                    f"{checkpoint.filepath} holds an earlier, less sparse one."
                )

    def _all(self, kind: type) -> list[Any]:
        return [] if self.run is None else [c for c in self.run.callbacks if isinstance(c, kind)]


def _opens(path: Path) -> bool:
    import h5py

    try:
        with h5py.File(path):
            return True
    except OSError:
        return False
