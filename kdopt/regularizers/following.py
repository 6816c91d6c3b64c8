"""Callbacks that keep penalties to their schedule and put their values into the logs."""

import copy
from collections.abc import Iterator
from typing import Any

import keras

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView
from kdopt.core.live import users_own
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import updates
from kdopt.regularizers.base import Penalty
from kdopt.regularizers.coupling import bound_members, coupled_groups, needs_model
from kdopt.regularizers.norm_scale import BatchNormScale

Logs = dict[str, Any]
Priced = tuple[Penalty, keras.Variable]


class PenaltyCallback(keras.callbacks.Callback):
    """Base: follows the schedules of some penalties while the model trains, and logs them.

    Each `fit` starts the schedules anew, at the optimizer's updates when it is called; a `fit` that
    `BackupAndRestore` resumes goes on where it was. Logs at the end of an epoch: `penalty/<name>`, the sum
    over all Variables, and `strength/<name>` where it follows a schedule. Cost: one evaluation of the
    penalties an epoch; with a schedule, one read of the optimizer's step a batch.
    """

    def __init__(self) -> None:
        super().__init__()
        require_tensorflow(type(self).__name__)
        self._begin = 0
        self._has_run = False

    def priced(self) -> list[Priced]:
        """The penalties with the Variable that each is on."""
        raise NotImplementedError

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._begin = updates(model.optimizer)  # now: a backup is restored later, and brings its own step
        self._has_run = False

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._has_run = True

    def is_built(self) -> bool:
        """Whether Keras has built what it will build: every layer, or those that the first batch went through."""
        return self._has_run or all(layer.built for layer in self.model._flatten_layers())

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self._follow()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self._follow()
        if logs is None:
            return
        for penalty, variable in self.priced():
            key = f"penalty/{penalty.name}"
            logs[key] = logs.get(key, 0.0) + float(penalty(variable))
            if penalty.schedule is not None:
                logs[f"strength/{penalty.name}"] = penalty.strength_now

    def _follow(self) -> None:
        scheduled = {id(p.strength): p for p, _ in self.priced() if p.schedule is not None}
        if scheduled:
            step = updates(self.model.optimizer) - self._begin
            for penalty in scheduled.values():
                penalty.follow(step)


class RegularizationLogger(PenaltyCallback):
    """Follows and logs the penalties that are part of a model's layers.

    Those given as `kernel_regularizer=`, `gamma_regularizer=` and so on, those of `SparseRegularized` and
    of `L0`. What `attach` put on a model is followed and logged by the handle it returned.

    Logs at the end of an epoch: `penalty/<name>`, e.g. `penalty/group_lasso`, summed over the layers, and
    `strength/<name>` where it follows a schedule.

    Example:
    ```
    layer = keras.layers.Dense(10, kernel_regularizer=GroupLasso(schedule))
    model.fit(x, y, callbacks=[RegularizationLogger()])
    ```
    """

    def __init__(self) -> None:
        super().__init__()
        self._priced: list[Priced] | None = None

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._priced = None

    def priced(self) -> list[Priced]:
        if self._priced is None and self.is_built():
            self._priced = list(penalties_of(self.model))
            if not self._priced:
                warn_user(
                    "RegularizationLogger finds no kdopt penalty in this model. Put one into a layer, e.g. "
                    "Dense(10, kernel_regularizer=GroupLasso(1e-4)); give fit the handle of attach otherwise."
                )
        return self._priced or []


def penalties_of(model: keras.Model) -> Iterator[Priced]:
    """The penalties that are part of a built model's layers, with the Variable that each is on."""
    for variable in model.trainable_variables:
        own = users_own(variable)["regularizer"]
        if isinstance(own, Penalty):
            yield own, variable
    for layer in model._flatten_layers():
        if hasattr(layer, "get_penalties"):
            yield from layer.get_penalties()


def bind(penalty: Penalty, views: list[KernelView], model: keras.Model | None = None) -> list[Priced]:
    """The penalty for each kernel, reading it as its layer does; or for each set of channels that layers share.

    Args:
        penalty: `Penalty`.
        views: The chosen Variables.
        model: Whose they are, for channels that layers share. Defaults to `None`: not known.
    """
    if not needs_model(penalty):
        return [(penalty.bound(view), view.variable) for view in views]
    if model is None:
        bound_members(penalty)  # raises
    assert model is not None
    groups, _, _ = coupled_groups(model, views, only=isinstance(penalty, BatchNormScale))
    priced: list[Priced] = []
    for members in groups:
        bound: Any = copy.copy(penalty)
        bound.members = members
        priced.append((bound, members.leader))
    return priced
