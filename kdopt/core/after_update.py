"""A function of a Variable that runs once after each real optimizer update, inside the compiled step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from kdopt.core.optimizers import innermost, second_moment, variable_key

Tensor = Any


@dataclass(frozen=True)
class Update:
    """The optimizer update that has just been made.

    Attributes:
        learning_rate: Scalar tensor.
        second_moment: Bias-corrected estimate of E[g^2] (see `optimizers.second_moment`), or `None`.
        epsilon: Float that the optimizer adds to its square root; 0 without one, and for RMSprop, which adds it inside.
        step: Integer tensor, number of this update in the optimizer's life, from 1.
    """

    learning_rate: Tensor
    second_moment: Tensor | None
    epsilon: float
    step: Tensor


class AfterUpdate:
    """One function on one Variable. Made by `Live.after_update`.

    Args:
        model: Compiled `keras.Model`.
        variable: Trainable Variable.
        function: (tensor, `Update`) -> tensor of the same shape.
    """

    owner: Any = None  # the `Live` that made it

    def __init__(
        self, model: keras.Model, variable: keras.Variable, function: Callable[[Tensor, Update], Tensor]
    ) -> None:
        optimizer = innermost(model.optimizer)
        if hasattr(optimizer, "optimizers") and not optimizer.built:  # before that a MultiOptimizer holds none
            with model.distribute_strategy.scope():
                optimizer.build(model.trainable_variables)
        self.key, self.function = variable_key(variable), function
        self._optimizers = list(getattr(optimizer, "optimizers", [optimizer]))  # a MultiOptimizer holds several
        for part in self._optimizers:
            chain = vars(part).get("update_step")
            if not isinstance(chain, _UpdateChain):
                chain = part.update_step = _UpdateChain(part)
            chain.parts.append(self)

    def release(self) -> None:
        """Gives the optimizer its own `update_step` back when nobody else needs it."""
        for part in self._optimizers:
            chain = part.update_step
            chain.parts.remove(self)
            if not chain.parts:
                del part.update_step


class _UpdateChain:
    """Stands for `update_step` of an optimizer, which Keras calls for each Variable of a real update only."""

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer = optimizer
        self.original = optimizer.update_step
        self.parts: list[AfterUpdate] = []

    def __call__(self, gradient: Tensor, variable: Any, learning_rate: Tensor) -> None:
        self.original(gradient, variable, learning_rate)
        key = self.optimizer._var_key(variable)
        functions = [part.function for part in self.parts if part.key == key]
        if not functions:
            return
        update = Update(
            learning_rate=ops.cast(learning_rate, variable.dtype),
            second_moment=second_moment(self.optimizer, variable),
            epsilon=float(getattr(self.optimizer, "epsilon", 0.0) or 0.0) if hasattr(self.optimizer, "beta_2") else 0.0,
            step=self.optimizer.iterations + 1,
        )
        value = ops.convert_to_tensor(variable)
        for function in functions:
            value = function(value, update)
        self.optimizer.assign(variable, value)
