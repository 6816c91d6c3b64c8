"""Gradual magnitude pruning as a Keras callback."""

from collections.abc import Callable
from typing import Any

import keras

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, Skipped, find_kernels, select
from kdopt.core.live import callback_list
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import innermost, updates
from kdopt.core.validation import check_one_of
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.company import Company
from kdopt.pruning.run import PruningRun, sparsity
from kdopt.schedules import Schedule

Logs = dict[str, Any]


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
        self._begin: int | None = None
        self._run: PruningRun | None = None
        self._is_final = False

    # Masks change at the beginning of a batch, before a validation and at the end of an epoch. The first batch
    # sets everything up, because only then every other callback has restored its state.

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        Company(callback_list(self), self).discard_unfinished_backup()  # before Keras reads it

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.release()
        self._company = Company(callback_list(self), self)
        self._company.gather(after_progress=self._log_layers, last=self._finish)

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if self._run is None:
            first, self._begin = self._begin is None, self._begin_step()
            if first and not all(layer.built for layer in self.model._flatten_layers()):
                return  # Keras builds such a model in its first batch: begin after it
        run = self._started()
        run.batch_begins()
        self._note_final(run)

    def on_test_begin(self, logs: Logs | None = None) -> None:
        if self._begin is not None:
            self._catch_up()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._begin is not None:
            self._catch_up().epoch_ended()
            if logs is not None:
                logs["sparsity"] = sparsity(self.kernels)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._company.run is None:
            self._finish()

    def release(self) -> None:
        """Takes the masks off the model, e.g. after an interrupted `fit`. The zeros there are stay."""
        if self._run is not None:
            self._run.release()
        self._run, self._begin, self._is_final = None, None, False

    def _begin_step(self) -> int:
        return updates(self.model.optimizer) if self._begin is None else self._begin

    def _started(self) -> PruningRun:
        """The run of this `fit`; the first call finds the kernels and attaches the masks."""
        if self._run is None:
            found, self.skipped = find_kernels(self.model)
            self.kernels = select(found, self.layers, self.skipped)
            if not self.kernels:
                raise ValueError("GradualPruning: this model has no kernel that training would update.")
            self._warn_of_unknown_layers()
            self._run = PruningRun(
                self.model,
                self.kernels,
                schedule=self.schedule,
                criterion=self.criterion,
                scope=self.scope,
                begin=self._begin_step(),
                backup=self._company.backup(),
                run=self._company.run,
            )
            self._note_final(self._run)
        return self._run

    def _catch_up(self) -> PruningRun:
        """Between batches: whatever is due, so that validation and backups see this epoch's masks."""
        run = self._started()
        run.update_if_due()
        run.apply()
        self._note_final(run)
        return run

    def _note_final(self, run: PruningRun) -> None:
        if run.complete and not self._is_final:
            self._is_final = True
            self._company.forget_best()

    def _log_layers(self, logs: Logs) -> None:
        for view in self.kernels:
            logs[f"sparsity/{view.name}"] = sparsity([view])

    def _finish(self) -> None:
        """After the last callback: exact zeros, nothing attached, no silent surprise."""
        if self._begin is None and not self._company.has_backup():
            warn_user("GradualPruning: fit ran no batch, so nothing was pruned.")
            return
        run = self._started()  # a backup of a finished run may have been restored
        if run.apply() and not getattr(innermost(self.model.optimizer), "use_ema", False):
            warn_user(
                "GradualPruning: another callback put in weights that were not pruned like the last epoch's, e.g. an "
                "earlier, less sparse epoch. They were masked again: evaluate the model before you use it."
            )
        if not run.complete:
            warn_user(
                f"GradualPruning: training ended after {run.step} updates, before the schedule did: sparsity is "
                f"{sparsity(self.kernels):.3f} instead of {self.schedule.final_sparsity:.3f}. Train longer or use a "
                f"smaller end_step.{self._company.describe_early_best()}"
            )
        self._company.warn_of_early_best()
        self._warn_of_dead_kernels()
        self.release()

    def _warn_of_unknown_layers(self) -> None:
        unknown = [skip for skip in self.skipped if not skip.known]
        if unknown and self.layers is None:
            listed = "; ".join(f"{skip.name!r}: {skip.reason}" for skip in unknown)
            warn_user(f"GradualPruning leaves out layers of a kind it does not know. {listed}.")

    def _warn_of_dead_kernels(self) -> None:
        dead = [view.name for view in self.kernels if sparsity([view]) == 1]
        if dead:
            warn_user(
                f"GradualPruning: every weight of {', '.join(dead)} is zero. Use scope='layer', a lower sparsity, or "
                "leave these layers out with `layers`."
            )
