"""Growing regularization: weights that are to go are pushed out slowly, then removed."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, Skipped
from kdopt.core.live import Live, callback_list
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import averages, updates
from kdopt.core.validation import check_fraction, check_integer, check_one_of, check_positive
from kdopt.regularizers.choosing import Layers, choose
from kdopt.regularizers.elementwise import L1
from kdopt.regularizers.grouping import Grouping, layout_of

Logs = dict[str, Any]
GROUPS = ("weights", "out_channels", "in_channels", "rows", "columns", "blocks")


def weakest(weights: np.ndarray, sparsity: float, grouping: Grouping | None) -> np.ndarray:
    """Marks the groups with the least mean |w|, round(sparsity * number of groups) of them, ties by position.

    Returns: bool array of the shape of `weights`, True where a weight is to go.
    """
    size = np.abs(np.asarray(weights, "float64"))
    if grouping is not None:
        parts = ops.convert_to_numpy(grouping.split(size))
        totals = parts.sum(axis=grouping.axes, keepdims=True)
        score = totals / ops.convert_to_numpy(grouping.sizes(weights.shape))
    else:
        parts, score = size, size
    goes = np.zeros(score.size, bool)
    goes[np.argsort(score, axis=None, kind="stable")[: round(sparsity * score.size)]] = True
    goes = np.broadcast_to(goes.reshape(score.shape), parts.shape)
    return goes if grouping is None else ops.convert_to_numpy(grouping.merge(goes, weights.shape)).astype(bool)


def grown(step: int, increment: float, frequency: int, ceiling: float) -> float:
    """lambda after `step` updates: min(increment * floor(step / frequency), ceiling)"""
    return min(increment * (step // frequency), ceiling)


class GrowingRegularization(keras.callbacks.Callback):
    """An L2 penalty that grows until the weights it is on can be removed without harm.

        every `frequency` updates:  lambda <- min(lambda + increment, ceiling)
        loss <- loss + lambda / 2 * sum over the chosen weights w^2
        at the ceiling:  the chosen weights <- 0, and stay so until the end of this fit

    `method="greg-1"`: chosen are the groups with the least mean |w| when training begins. `method="greg-2"`:
    at first the penalty is on all weights, which sets the needed ones apart from the others; when lambda
    reaches `pick_at` the weakest are chosen and it goes on for those alone. Made for SGD: the adaptive step
    of Adam divides the penalty's gradient away. Plan for at least ceiling / increment * frequency updates,
    and some to recover. lambda * learning rate must stay below 2, or the chosen weights diverge. In a `fit`
    that `BackupAndRestore` resumes, lambda goes on where it was and the weakest are chosen anew. Stand it
    after `EarlyStopping(restore_best_weights=True)` in the list of callbacks, which may bring weights back.

    Logs at the end of an epoch: `strength/growing`, `penalty/growing`.

    Args:
        sparsity: Float in [0, 1), share of the groups of each kernel that go.
        increment: Float > 0. Defaults to `1e-4`.
        frequency: Integer >= 1, optimizer updates. Defaults to `5`.
        ceiling: Float > 0. Defaults to `1.0`.
        method: `"greg-1"` (default) or `"greg-2"`.
        pick_at: Float in (0, ceiling), for `"greg-2"`. Defaults to `0.01`.
        groups: `"weights"` (each by itself) or as in `kdopt.regularizers.grouping.Grouping`. Defaults to
            `"out_channels"`.
        block_shape: Tuple of two integers, for `groups="blocks"` only.
        layers: What to choose, see `kdopt.core.kernels.select`. Defaults to `None`: all;
            leave out the last layer with `groups="out_channels"`, or classes go.

    Example:
    ```
    growing = GrowingRegularization(0.5, increment=1e-3, layers=["conv_1", "conv_2"])
    model.fit(x, y, epochs=20, callbacks=[growing])
    ```

    Reference: Wang, Qin, Zhang & Fu, "Neural Pruning via Growing Regularization", ICLR 2021, algorithm 1. There
        the weights that stay lose their decay meanwhile, those at the ceiling train on for a while, and what goes is
        chosen anew at the end; here none of it.
    """

    def __init__(
        self,
        sparsity: float,
        increment: float = 1e-4,
        frequency: int = 5,
        ceiling: float = 1.0,
        method: str = "greg-1",
        pick_at: float = 0.01,
        groups: str = "out_channels",
        block_shape: tuple[int, int] | None = None,
        layers: Layers = None,
    ) -> None:
        super().__init__()
        require_tensorflow("GrowingRegularization")
        self.sparsity = check_fraction("sparsity", sparsity)
        self.increment = check_positive("increment", increment)
        self.frequency = check_integer("frequency", frequency)
        self.ceiling = check_positive("ceiling", ceiling)
        self.method = check_one_of("method", method, ("greg-1", "greg-2"))
        self.pick_at = check_positive("pick_at", pick_at)
        if self.method == "greg-2" and self.pick_at >= self.ceiling:
            raise ValueError(f"`pick_at` must be less than ceiling={ceiling}; got {pick_at}.")
        self.groups = check_one_of("groups", groups, GROUPS)
        if groups == "weights" and block_shape is not None:
            raise ValueError(f"`block_shape` belongs to groups='blocks'; got groups='weights', {block_shape=}.")
        self.block_shape = None if groups == "weights" else Grouping(groups, block_shape).block_shape
        self.layers = layers
        self.kernels: list[KernelView] = []
        self.skipped: list[Skipped] = []
        self._live: Live | None = None
        self._begin, self._strength = 0, 0.0
        self._removed, self._chosen, self._has_run = False, False, False

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._begin = updates(model.optimizer)  # now: a backup is restored later, and brings its own step
        self._has_run = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.release()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if self._live is None and (self._has_run or all(layer.built for layer in self.model._flatten_layers())):
            self._attach()  # layers that the first batch has not built are never called
        self._grow()

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._has_run = True

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._live is None:
            self._attach()
        self._grow()
        if logs is not None and self._live is not None:
            logs["strength/growing"] = self._strength
            pairs = zip(self.kernels, self._masks, strict=True)
            logs["penalty/growing"] = sum(float(self._penalty(mask, view.variable)) for view, mask in pairs)

    def on_train_end(self, logs: Logs | None = None) -> None:
        self._grow()
        if self._live is not None and not self._removed:
            warn_user(
                f"GrowingRegularization: training ended at lambda = {self._strength:g} of {self.ceiling:g}, so "
                "nothing was removed. Train longer, or use a larger increment or a smaller frequency."
            )
        elif self._live is not None:
            self._zero()  # also what an average, or a restored epoch, has put in
        self.release()

    def release(self) -> None:
        """Takes everything off the model, e.g. after an interrupted `fit`. The zeros there are stay."""
        if self._live is not None:
            self._live.release()
        self._live, self._strength, self._removed, self._chosen = None, 0.0, False, False

    def _attach(self) -> None:
        self.kernels, self.skipped = choose(self.model, L1(), self.layers, "GrowingRegularization")
        self._live = Live(self.model, callback_list(self))
        with self.model.distribute_strategy.scope():
            self._lambda = keras.Variable(0.0, dtype="float32", trainable=False, name="lambda")
            self._gone = keras.Variable(False, dtype="bool", trainable=False, name="gone")
            self._masks = [
                keras.Variable(np.ones(view.variable.shape, bool), dtype="bool", trainable=False, name="goes")
                for view in self.kernels
            ]
        for view, mask in zip(self.kernels, self._masks, strict=True):
            self._live.penalize(view.variable, functools.partial(self._penalty, mask))
            self._live.constrain(view.variable, functools.partial(self._removing, mask))
        self._live.rebuild()

    def _penalty(self, mask: keras.Variable, weights: Any) -> Any:
        squares = ops.square(ops.cast(weights, "float32")) * ops.cast(mask, "float32")
        return ops.convert_to_tensor(self._lambda) / 2 * ops.sum(squares)

    def _removing(self, mask: keras.Variable, weights: Any) -> Any:
        return ops.where(ops.logical_and(mask, self._gone), ops.zeros_like(weights), weights)

    def _grow(self) -> None:
        """Brings lambda to this step; chooses and removes when it is time."""
        if self._live is None or self._removed:
            return
        strength = grown(updates(self.model.optimizer) - self._begin, self.increment, self.frequency, self.ceiling)
        if not self._chosen and (self.method == "greg-1" or strength >= self.pick_at):
            self._choose()
        self._lambda.assign(strength)
        self._strength = strength
        if strength >= self.ceiling:
            self._removed = True
            self._gone.assign(True)
            self._zero()

    def _choose(self) -> None:
        for view, mask in zip(self.kernels, self._masks, strict=True):
            grouping = None
            if self.groups != "weights":
                grouping = Grouping(self.groups, self.block_shape, layout_of(view))
            mask.assign(weakest(ops.convert_to_numpy(view.variable), self.sparsity, grouping))
        self._chosen = True

    def _zero(self) -> None:
        for view, mask in zip(self.kernels, self._masks, strict=True):
            for variable in [view.variable, *averages(self.model.optimizer, view.variable)]:
                variable.assign(ops.where(mask, ops.zeros_like(variable), variable))
