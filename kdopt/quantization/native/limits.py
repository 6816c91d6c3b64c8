"""The ranges of a model as Variables."""

from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.quantization.native.execution import Limits


@keras.saving.register_keras_serializable("kdopt")
class Ranges(keras.layers.Layer):
    """The range of every tensor that has one, in one Variable.

    Attributes:
        limits: Variable (ranges, 2): smallest value <= 0, largest >= 0.
        batches: Variable (), how many training batches they have followed; large once they were calibrated.
        steps: Variable (), how many training steps there were.
        frozen: Variable (), 1 where ranges stay as they are.
        learned: Variable (ranges, 2) that an optimizer trains, `limits` follow it; None where ranges are observed.
    """

    def __init__(self, count: int, learned: bool = False, **kwargs: Any) -> None:
        super().__init__(dtype="float32", **kwargs)
        self.learned = None
        if learned:
            self.learned = self.add_weight((count, 2), initializer="zeros", name="learned")
        self.limits = self.add_weight(
            (count, 2), initializer="zeros", trainable=False, name="limits", aggregation="mean"
        )
        # float32, not an integer: XLA keeps small integers of a training step on the host.
        self.batches, self.steps, self.frozen = (
            self.add_weight((), initializer="zeros", trainable=False, name=name, aggregation="mean")
            for name in ("batches", "steps", "frozen")
        )
        self.built = True

    def get_prunable_weights(self) -> list[Any]:
        """Ranges are no kernels."""
        return []

    def set(self, limits: np.ndarray) -> None:
        """Sets all ranges."""
        self.limits.assign(limits)
        if self.learned is not None:
            self.learned.assign(limits)

    def pairs(self) -> list[Limits]:
        """The limits of each range as scalars."""
        limits = self.limits.value
        count = limits.shape[0]
        flat = ops.unstack(ops.reshape(limits, (-1,)), 2 * count) if count else []
        return [(flat[2 * row], flat[2 * row + 1]) for row in range(count)]
