"""Sums over the gradients of a running `fit`, gathered inside the compiled step."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.optimizers import innermost, variable_key

Tensor = Any


class GradientAccumulator:
    """Sums of a function of the gradients, gathered inside the compiled step. Made by `Live.accumulate`."""

    owner: Any = None  # the `Live` that made it

    def __init__(
        self,
        model: keras.Model,
        variables: list[keras.Variable],
        transform: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self._optimizer = innermost(model.optimizer)
        self._transform = transform
        self._index = {variable_key(v): i for i, v in enumerate(variables)}
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
            index = self._index.get(variable_key(variable))
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
