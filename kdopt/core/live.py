"""Everything that acts inside a running `fit`.

Keras compiles the train step once. A constraint or regularizer set on a Variable after a first `fit` is
not in the compiled step and silently does nothing; a callback sees neither gradients nor the moment of a
real update. `Live` is the one place that deals with this: it attaches functions to Variables next to the
user's own, rebuilds the train function, counts real updates, accumulates gradients inside the compiled
step, and takes everything off again.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import keras
from keras import ops

from kdopt.core.after_update import AfterUpdate, Update
from kdopt.core.gradients import GradientAccumulator
from kdopt.core.optimizers import innermost

Tensor = Any


class _Chain:
    """What a Variable calls while something of ours is attached: the user's function, then ours.

    The kinds are Keras's own: before 3.15 a Variable takes nothing else.
    """

    def __init__(self, user: Callable[[Tensor], Tensor] | None) -> None:
        self.user = user
        self.parts: list[tuple[Live, Callable[[Tensor], Tensor]]] = []


class _ConstraintChain(_Chain, keras.constraints.Constraint):
    def __call__(self, value: Tensor) -> Tensor:
        value = ops.convert_to_tensor(value)
        if self.user is not None:
            value = self.user(self._ours(value))  # so that a norm bound sees the weights that stay
        return self._ours(value)

    def _ours(self, value: Tensor) -> Tensor:
        for _, function in self.parts:
            value = function(value)
        return value


class _RegularizerChain(_Chain, keras.regularizers.Regularizer):
    def __call__(self, value: Tensor) -> Tensor:
        functions = [] if self.user is None else [self.user]
        return sum(function(value) for function in [*functions, *(function for _, function in self.parts)])


_CHAINS: dict[str, type[_Chain]] = {"constraint": _ConstraintChain, "regularizer": _RegularizerChain}


class Live:
    """Attachments to one model, taken off together by `release`.

    Attach first, then call `rebuild` once; call `release` when done. What the user set on the Variables
    keeps acting and is back alone after `release`, in whatever order several `Live` objects go.

    Args:
        model: `keras.Model` whose `fit` the attachments act in (a `Distiller`, not its student).
        run: Any object that stands for the running `fit`, e.g. its `CallbackList`. Attachments left
            over from another run (a `fit` that was interrupted) are released when this one attaches to
            the same Variable. `None` (default): the attachments outlive a `fit` and stay until `release`.

    Example:
    ```
    live = Live(model)
    live.constrain(layer.kernel, lambda kernel: kernel * mask)
    live.rebuild()
    model.fit(x, y)           # no recompile needed
    live.release()
    ```
    """

    def __init__(self, model: keras.Model, run: object = None) -> None:
        self.model = model
        self.run = run
        self._attached: list[tuple[str, keras.Variable]] = []
        self._hooks: list[GradientAccumulator | AfterUpdate] = []

    def constrain(self, variable: keras.Variable, function: Callable[[Tensor], Tensor]) -> None:
        """Applies `function` to `variable` after every optimizer update, inside the compiled step.

        The user's constraint sees the result of `function`, and `function` is applied again after it:
        function(user(function(w))). With gradient accumulation it runs after every batch, so
        `function` must be idempotent.

        Args:
            variable: Trainable Variable of the model.
            function: Tensor -> tensor of the same shape and dtype.
        """
        self._attach("constraint", variable, function)

    def penalize(self, variable: keras.Variable, function: Callable[[Tensor], Tensor]) -> None:
        """Adds the scalar `function(variable)` to the loss, next to the user's regularizer."""
        self._attach("regularizer", variable, function)

    def accumulate(
        self,
        variables: Iterable[keras.Variable],
        transform: Callable[[Tensor, Tensor], Tensor] = lambda variable, gradient: gradient,
    ) -> GradientAccumulator:
        """Sums `transform(variable, gradient)` over batches, inside the compiled step.

        Gradients arrive unscaled (mixed precision), summed over replicas, before clipping; a batch
        with a non-finite gradient that the loss scaling skips is not counted. With gradient
        accumulation every batch counts. Cost: one accumulator of the size of each variable.

        Args:
            variables: Trainable Variables of the model.
            transform: (variable, gradient) -> tensor of the variable's shape. Defaults to the gradient;
                `lambda w, g: g * g` gives the empirical Fisher diagonal.
        """
        self._release_leftovers("apply")
        accumulator = GradientAccumulator(self.model, list(variables), transform)
        self._keep(accumulator)
        return accumulator

    def after_update(self, variable: keras.Variable, function: Callable[[Tensor, Update], Tensor]) -> None:
        """Applies `function` to `variable` once after each real optimizer update, inside the compiled step.

        Unlike `constrain`, it does not run for a batch that only accumulates gradients or that the loss scaling
        skips. It runs before the constraints, and before a moving average is taken.

        Args:
            variable: Trainable Variable of the model.
            function: (tensor, `Update`) -> tensor of the same shape.
        """
        self._release_leftovers("update_step")
        self._keep(AfterUpdate(self.model, variable, function))

    def _keep(self, hook: GradientAccumulator | AfterUpdate) -> None:
        hook.owner = self
        self._hooks.append(hook)

    def _release_leftovers(self, method: str) -> None:
        """Takes off the optimizer what an interrupted run has left on one of its methods."""
        optimizer = innermost(self.model.optimizer)
        for part in {id(o): o for o in (optimizer, *getattr(optimizer, "optimizers", ()))}.values():
            hooks = getattr(vars(part).get(method), "parts", ())
            for owner in {hook.owner for hook in hooks}:
                if _is_over(owner, self):
                    owner.release()

    def rebuild(self) -> None:
        """Makes the model compile its train step anew at the next batch, also in the middle of `fit`.

        The evaluation step, too, which adds penalties to its loss.
        """
        self.model.make_train_function(force=True)
        self.model.test_function = None

    def release(self) -> None:
        """Takes everything off and makes the model compile its train step anew when next needed."""
        for slot, variable in self._attached:
            chain = getattr(variable, slot)
            if not isinstance(chain, _Chain):
                continue  # the user has set another one meanwhile: it stays
            chain.parts = [part for part in chain.parts if part[0] is not self]
            if not chain.parts:
                setattr(variable, slot, chain.user)
        for hook in self._hooks:
            hook.release()
        if self._attached or self._hooks:
            self.model.train_function = self.model.test_function = None
        self._attached, self._hooks = [], []

    def _attach(self, slot: str, variable: keras.Variable, function: Callable[[Tensor], Tensor]) -> None:
        chain = getattr(variable, slot)
        if isinstance(chain, _Chain):
            for owner in {owner for owner, _ in chain.parts}:
                if _is_over(owner, self):
                    owner.release()
            chain = getattr(variable, slot)
        if not isinstance(chain, _Chain):
            chain = _CHAINS[slot](chain)
            setattr(variable, slot, chain)
        chain.parts.append((self, function))
        self._attached.append((slot, variable))


def _is_over(owner: Live | None, newer: Live) -> bool:
    """Whether `owner` belongs to another run than `newer`, which has begun since."""
    return owner is not None and owner.run is not None and newer.run is not None and owner.run is not newer.run


def users_own(variable: keras.Variable) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """The user's `constraint` and `regularizer` of a Variable, without anything of ours."""
    slots = {slot: getattr(variable, slot, None) for slot in _CHAINS}
    return {slot: value.user if isinstance(value, _Chain) else value for slot, value in slots.items()}


def callback_list(callback: keras.callbacks.Callback) -> keras.callbacks.CallbackList | None:
    """The `CallbackList` of the running `fit` that holds `callback`; `None` in a custom loop.

    Keras gives a callback no reference to the others, so this looks for the list among the callers.
    Call it from a hook of the callback.
    """
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList) and any(c is callback for c in owner.callbacks):
            return owner
        frame = frame.f_back
    return None
