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
import numpy as np
from keras import ops

Tensor = Any


class _Chain:
    """What a Variable calls while something of ours is attached: the user's function, then ours."""

    def __init__(self, user: Callable[[Tensor], Tensor] | None) -> None:
        self.user = user
        self.parts: list[tuple[Live, Callable[[Tensor], Tensor]]] = []


class _ConstraintChain(_Chain):
    def __call__(self, value: Tensor) -> Tensor:
        value = ops.convert_to_tensor(value)
        if self.user is not None:
            value = self.user(self._ours(value))  # so that a norm bound sees the weights that stay
        return self._ours(value)

    def _ours(self, value: Tensor) -> Tensor:
        for _, function in self.parts:
            value = function(value)
        return value


class _RegularizerChain(_Chain):
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
        self._accumulators: list[GradientAccumulator] = []

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
    ) -> "GradientAccumulator":
        """Sums `transform(variable, gradient)` over batches, inside the compiled step.

        Gradients arrive unscaled (mixed precision), summed over replicas, before clipping; a batch
        with a non-finite gradient that the loss scaling skips is not counted. With gradient
        accumulation every batch counts. Cost: one accumulator of the size of each variable.

        Args:
            variables: Trainable Variables of the model.
            transform: (variable, gradient) -> tensor of the variable's shape. Defaults to the gradient;
                `lambda w, g: g * g` gives the empirical Fisher diagonal.
        """
        accumulator = GradientAccumulator(self.model, list(variables), transform)
        self._accumulators.append(accumulator)
        return accumulator

    def rebuild(self) -> None:
        """Makes the model compile its train step anew at the next batch, also in the middle of `fit`."""
        self.model.make_train_function(force=True)

    def release(self) -> None:
        """Takes everything off and makes the model compile its train step anew when next needed."""
        for slot, variable in self._attached:
            chain = getattr(variable, slot)
            if not isinstance(chain, _Chain):
                continue  # the user has set another one meanwhile: it stays
            chain.parts = [part for part in chain.parts if part[0] is not self]
            if not chain.parts:
                setattr(variable, slot, chain.user)
        for accumulator in self._accumulators:
            accumulator.release()
        if self._attached or self._accumulators:
            self.model.train_function = None
        self._attached, self._accumulators = [], []

    def _attach(self, slot: str, variable: keras.Variable, function: Callable[[Tensor], Tensor]) -> None:
        chain = getattr(variable, slot)
        if isinstance(chain, _Chain):
            for owner in {owner for owner, _ in chain.parts}:
                if owner.run is not None and self.run is not None and owner.run is not self.run:
                    owner.release()
            chain = getattr(variable, slot)
        if not isinstance(chain, _Chain):
            chain = _CHAINS[slot](chain)
            setattr(variable, slot, chain)
        chain.parts.append((self, function))
        self._attached.append((slot, variable))


class GradientAccumulator:
    """Sums of a function of the gradients, gathered inside the compiled step. Made by `Live.accumulate`."""

    def __init__(
        self,
        model: keras.Model,
        variables: list[keras.Variable],
        transform: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._optimizer = innermost(model.optimizer)
        self._transform = transform
        self._index = {_key(v): i for i, v in enumerate(variables)}
        with model.distribute_strategy.scope():
            self._sums = [
                keras.Variable(np.zeros(v.shape), dtype="float32", trainable=False, aggregation="only_first_replica")
                for v in variables
            ]
            self._count = keras.Variable(0, dtype="int32", trainable=False, aggregation="only_first_replica")
        chain = vars(self._optimizer).get("apply")
        if not isinstance(chain, _ApplyChain):
            chain = self._optimizer.apply = _ApplyChain(self._optimizer)
        chain.parts.append(self)

    def sums(self) -> list[np.ndarray]:
        """Sum over the batches since the start or the last `reset`, one array per variable, float32."""
        return [ops.convert_to_numpy(total) for total in self._sums]

    def batches(self) -> int:
        """Number of batches in the sums."""
        return int(self._count.numpy())

    def reset(self) -> None:
        """Sets sums and count to zero."""
        for variable in [*self._sums, self._count]:
            variable.assign(ops.zeros_like(variable))

    def release(self) -> None:
        """Stops summing; gives the optimizer its own `apply` back when nobody else needs it."""
        chain = self._optimizer.apply
        chain.parts.remove(self)
        if not chain.parts:
            del self._optimizer.apply

    def _add(self, grads: list[Tensor], variables: list[keras.Variable]) -> None:
        for gradient, variable in zip(grads, variables, strict=True):
            index = self._index.get(_key(variable))
            if index is not None and gradient is not None:
                value = self._transform(ops.convert_to_tensor(variable), ops.cast(gradient, variable.dtype))
                self._sums[index].assign_add(ops.cast(value, "float32"))
        self._count.assign_add(1)


class _ApplyChain:
    """Stands for `apply` of the innermost optimizer, where gradients are unscaled and finite."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer = optimizer
        self.original = optimizer.apply
        self.parts: list[GradientAccumulator] = []

    def __call__(self, grads: Iterable[Tensor], trainable_variables: Iterable[keras.Variable] | None = None) -> None:
        grads = list(grads)
        variables = list(self.optimizer._trainable_variables if trainable_variables is None else trainable_variables)
        total = self._of_the_whole_batch(grads)
        for part in self.parts:
            part._add(total, variables)
        self.original(grads, trainable_variables)

    def _of_the_whole_batch(self, grads: list[Tensor]) -> list[Tensor]:
        """Dense gradients, without the static loss scale, summed over the replicas."""
        import tensorflow as tf

        scale = self.optimizer.loss_scale_factor or 1.0
        present = [tf.convert_to_tensor(g) / scale for g in grads if g is not None]
        context = tf.distribute.get_replica_context()
        if present and context is not None and context.num_replicas_in_sync > 1:
            present = context.all_reduce(tf.distribute.ReduceOp.SUM, present)
        summed = iter(present)
        return [None if g is None else next(summed) for g in grads]


def users_own(variable: keras.Variable) -> dict[str, Callable[[Tensor], Tensor] | None]:
    """The user's `constraint` and `regularizer` of a Variable, without anything of ours."""
    slots = {slot: getattr(variable, slot, None) for slot in _CHAINS}
    return {slot: value.user if isinstance(value, _Chain) else value for slot, value in slots.items()}


def updates(optimizer: keras.optimizers.Optimizer) -> int:
    """Real weight updates an optimizer has made in its life.

    Batches that only accumulate gradients, and batches that the loss scaling skips because a gradient
    is not finite, do not count. Reads a value from the device.
    """
    return int(ops.convert_to_numpy(optimizer.iterations))


def innermost(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer inside any loss scaling."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def averages(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> list[keras.Variable]:
    """The moving average an optimizer with `use_ema=True` keeps of `variable`; empty without one."""
    optimizer = innermost(optimizer)
    found = []
    for part in getattr(optimizer, "optimizers", [optimizer]):
        if getattr(part, "use_ema", False) and part.built:
            index = part._trainable_variables_indices.get(_key(variable))
            found.append(None if index is None else part._model_variables_moving_average[index])
    return [average for average in found if average is not None]


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


def _key(variable: keras.Variable) -> Any:
    """Identity of the storage: the same for two Keras Variables that share one tf.Variable."""
    value = getattr(variable, "value", variable)
    if callable(value):
        value = variable
    container = getattr(value, "_distributed_container", None) or getattr(
        getattr(value, "handle", None), "_distributed_container", None
    )
    return (container() if container is not None else value)._unique_id
