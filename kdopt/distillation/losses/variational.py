"""Features of the teacher that the student can predict, and how surely."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.validation import check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.projectors import channels_of
from kdopt.distillation.taps import Tapped, Taps

_LEAST, _MOST = 1e-5, 500.0  # variance


class ChannelVariance(keras.layers.Layer):
    """One trained variance for each channel: softplus(alpha) + 1e-5.

    Args:
        initial: Float in (1e-5, 500), the variance it starts with.
    """

    def __init__(self, initial: float, **options: Any) -> None:
        super().__init__(**options)
        self.initial = initial

    def build(self, input_shape: Any) -> None:
        start = keras.initializers.Constant(math.log(math.expm1(self.initial - _LEAST)))
        self.alpha = self.add_weight(shape=(input_shape[-1],), initializer=start, name="alpha")

    def call(self, inputs: Any) -> Any:
        del inputs
        return ops.softplus(ops.cast(self.alpha, "float32")) + _LEAST


@DISTILLATION_LOSSES.register("vid")
class VID(FeatureLoss):
    """The student keeps as much information on the teacher's features as it can.

        loss = mean_c [ log sigma_c + (t_c - m(s)_c)^2 / (2 sigma_c^2) ] at each position

    m is a small net of 1x1 convolutions, sigma_c^2 a trained variance for each channel; both are trained beside the
    student, so that channels it cannot predict count less. May be negative.

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`. The projector is m: `"auto"` makes three 1x1
            convolutions with ReLU between, also for equal channels. Defaults to `"stages"` and `"auto"`.
        variance: Float in (1e-5, 500), of each channel at the start. Defaults to `5.0`, the authors'.

    Raises: ValueError.

    Reference: Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019, equations 5 and 6.
    """

    def __init__(
        self,
        student_tap: Taps = "stages",
        teacher_tap: Taps | None = None,
        *,
        variance: float = 5.0,
        **options: Any,
    ) -> None:
        super().__init__(student_tap, teacher_tap, **options)
        self.variance = check_positive("variance", variance)
        if not _LEAST < variance < _MOST:
            raise ValueError(f"`variance` must be in ({_LEAST}, {_MOST}); got {variance}.")
        self._variances: list[keras.layers.Layer] = []

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        for place, tapped in enumerate(teacher):
            variance = ChannelVariance(self.variance, name=f"{self.name}_variance_{place}", dtype="float32")
            shape = (None, channels_of(tapped.shape, "teacher", tapped.name))
            self._variances.append(self.add_part(variance, shape))

    def make_projector(self, channels: int, name: str) -> keras.layers.Layer:
        hidden = [keras.layers.Dense(channels, activation="relu", dtype="float32") for _ in range(2)]
        return keras.Sequential([*hidden, keras.layers.Dense(channels, dtype="float32")], name=name)

    def needs_projector(self, teacher: int, student: int) -> bool:
        return True

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            t, s = self.prepared(place, theirs.output, ours.output)
            values.append(negative_log_likelihood(t, s, self._variances[place](t)))
        return values

    def get_config(self) -> dict[str, Any]:
        return {"variance": self.variance, **super().get_config()}


def negative_log_likelihood(teacher: Any, mean: Any, variance: Any) -> Any:
    """Of a Gaussian, without its constant: mean over channels of log sigma + (t - m)^2 / (2 sigma^2).

    Args:
        teacher, mean: Shape (batch, positions ..., channels).
        variance: Shape (channels,).

    Returns: shape (batch, positions ...).
    """
    return 0.5 * ops.mean(ops.log(variance) + ops.square(teacher - mean) / variance, axis=-1)
