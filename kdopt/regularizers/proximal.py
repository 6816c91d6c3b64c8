"""Proximal training: weights that are exactly zero, from a penalty."""

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import numpy as np
from keras import ops

from kdopt.core.after_update import Update
from kdopt.core.kernels import KernelView, Skipped
from kdopt.core.live import Live, callback_list
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import innermost
from kdopt.core.validation import check_one_of
from kdopt.regularizers.base import PENALTIES, Penalty
from kdopt.regularizers.choosing import Layers, choose
from kdopt.regularizers.coupling import CoupledGroups, needs_model
from kdopt.regularizers.elementwise import L1
from kdopt.regularizers.following import Logs, PenaltyCallback, Priced, bind
from kdopt.regularizers.norm_scale import BatchNormScale

Tensor = Any
_RUNNING: "WeakSet[Proximal]" = WeakSet()


def step_size(update: Update, scaling: str) -> Tensor:
    """What the strength is multiplied with in one optimizer update.

        decoupled         learning_rate
        preconditioned    learning_rate / (sqrt(v) + epsilon),     v = bias-corrected second moment

    Returns: scalar, or a tensor of the variable's shape.
    Raises: ValueError for `"preconditioned"` with an optimizer without a second moment.
    """
    if scaling == "decoupled":
        return update.learning_rate
    if update.second_moment is None:
        raise ValueError(
            "Proximal(scaling='preconditioned') needs an optimizer that keeps a second moment of the gradients, e.g. "
            "Adam, AdamW or RMSprop. Use scaling='decoupled' with this one."
        )
    return update.learning_rate / (ops.sqrt(update.second_moment) + update.epsilon)


def together(penalty: Any, members: CoupledGroups, value: Tensor, size: Tensor) -> Tensor:
    """The proximal step on Variables that share channels, when the last of them has just been updated.

    Assigns the others, and returns the new value of the last one.
    """
    values = members.values(ops.cast(value, "float32"))
    new = penalty.shrink_together(values, ops.cast(size, "float32") * ops.cast(penalty.strength, "float32"))
    for variable, own in zip(members.variables[:-1], new[:-1], strict=True):
        variable.assign(ops.cast(own, variable.dtype))
    return ops.cast(new[-1], value.dtype)


