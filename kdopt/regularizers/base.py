"""What a penalty is, and the registry of them."""

import copy
import re
from collections.abc import Callable
from typing import Any, Self

import keras
from keras import ops

from kdopt.core.kernels import KernelView, Skipped, find_kernels
from kdopt.core.registry import Registry
from kdopt.regularizers.grouping import layout_of
from kdopt.regularizers.strength import Strength, StrengthValue

Tensor = Any


class Penalty(keras.regularizers.Regularizer):
    """A price on weights that training pays: penalty(w) = strength * measure(w), in float32.

    Use it as `kernel_regularizer=` of a layer, with `attach` on a built model, in the layer wrapper
    `SparseRegularized`, or in `Proximal`, which alone makes exact zeros. Subclass it, implement
    `measure` (and `shrink`, where it has a closed form), and register it under a name with
    `@PENALTIES.register("name")`. Gradients must be finite at zero.

    Args:
        strength: Float >= 0; or a schedule, any callable optimizer update -> float >= 0, e.g. a
            `kdopt.schedules.Schedule`. A schedule needs a callback that follows it: the handle of
            `attach`, `Proximal`, or `RegularizationLogger` for a `kernel_regularizer=`. Defaults to `1e-4`.
    """

    layout: Any = None  # of the kernel; see `kdopt.regularizers.grouping.Grouping`

    def __init__(self, strength: Strength = 1e-4) -> None:
        self._strength = StrengthValue(strength, type(self).__name__)

    @property
    def name(self) -> str:
        """The class's name in lower case, e.g. `"group_lasso"`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def strength(self) -> Any:
        """Float; or, where it follows a schedule, a Variable with its value now."""
        return self._strength.value

    @property
    def strength_now(self) -> float:
        """The strength as a float, whether it follows a schedule or not."""
        return self._strength.now

    @property
    def schedule(self) -> Callable[[int], float] | None:
        """The schedule of the strength; `None` for a constant."""
        return self._strength.schedule

    @property
    def has_prox(self) -> bool:
        """Whether `prox` works."""
        return type(self).shrink is not Penalty.shrink

    def measure(self, weights: Tensor) -> Tensor:
        """The scalar that `strength` multiplies.

        Args:
            weights: Float32 (or float64) tensor of any shape.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement measure(weights) -> scalar tensor.")

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        """argmin_x 0.5 * ||x - weights||^2 + threshold * measure(x), of the shape of `weights`."""
        with_prox = [name for name in PENALTIES.names() if PENALTIES.get(name).has_prox]
        raise NotImplementedError(
            f"{type(self).__name__} has no proximal operator in closed form. These have one: {', '.join(with_prox)}. "
            "Or add it to the loss: kernel_regularizer=, attach or SparseRegularized."
        )

    def __call__(self, weights: Tensor) -> Tensor:
        self._strength.warn_if_not_followed()
        weights = _float(weights)
        return ops.cast(self.strength, weights.dtype) * self.measure(weights)

    def prox(self, weights: Tensor, step_size: Tensor) -> Tensor:
        """The proximal operator.

            prox(w) = argmin_x  0.5 * ||x - w||^2 + step_size * penalty(x)

        Args:
            weights: Float tensor of any shape.
            step_size: Scalar >= 0; `L1` and `BatchNormScale` also take one value per weight.

        Returns: tensor of the shape and dtype of `weights`.
        Raises: NotImplementedError for a penalty without a closed form.
        """
        values = _float(weights)
        threshold = ops.cast(step_size, values.dtype) * ops.cast(self.strength, values.dtype)
        dtype = getattr(weights, "dtype", values.dtype)
        return ops.cast(self.shrink(values, threshold), keras.backend.standardize_dtype(dtype))

    def follow(self, step: int) -> None:
        """Sets a scheduled strength to its value at `step`, optimizer updates since the schedule began."""
        self._strength.follow(step)

    def targets(self, model: keras.Model) -> tuple[list[KernelView], list[Skipped]]:
        """The Variables of a model that this penalty is made for, and what was left out: its kernels."""
        return find_kernels(model)

    def bound(self, view: KernelView) -> Self:
        """This penalty, reading its weights as the layer of `view` does; the strength stays shared."""
        bound = copy.copy(self)
        bound.layout = self.layout or layout_of(view)
        return bound

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"strength": self._strength.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes the penalty from `get_config()`."""
        if isinstance(config.get("strength"), dict):
            config = {**config, "strength": keras.saving.deserialize_keras_object(config["strength"])}
        return cls(**config)


# A package of its own: there is a criterion `kdopt>L1`, too.
PENALTIES: Registry[Penalty] = Registry("regularizer", Penalty, package="kdopt.regularizers")


def _float(weights: Tensor) -> Tensor:
    """`weights` as a tensor of float32, or of float64 if it is one."""
    weights = ops.convert_to_tensor(weights)
    return weights if keras.backend.standardize_dtype(weights.dtype) == "float64" else ops.cast(weights, "float32")
