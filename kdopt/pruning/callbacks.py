"""Gradual magnitude pruning as a Keras callback."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, Skipped, find_kernels, select
from kdopt.core.live import Live, averages, callback_list, innermost, updates
from kdopt.core.validation import check_one_of
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.company import Company
from kdopt.pruning.masks import make_masks
from kdopt.pruning.resume import MaskBackup
from kdopt.schedules import Schedule


class GradualPruning(keras.callbacks.Callback):
    """Makes weights zero while the model trains, more and more of them.

    Give it to `fit` of any Keras 3 model, fresh or trained: Functional, Sequential, subclassed, nested,
    a `Distiller` (its student is pruned), a `quantize_aware` model. Kernels are pruned; biases and
    normalization are left alone. At the end the zeros are exact, everything attached is gone, and the
    model is plain Keras. Zeros make a file smaller only when it is compressed, and nothing faster.

        every update of the schedule, at t optimizer updates since this fit began:
            mask = the 1 - schedule(t) share of weights with the highest scores;   w <- w * mask
        every optimizer update in between:   w <- w * mask

    Each `fit` starts the schedule anew; to fine-tune with the zeros kept, use `Constant`. With
    `steps_per_execution=k` the masks change at the first boundary at or after their step. Cost: one
    multiplication per kernel and step, and a selection on the host at each update.

    With other callbacks, wherever they stand in the list:

    - `BackupAndRestore`: masks and step are kept in its folder; a killed `fit` resumes with them. Use
      `double_checkpoint=True`.
    - `EarlyStopping(restore_best_weights=True)`, `ModelCheckpoint(save_best_only=True)`: their best
      starts anew when the final sparsity is reached; if that never happens, a warning says so.
    - Weights that another callback (or an averaging optimizer) puts in at the end are masked again.

    Logs at the end of an epoch: `sparsity`, the fraction of zeros in all pruned kernels, and
    `sparsity/<layer>` for each.

    Args:
        schedule: `kdopt.schedules.Schedule`, e.g. `Polynomial(0.8, end_step=1000)`.
        criterion: Name in `kdopt.criteria.CRITERIA`, or a `Criterion`. Defaults to `"l1"`.
        scope: `"layer"` (default): every kernel gets the schedule's sparsity. `"global"`: all kernels
            together do, and the weakest lose most.
        layers: List of layers and layer names, or a function `KernelView -> bool`. Defaults to `None`:
            all with a kernel. A layer of a kind without a rule is left out with a warning.

    Raises: ValueError at the first batch, if `layers` names a layer without a kernel; RuntimeError if a
        backup is restored whose masks are missing or belong to other weights.

    Example:
    ```
    pruning = GradualPruning(Polynomial(0.8, end_step=1000))
    model.fit(x, y, epochs=10, callbacks=[pruning])
    ```

    Reference: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
        compression", 2017.
    """

    def __init__(
        self,
        schedule: Schedule,
        criterion: str | Criterion = "l1",
        scope: str = "layer",
        layers: list[Any] | Callable[[KernelView], bool] | None = None,
    ) -> None:
        super().__init__()
        require_tensorflow("GradualPruning")
        if not isinstance(schedule, Schedule):
            raise TypeError(
                "`schedule` must be a kdopt.schedules.Schedule, e.g. Constant(0.8) or "
                f"Polynomial(0.8, end_step=1000); got {schedule!r}."
            )
        self.schedule = schedule
        self.criterion = CRITERIA.get(criterion)
        self.scope = check_one_of("scope", scope, ("layer", "global"))
        self.layers = layers
        self.kernels: list[KernelView] = []
        self.skipped: list[Skipped] = []
        self._live: Live | None = None
        self._begin: int | None = None

    # What Keras calls. Masks change at the beginning of a batch, before a validation and at the end of an
    # epoch; the first batch sets everything up, because only then every other callback has restored its state.

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.release()
        self._company = Company(callback_list(self), self)
        self._company.gather(after_progress=self._log_layers, last=self._finish)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if self._live is None:
            first = self._begin is None
            if first:
                self._begin = self._updates()
            if first and not all(layer.built for layer in self.model._flatten_layers()):
                return  # Keras builds such a model in its first batch: begin after it
            self._start()
        if self._batches_left <= 0:
            self._update_if_due()
        self._batches_left -= self.model.steps_per_execution

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._begin is not None:
            self._catch_up()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._begin is None:
            return
        self._catch_up()
        self._backup.epoch_ended(self._updates())
        if logs is not None:
            logs["sparsity"] = self._sparsity(self.kernels)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._company.run is None:
            self._finish()

    def release(self) -> None:
        """Takes the masks off the model, e.g. after an interrupted `fit`. The zeros there are stay."""
        if self._live is not None:
            self._live.release()
            self._live = None
        self._begin = None

    def _start(self) -> None:
        """Finds the kernels, restores or begins the masks, attaches them."""
        found, self.skipped = find_kernels(self.model)
        self.kernels = select(found, self.layers, self.skipped)
        if not self.kernels:
            raise ValueError("GradualPruning: this model has no kernel that training would update.")
        self._warn_of_unknown_layers()
        if self._begin is None:
            self._begin = self._updates()
        self._final = False
        self._live = Live(self.model, run=self._company.run)
        with self.model.distribute_strategy.scope():
            self._masks = [
                keras.Variable(np.ones(v.variable.shape, bool), dtype="bool", trainable=False, name="mask")
                for v in self.kernels
            ]
        self._stored = [np.ones(v.variable.shape, bool) for v in self.kernels]
        self._next = self.schedule.next_update(-1)
        self._backup = MaskBackup(self._company.backup(), self._identity())
        self._restore()
        for view, mask in zip(self.kernels, self._masks, strict=True):
            self._live.constrain(view.variable, functools.partial(_masked, mask))
        self._live.rebuild()
        self._batches_left = 0

    def _restore(self) -> None:
        entry = self._backup.restore(self._begin, [_numpy(view.variable) for view in self.kernels])
        if entry is None:
            self._backup.write(self._begin, self._stored, begin=self._begin, updated=False)
            return
        self._begin = entry.meta["begin"]
        self._next = self.schedule.next_update(entry.step - self._begin) if entry.meta["updated"] else self._next
        self._set_masks(entry.masks)
        self._note_final()

    def _catch_up(self) -> None:
        """Between batches: whatever is due, so that validation and backups see this epoch's masks."""
        if self._live is None:
            self._start()
        self._update_if_due()
        self._apply_masks()

    def _update_if_due(self) -> None:
        """Changes the masks if the schedule says so; reads the step only when that is possible."""
        now = self._updates()
        step = now - self._begin
        if self._next is not None and step >= self._next:
            sparsity = self.schedule(step)
            scores = [self.criterion.score(_numpy(view.variable)) for view in self.kernels]
            masks = make_masks(scores, sparsity, self.scope)
            self._next = self.schedule.next_update(step)
            self._backup.write(now, masks, begin=self._begin, updated=True)
            self._set_masks(masks)
            self._note_final()
        self._batches_left = np.inf if self._next is None else self._next - step

    def _set_masks(self, masks: list[np.ndarray]) -> None:
        self._stored = masks
        for variable, mask in zip(self._masks, masks, strict=True):
            variable.assign(mask)
        self._apply_masks()

    def _apply_masks(self) -> bool:
        """Zeroes what the masks leave out, also in an optimizer's averages; says whether that changed anything."""
        changed = False
        for view, mask, stored in zip(self.kernels, self._masks, self._stored, strict=True):
            for variable in [view.variable, *averages(self.model.optimizer, view.variable)]:
                if _numpy(variable)[~stored].any():
                    changed = changed or variable is view.variable
                    variable.assign(_masked(mask, variable))
        return changed

    def _note_final(self) -> None:
        if self._next is None and not self._final:
            self._final = True
            self._company.forget_best()

    def _finish(self) -> None:
        """After the last callback: exact zeros, nothing attached, no silent surprise."""
        if self._live is None:
            self._start_without_batch()
        if self._live is None:
            return
        if self._apply_masks() and not getattr(innermost(self.model.optimizer), "use_ema", False):
            warnings.warn(
                "GradualPruning: another callback put in weights that were not pruned like the last epoch's, e.g. an "
                "earlier, less sparse epoch. They were masked again: evaluate the model before you use it.",
                stacklevel=2,
            )
        if not self._final:
            step, wanted = self._updates() - self._begin, self.schedule.final_sparsity
            warnings.warn(
                f"GradualPruning: training ended after {step} updates, before the schedule did: sparsity is "
                f"{self._sparsity(self.kernels):.3f} instead of {wanted:.3f}. Train longer or use a smaller end_step. "
                "A best epoch that a callback kept has no more than that.",
                stacklevel=2,
            )
        self._company.warn_of_early_best()
        self._warn_of_dead_kernels()
        self.release()

    def _start_without_batch(self) -> None:
        """After a `fit` that ran no batch: either a backup of a finished run was restored, or nothing happened."""
        if self._company.has_backup():
            self._start()
        else:
            warnings.warn("GradualPruning: fit ran no batch, so nothing was pruned.", stacklevel=2)

    def _log_layers(self, logs: dict[str, Any]) -> None:
        for view in self.kernels:
            logs[f"sparsity/{view.name}"] = self._sparsity([view])

    def _sparsity(self, views: list[KernelView]) -> float:
        values = [_numpy(view.variable) for view in views]
        return 1 - sum(np.count_nonzero(v) for v in values) / sum(v.size for v in values)

    def _updates(self) -> int:
        return updates(self.model.optimizer)

    def _identity(self) -> dict[str, Any]:
        """What a backup must have been made with, to be this callback's."""
        return {
            "schedule": [type(self.schedule).__name__, self.schedule.get_config()],
            "criterion": [type(self.criterion).__name__, self.criterion.get_config()],
            "scope": self.scope,
            "kernels": [[view.path, list(view.variable.shape)] for view in self.kernels],
        }

    def _warn_of_unknown_layers(self) -> None:
        unknown = [skip for skip in self.skipped if not skip.known]
        if unknown and self.layers is None:
            listed = "; ".join(f"{skip.name!r}: {skip.reason}" for skip in unknown)
            warnings.warn(f"GradualPruning leaves out layers of a kind it does not know. {listed}.", stacklevel=2)

    def _warn_of_dead_kernels(self) -> None:
        dead = [view.name for view in self.kernels if not _numpy(view.variable).any()]
        if dead:
            warnings.warn(
                f"GradualPruning: every weight of {', '.join(dead)} is zero. Use scope='layer', a lower sparsity, or "
                "leave these layers out with `layers`.",
                stacklevel=2,
            )


def _masked(mask: keras.Variable, value: Any) -> Any:
    """Zero, never minus zero (which a compressor sees as another number), where the mask is False."""
    return ops.where(mask, value, ops.zeros_like(value))


def _numpy(variable: keras.Variable) -> np.ndarray:
    """Value of a Variable; half-precision types widened, because NumPy cannot sort all of them."""
    value = ops.convert_to_numpy(variable)
    return value if value.dtype.itemsize >= 4 else value.astype("float32")