class Proximal(PenaltyCallback):
    """Minimizes loss + penalty by proximal steps, so that weights become exactly zero while the model trains.

        w <- optimizer's step on the loss alone
        w <- prox(w) = argmin_x 0.5 * ||x - w||^2 + eta * penalty(x)           once per real optimizer update

    eta is the learning rate (`"decoupled"`), so that with plain SGD this is proximal gradient descent (ISTA),
    and with Adam it acts like the decay of AdamW; or the rate that Adam uses for each weight
    (`"preconditioned"`), so that the optimum is that of loss + penalty with Adam, too. The penalty is not
    part of the loss, and its subgradient in the loss gives no zeros: Adam steps over them. With a momentum
    m, SGD's steps are 1 / (1 - m) as long as its learning rate: use a strength 1 / (1 - m) as large.

    How strong: a weight that no gradient holds loses strength * (sum of the learning rates) in a `fit`, with
    `"decoupled"`; so do all weights of a group, with its size factor. 5,000 updates at 1e-3 with a strength of 0.01
    take away 0.05, about the size of a weight. LeNet-300-100 wants 0.01 for 90 % zeros, 0.1 for 98 %.
    For whole channels begin where strength * (sum of the learning rates) is 0.1, and double or halve it: a net with
    BatchNormalization hardly resists, and between no zero and all zero lies a factor of 2.

    Runs inside the compiled step, after the optimizer's update and before constraints such as pruning masks;
    not for batches that only accumulate gradients or that loss scaling skips. Weights may come back from
    zero. At the end of `fit` everything attached is gone, and the zeros are those of the last update.

    Logs at the end of an epoch: `penalty/<name>`; `sparsity`, the fraction of zeros in the chosen kernels,
    where no other callback logs one; `strength/<name>` if it follows a schedule.

    Args:
        penalty: `Penalty` with a proximal operator, or its name in `PENALTIES`.
        layers: What to choose, see `kdopt.core.kernels.select`. Defaults to `None`: all.
        scaling: `"decoupled"` (default) or `"preconditioned"` (`L1` and `BatchNormScale` only).

    Raises: NotImplementedError at construction for a penalty without a proximal operator; ValueError for an
        unknown scaling, and when training begins for an optimizer that averages the weights (`use_ema`).

    Example:
    ```
    model.fit(x, y, epochs=10, callbacks=[Proximal(GroupLasso(0.01))])
    ```

    Reference: Parikh & Boyd, "Proximal Algorithms", 2014, section 4.2; preconditioned: Yun, Lozano & Yang,
        "Adaptive Proximal Gradient Methods for Structured Neural Networks", NeurIPS 2021, algorithm 1.
    """

    def __init__(self, penalty: Any, layers: Layers = None, scaling: str = "decoupled") -> None:
        super().__init__()
        self.penalty: Penalty = PENALTIES.get(penalty)
        if not self.penalty.has_prox:
            self.penalty.prox(np.zeros(1, "float32"), 0.0)  # raises, with the ones that have one
        self.scaling = check_one_of("scaling", scaling, ("decoupled", "preconditioned"))
        alone = isinstance(self.penalty, (L1, BatchNormScale)) and not needs_model(self.penalty)
        if scaling == "preconditioned" and not alone:
            raise ValueError(
                f"scaling='preconditioned' gives each weight a step of its own; {type(self.penalty).__name__} has no "
                "proximal operator in closed form for that. Use it with L1, or scaling='decoupled'."
            )
        self.layers = layers
        self.kernels: list[KernelView] = []
        self.skipped: list[Skipped] = []
        self._priced: list[Priced] = []
        self._live: Live | None = None

    def priced(self) -> list[Priced]:
        return self._priced

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.release()
        self._release_interrupted()
        optimizer = innermost(self.model.optimizer)
        if any(getattr(part, "use_ema", False) for part in getattr(optimizer, "optimizers", [optimizer])):
            raise ValueError(
                "Proximal: this optimizer replaces the weights by their moving average (use_ema=True), which has no "
                "exact zeros. Compile with use_ema=False."
            )
        if self.is_built():
            self._attach()

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        if self._live is None and self.is_built():
            self._attach()  # Keras has built the model in its first batch, all that it will build
        super().on_train_batch_begin(batch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._live is None:
            self._attach()  # the epoch had one batch
        super().on_epoch_end(epoch, logs)
        if logs is not None:
            logs.setdefault("sparsity", self.sparsity())

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.kernels and self.sparsity() == 0:
            warn_user(
                f"Proximal: no weight is zero. A strength of {self.penalty.strength_now:g} takes that times the sum of "
                "the learning rates from a weight in the whole fit: use a larger one, or train longer."
            )
        if self.kernels and self.sparsity() == 1:
            warn_user(
                f"Proximal: all weights are zero. A strength of {self.penalty.strength_now:g} is too large for this "
                "fit: halve it, or end earlier."
            )
        self.release()

    def sparsity(self) -> float:
        """Fraction of zeros in the chosen kernels, in [0, 1]."""
        values = [ops.convert_to_numpy(view.variable) for view in self.kernels]
        return 1 - float(sum(np.count_nonzero(v) for v in values) / max(1, sum(v.size for v in values)))

    def release(self) -> None:
        """Takes the proximal steps off the model, e.g. after an interrupted `fit`. The zeros there are stay."""
        if self._live is not None:
            self._live.release()
        self._live = None
        _RUNNING.discard(self)

    def _attach(self) -> None:
        self.kernels, self.skipped = choose(self.model, self.penalty, self.layers, "Proximal")
        self._priced = bind(self.penalty, self.kernels, self.model)
        self._live = Live(self.model, callback_list(self))
        for bound, variable in self._priced:
            self._live.after_update(variable, self._step(bound))
        self._live.rebuild()
        _RUNNING.add(self)

    def _step(self, penalty: Any) -> Callable[[Tensor, Update], Tensor]:
        members = getattr(penalty, "members", None)

        def step(value: Tensor, update: Update) -> Tensor:
            try:
                size = step_size(update, self.scaling)
                return penalty.prox(value, size) if members is None else together(penalty, members, value, size)
            except Exception:
                self.release()  # so that the model trains without us
                raise

        return step

    def _release_interrupted(self) -> None:
        """Releases what a `fit` that never ended has left on this model."""
        run = callback_list(self)
        for other in list(_RUNNING):
            if other.model is self.model and (run is None or other not in run.callbacks):
                other.release()
