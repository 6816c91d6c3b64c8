"""The masks of one running `fit`: made by a rule, attached to Variables, kept for a resume."""

import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.live import Live
from kdopt.core.optimizers import averages, slots, updates
from kdopt.pruning.resume import MaskBackup
from kdopt.pruning.rules import MaskRule
from kdopt.pruning.splicing import Spliced


class PruningRun:
    """Attaches masks to Variables of a model and changes them as a rule says.

    Starts with masks of ones, or with those that belong to the weights a backup has restored.

    Args:
        model: `keras.Model` in its `fit`.
        rule: Decides the masks; its steps are counted from `begin`.
        begin: Integer, updates the optimizer had made when this `fit` began.
        backup: Keras' backup of this `fit`, or `None`.
        run: Object that stands for this `fit`; see `Live`.
        optimizer: The optimizer of a training loop of the user's own, where masks act by `hold` alone. Defaults to
            `None`: the model's, in `fit`.
        splicing: Bool. Whether masked weights go on learning behind their zeros; see `Spliced`. Defaults to `False`.
    """

    def __init__(
        self,
        model: keras.Model,
        rule: MaskRule,
        *,
        begin: int,
        backup: keras.callbacks.BackupAndRestore | None,
        run: object,
        optimizer: keras.optimizers.Optimizer | None = None,
        splicing: bool = False,
    ) -> None:
        self.model, self._rule = model, rule
        self._optimizer = model.optimizer if optimizer is None else optimizer
        self._variables = rule.selection.variables
        self._begin = begin
        self._next = rule.next_update(-1)
        self._batches_left = 0.0
        self._hold: Callable[[], None] | None = None
        self.waits = False  # for the rule to see something of the training, such as gradients
        self._backup = MaskBackup(backup, {**self._identity(), "splicing": splicing})
        entry = self._backup.restore(begin, [_numpy(variable) for variable in self._variables])
        # A loop may train a model that was never compiled, with an optimizer the model does not know.
        own_loop = SimpleNamespace(
            optimizer=optimizer,
            distribute_strategy=model.distribute_strategy,
            trainable_variables=model.trainable_variables,
        )
        self._live = Live(model, run) if optimizer is None else Live(cast(Any, own_loop))
        with model.distribute_strategy.scope():
            self._masks = [
                keras.Variable(np.ones(variable.shape, bool), dtype="bool", trainable=False, name="mask")
                for variable in self._variables
            ]
        self._stored = [np.ones(variable.shape, bool) for variable in self._variables]
        self._spliced: Spliced | None = None
        if splicing:
            self._spliced = Spliced(self._live, self._variables, self._masks, model.distribute_strategy)
        if entry is None:
            self._backup.write(begin, self._stored, begin=begin, updated=False)
        else:
            self._begin = entry.meta["begin"]
            if entry.meta["updated"]:
                self._next = rule.next_update(entry.step - self._begin)
            self._set(entry.masks)
            if self._spliced is not None and entry.values:
                self._spliced.restore(entry.values)
        rule.attach(self._live)
        if optimizer is None:
            for variable, mask in zip(self._variables, self._masks, strict=True):
                self._live.constrain(variable, functools.partial(_masked, mask))
            self._live.rebuild()

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Path of a kernel -> its mask as it is now, bool, False where the weight is held at zero."""
        return {view.path: mask.copy() for view, mask in zip(self._rule.selection.kernels, self._stored, strict=False)}

    @property
    def is_blind(self) -> bool:
        """Whether something here must see the optimizer's updates and has seen none yet."""
        return self.waits or (self._spliced is not None and not self._spliced.seen)

    @property
    def complete(self) -> bool:
        """Whether the rule has made its last update."""
        return self._next is None

    @property
    def step(self) -> int:
        """Optimizer updates since the rule began."""
        return updates(self._optimizer) - self._begin

    def batch_begins(self) -> None:
        """Changes the masks if it is time; reads the step from the device only when it may be."""
        if self._batches_left <= 0:
            self.update_if_due()
        self._batches_left -= self.model.steps_per_execution

    def hold(self) -> None:
        """Zeroes what the masks leave out, without a look at the values: one compiled call, for each step of a loop."""
        if self._hold is None:
            import tensorflow as tf

            self._hold = tf.function(self._mask_all, autograph=False)
        self._hold()

    def update_if_due(self) -> None:
        """Changes the masks if the rule has an update at or before this step."""
        step = self.step
        if self._next is not None and step >= self._next and not getattr(self.model, "stop_training", False):
            try:
                masks = self._new_masks(step)
            except Exception:
                self.release()
                raise
            self.waits = masks is None
            if masks is None:
                return
            self._next = self._rule.next_update(step)
            # On disk first: no backup of weights with these zeros can come before their masks.
            self._backup.write(step + self._begin, masks, begin=self._begin, updated=True)
            self._set(masks)
            self._write_spliced(updated=True)
        self._batches_left = np.inf if self._next is None else self._next - step

    def apply(self) -> bool:
        """Zeroes what the masks leave out, in an optimizer's averages too; True if that changed a weight."""
        changed = False
        for own, mask, stored in zip(self._variables, self._masks, self._stored, strict=True):
            for variable in [own, *averages(self._optimizer, own)]:
                if _numpy(variable).any(where=~stored):
                    changed = changed or variable is own
                    variable.assign(_masked(mask, variable))
        return changed

    def _mask_all(self) -> None:
        for variable, mask in zip(self._variables, self._masks, strict=True):
            variable.assign(_masked(mask, variable))

    def epoch_ended(self) -> None:
        """Stores what a backup of this moment needs, and lets go of what no backup can need any more."""
        self._write_spliced(updated=self._next != self._rule.next_update(-1))
        self._backup.epoch_ended(updates(self._optimizer))

    def release(self) -> None:
        """Takes the masks off. The zeros stay until training changes them."""
        self._live.release()

    def _new_masks(self, step: int) -> list[np.ndarray] | None:
        if self._spliced is None:
            return self._rule.masks(self.model, step, self._stored)
        self._spliced.reveal()
        try:
            return self._rule.masks(self.model, step, self._stored)
        finally:
            self.apply()

    def _set(self, masks: list[np.ndarray]) -> None:
        before, self._stored = self._stored, masks
        if self._spliced is not None:
            self._spliced.reveal()
        for variable, mask in zip(self._masks, masks, strict=True):
            variable.assign(mask)
        if self._spliced is not None:
            self._spliced.hide()
        self.apply()
        if self._spliced is None:
            self._start_anew(before)

    def _write_spliced(self, *, updated: bool) -> None:
        if self._spliced is not None:
            now = updates(self._optimizer)
            self._backup.write(now, self._stored, begin=self._begin, updated=updated, values=self._spliced.values())

    def _start_anew(self, before: list[np.ndarray]) -> None:
        """Weights whose mask came back start at zero, without the momentum of the time they were out."""
        for variable, old, new in zip(self._variables, before, self._stored, strict=True):
            returned = new & ~old
            if returned.any():
                for kept in slots(self._optimizer, variable):
                    kept.assign(ops.where(returned, ops.zeros_like(kept), kept))

    def _identity(self) -> dict[str, Any]:
        """What the masks of a backup must have been made with, to be this run's."""
        # By place, not by name: Keras numbers unnamed layers on, so that a net built again has other names.
        selection = self._rule.selection
        places = [[view.index, list(view.variable.shape)] for view in selection.kernels]
        others = [list(variable.shape) for variable in selection.variables[len(places) :]]
        return {**self._rule.identity(), "kernels": places + others}


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
