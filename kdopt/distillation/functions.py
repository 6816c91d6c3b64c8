"""A plain function as a distillation loss."""

from collections.abc import Callable
from typing import Any, Self

import keras
import tensorflow as tf
from keras import ops

from kdopt.distillation.losses.base import DistillationLoss, snake_case
from kdopt.distillation.reduction import common_mask, reduced

Function = Callable[[Any, Any], Any]


@keras.saving.register_keras_serializable("kdopt")
class FunctionLoss(DistillationLoss):
    """`function(teacher_outputs, student_outputs)` on the outputs as the models give them, in float32.

    Made of a plain function in `Distiller(distillation_losses=[function])`. To be saved with the Distiller the function
    must be registered: `@keras.saving.register_keras_serializable()`.

    Args:
        function: Returns one value per sample, shape (batch, ...), or a scalar; a scalar can honor no sample weights.
        name: The loss is logged as `{name}_loss`. Defaults to the function's name.
    """

    reads_logits = False

    def __init__(self, function: Function, *, name: str | None = None) -> None:
        own = getattr(function, "__name__", type(function).__name__)
        super().__init__(name=name or ("function" if own == "<lambda>" else snake_case(own)))
        self.function = function

    def value(self, teacher: Any, student: Any, sample_weight: Any) -> Any:
        """The scalar of one batch.

        Raises: ValueError for sample weights or masks where the function returns no value for each sample or position.
        """
        masks = [
            common_mask(*both) for both in zip(keras.tree.flatten(teacher), keras.tree.flatten(student), strict=False)
        ]
        batch = keras.tree.flatten(student)[0].shape[0]
        teacher = keras.tree.map_structure(lambda one: ops.stop_gradient(ops.cast(one, "float32")), teacher)
        student = keras.tree.map_structure(lambda one: ops.cast(one, "float32"), student)
        values = ops.cast(ops.convert_to_tensor(self.function(teacher, student)), "float32")
        mask = next((mask for mask in masks if mask is not None), None)
        if mask is not None and (len(masks) > 1 or len(values.shape) < len(mask.shape)):
            raise ValueError(
                f"The distillation function {self.name!r} must return one value for each position of one output, shape "
                f"{tuple(mask.shape)} or with more axes, so that masked positions can be left out; it returned shape "
                f"{tuple(values.shape)}."
            )
        if len(values.shape) and values.shape[0] is not None and values.shape[0] != batch:
            raise ValueError(
                f"The distillation function {self.name!r} must return one value per sample, shape (batch,), or a "
                f"scalar; it returned shape {tuple(values.shape)} for outputs of shape "
                f"{tuple(keras.tree.flatten(student)[0].shape)}."
            )
        if len(values.shape):
            return reduced(values, sample_weight, mask, owner=self.name)
        if sample_weight is not None:
            raise ValueError(
                f"The distillation function {self.name!r} returns a scalar, which cannot be weighted by sample_weight "
                "or class_weight. Return one value per sample, shape (batch,)."
            )
        return values / tf.distribute.get_strategy().num_replicas_in_sync

    def get_config(self) -> dict[str, Any]:
        return {"function": keras.saving.serialize_keras_object(self.function), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(keras.saving.deserialize_keras_object(config["function"]), name=config["name"])
