"""The life of masks in a `fit`: what every pruning callback does, whatever decides the masks."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, Skipped
from kdopt.core.live import callback_list
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import innermost, updates
from kdopt.pruning.company import Company
from kdopt.pruning.patterns import Pattern
from kdopt.pruning.rules import MaskRule
from kdopt.pruning.run import PruningRun, sparsity
from kdopt.pruning.selection import listed

Logs = dict[str, Any]
Layers = list[Any] | Callable[[KernelView], bool] | None


class MaskCallback(keras.callbacks.Callback):
    """Attaches masks in the first batch, changes them as a `MaskRule` says, leaves exact zeros and nothing else.

    Subclass it and implement `_make_rule`.

    Args:
        layers: What to prune; see `GradualPruning`.
    """

    splicing = False

    def __init__(self, layers: Layers = None) -> None:
        super().__init__()
        self._name = type(self).__name__
        require_tensorflow(self._name)
        self.layers = layers
        self.kernels: list[KernelView] = []
        self.skipped: list[Skipped] = []
        self._begin: int | None = None
        self._run: PruningRun | None = None
        self._is_final = False
        self._masks: dict[str, np.ndarray] = {}
        self._loop_optimizer: keras.optimizers.Optimizer | None = None  # of a training loop, see `pruning_loop`

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Path of a kernel (`KernelView.path`) -> its mask, bool, False where the weight is held at zero.

        Those of the running `fit`, or at the end of the last one; empty before the first.
        """
        return dict(self._masks) if self._run is None else self._run.masks

    @property
    def _optimizer(self) -> keras.optimizers.Optimizer:
        return self.model.optimizer if self._loop_optimizer is None else self._loop_optimizer

    @abstractmethod
    def _make_rule(self) -> MaskRule:
        """The rule of this `fit`; called once, when the model is built."""

    @abstractmethod
    def _describe_unfinished(self) -> str:
        """End of the sentence "training ended before the schedule did: "."""

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
            in_fit = self._loop_optimizer is None
            if first and in_fit and not all(layer.built for layer in self.model._flatten_layers()):
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
                logs["sparsity"] = sparsity(self._all_kernels())

    def _all_kernels(self) -> list[KernelView]:
        """The kernels that this callback and others of its kind prune in this `fit`."""
        callbacks = [self] if self._company.run is None else self._company.run.callbacks
        views = [view for callback in callbacks if isinstance(callback, MaskCallback) for view in callback.kernels]
        return list({id(view.variable): view for view in views}.values())

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._company.run is None:
            self._finish()

    def release(self) -> None:
        """Takes the masks off the model, e.g. after an interrupted `fit`. The zeros there are stay."""
        if self._run is not None:
            self._masks = self._run.masks
            self._run.release()
        self._run, self._begin, self._is_final = None, None, False

    def _updates_an_epoch(self) -> int | None:
        """Optimizer updates of one epoch of this `fit`; `None` while Keras does not know the number of batches."""
        batches = self.params.get("steps") if self.params else None
        accumulated = getattr(innermost(self._optimizer), "gradient_accumulation_steps", None) or 1
        return None if batches is None else max(1, batches // accumulated)

    def _begin_step(self) -> int:
        return updates(self._optimizer) if self._begin is None else self._begin

    def _started(self) -> PruningRun:
        """The run of this `fit`; the first call finds the kernels and attaches the masks."""
        if self._run is None:
            rule = self._make_rule()
            self.kernels, self.skipped = rule.selection.kernels, rule.selection.skipped
            self._warn_of_skipped_layers(rule.selection.pattern)
            self._run = PruningRun(
                self.model,
                rule,
                begin=self._begin_step(),
                backup=self._company.backup(),
                run=self._company.run,
                optimizer=self._loop_optimizer,
                splicing=self.splicing,
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
            warn_user(f"{self._name}: fit ran no batch, so nothing was pruned.")
            return
        run = self._started()  # a backup of a finished run may have been restored
        if run.apply() and not getattr(innermost(self._optimizer), "use_ema", False):
            warn_user(
                f"{self._name}: another callback put in weights that were not pruned like the last epoch's, e.g. an "
                "earlier, less sparse epoch. They were masked again: evaluate the model before you use it."
            )
        if not run.complete:
            warn_user(
                f"{self._name}: training ended after {run.step} updates, before the schedule did: "
                f"{self._describe_unfinished()}{self._company.describe_early_best()}"
            )
        self._company.warn_of_early_best()
        self._warn_of_dead_kernels()
        self.release()

    def _warn_of_skipped_layers(self, pattern: Pattern) -> None:
        if self.layers is not None:
            return
        unknown = [skip for skip in self.skipped if not skip.known]
        if unknown:
            warn_user(f"{self._name} leaves out layers of a kind it does not know. {listed(unknown)}.")
        unfit = [skip for skip in self.skipped if skip.unfit]
        if unfit:
            kind = type(pattern).__name__
            warn_user(f"{self._name} leaves out layers that the pattern {kind} is not for. {listed(unfit)}.")

    def _warn_of_dead_kernels(self) -> None:
        dead = [view.name for view in self.kernels if sparsity([view]) == 1]
        if dead:
            warn_user(
                f"{self._name}: every weight of {', '.join(dead)} is zero. Use scope='layer', a lower sparsity, or "
                "leave these layers out with `layers`."
            )
