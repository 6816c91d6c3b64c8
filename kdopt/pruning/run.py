"""The masks of one running `fit`: made by a schedule, attached to kernels, kept for a resume."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.live import Live
from kdopt.core.optimizers import averages, updates
from kdopt.criteria.base import Criterion
from kdopt.pruning.masks import make_masks
from kdopt.pruning.resume import MaskBackup
from kdopt.schedules import Schedule


class PruningRun:
    """Attaches masks to the kernels of a model and changes them as the schedule says.

    Starts with masks of ones, or with those that belong to the weights a backup has restored.

    Args:
        model: `keras.Model` in its `fit`.
        kernels: What to prune.
        schedule: Steps are counted from `begin`.
        criterion: Scores the weights.
        scope: `"layer"` or `"global"`.
        begin: Integer, updates the optimizer had made when this `fit` began.
        backup: Keras' backup of this `fit`, or `None`.
        run: Object that stands for this `fit`; see `Live`.
    """

    def __init__(
        self,
        model: keras.Model,
        kernels: list[KernelView],
        *,
        schedule: Schedule,
        criterion: Criterion,
        scope: str,
        begin: int,
        backup: keras.callbacks.BackupAndRestore | None,
        run: object,
    ) -> None:
        self.model, self.kernels = model, kernels
        self._schedule, self._criterion, self._scope = schedule, criterion, scope
        self._begin = begin
        self._next = schedule.next_update(-1)
        self._batches_left = 0.0
        self._backup = MaskBackup(backup, self._identity())
        entry = self._backup.restore(begin, [view.numpy() for view in kernels])
        self._live = Live(model, run)
        with model.distribute_strategy.scope():
            self._masks = [
                keras.Variable(np.ones(view.variable.shape, bool), dtype="bool", trainable=False, name="mask")
                for view in kernels
            ]
        self._stored = [np.ones(view.variable.shape, bool) for view in kernels]
        if entry is None:
            self._backup.write(begin, self._stored, begin=begin, updated=False)
        else:
            self._begin = entry.meta["begin"]
            if entry.meta["updated"]:
                self._next = schedule.next_update(entry.step - self._begin)
            self._set(entry.masks)
        for view, mask in zip(kernels, self._masks, strict=True):
            self._live.constrain(view.variable, functools.partial(_masked, mask))
        self._live.rebuild()

    @property
    def complete(self) -> bool:
        """Whether the schedule has made its last update."""
        return self._next is None

    @property
    def step(self) -> int:
        """Optimizer updates since the schedule began."""
        return updates(self.model.optimizer) - self._begin

    def batch_begins(self) -> None:
        """Changes the masks if it is time; reads the step from the device only when it may be."""
        if self._batches_left <= 0:
            self.update_if_due()
        self._batches_left -= self.model.steps_per_execution

    def update_if_due(self) -> None:
        """Changes the masks if the schedule has an update at or before this step."""
        step = self.step
        if self._next is not None and step >= self._next and not self.model.stop_training:
            try:
                scores = self._criterion.scores(self.model, self.kernels)
                masks = make_masks(scores, self._schedule(step), self._scope)
            except Exception:
                self.release()
                raise
            self._next = self._schedule.next_update(step)
            # On disk first: no backup of weights with these zeros can come before their masks.
            self._backup.write(step + self._begin, masks, begin=self._begin, updated=True)
            self._set(masks)
        self._batches_left = np.inf if self._next is None else self._next - step

    def apply(self) -> bool:
        """Zeroes what the masks leave out, in an optimizer's averages too; True if that changed a weight."""
        changed = False
        for view, mask, stored in zip(self.kernels, self._masks, self._stored, strict=True):
            for variable in [view.variable, *averages(self.model.optimizer, view.variable)]:
                if _numpy(variable)[~stored].any():
                    changed = changed or variable is view.variable
                    variable.assign(_masked(mask, variable))
        return changed

    def epoch_ended(self) -> None:
        """Lets go of stored masks that no backup can need any more."""
        self._backup.epoch_ended(updates(self.model.optimizer))

    def release(self) -> None:
        """Takes the masks off. The zeros stay until training changes them."""
        self._live.release()

    def _set(self, masks: list[np.ndarray]) -> None:
        self._stored = masks
        for variable, mask in zip(self._masks, masks, strict=True):
            variable.assign(mask)
        self.apply()

    def _identity(self) -> dict[str, Any]:
        """What the masks of a backup must have been made with, to be this run's."""
        return {
            "schedule": [type(self._schedule).__name__, self._schedule.get_config()],
            "criterion": [type(self._criterion).__name__, self._criterion.get_config()],
            "scope": self._scope,
            # By place, not by name: Keras numbers unnamed layers on, so that a net built again has other names.
            "kernels": [[view.index, list(view.variable.shape)] for view in self.kernels],
        }


def sparsity(kernels: list[KernelView]) -> float:
    """Fraction of zeros in the kernels, as they are now."""
    values = [view.numpy() for view in kernels]
    zeros = sum(int(np.count_nonzero(value == 0)) for value in values)
    return zeros / sum(int(value.size) for value in values)


def _masked(mask: keras.Variable, value: Any) -> Any:
    """Zero, never minus zero (which a compressor sees as another number), where the mask is False."""
    return ops.where(mask, value, ops.zeros_like(value))


def _numpy(variable: keras.Variable) -> np.ndarray:
    """Value of a Variable; half-precision types widened, because NumPy cannot sort all of them."""
    value = ops.convert_to_numpy(variable)
    return value if value.dtype.itemsize >= 4 else value.astype("float32")
