"""Features before the ReLU, without what the ReLU takes away."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.validation import check_one_of
from kdopt.distillation.cache.taps import Unseen
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.taps import Tapped, Taps


@DISTILLATION_LOSSES.register("overhaul_feature")
class OverhaulFeature(FeatureLoss):
    """The student's features before the activation come near the teacher's, where the activation lets them through.

        loss = mean_c d(max(t_c, m_c), r(s)_c),      d(t, s) = 0 if s <= t <= 0, else (t - s)^2

    m_c < 0 is the teacher's mean negative response in channel c; r a 1x1 convolution with BatchNormalization, by
    `"auto"` where the channels differ (in the paper always). Tap layers before their ReLU, in the teacher a
    BatchNormalization, whose beta and gamma tell m.

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`; name the taps.
        margin: `"batch_norm"`, from the tapped BatchNormalization of the teacher; or a float <= 0 for all channels.
            Defaults to `"batch_norm"`.

    Raises: ValueError for a teacher's tap that is no BatchNormalization with `margin="batch_norm"`.

    Reference: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, equations 1 to 4.
    """

    def __init__(
        self,
        student_tap: Taps,
        teacher_tap: Taps | None = None,
        *,
        margin: str | float = "batch_norm",
        **options: Any,
    ) -> None:
        super().__init__(student_tap, teacher_tap, **options)
        if isinstance(margin, str):
            check_one_of("margin", margin, ("batch_norm",))
        elif isinstance(margin, bool) or not (isinstance(margin, int | float) and -math.inf < margin <= 0):
            raise ValueError(f"`margin` must be 'batch_norm' or a number <= 0; got {margin!r}.")
        self.margin = margin
        self._normalizations: list[Any] = []

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        self._normalizations = [self._normalization_of(tapped) for tapped in teacher]

    def make_projector(self, channels: int, name: str) -> keras.layers.Layer:
        linear = keras.layers.Dense(channels, use_bias=False, dtype="float32")
        return keras.Sequential([linear, keras.layers.BatchNormalization(dtype="float32")], name=name)

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            t, s = self.prepared(place, theirs.output, ours.output)
            values.append(partial_distance(ops.maximum(t, self._margin_of(place)), s))
        return values

    def _normalization_of(self, tapped: Tapped) -> Any:
        layer = tapped.operation
        if isinstance(self.margin, str) and isinstance(layer, Unseen):
            raise ValueError(
                f"OverhaulFeature reads the margin from the teacher's {tapped.name!r}, and of this teacher only a "
                "cache is there. Open it with the model, `TeacherCache.open(path, teacher=model)`, or give a number: "
                "`margin=-0.1`."
            )
        if isinstance(self.margin, str) and not isinstance(layer, keras.layers.BatchNormalization):
            raise ValueError(
                f"OverhaulFeature reads the margin from a BatchNormalization, but {tapped.name!r} of the teacher is "
                f"{type(layer).__name__}. Tap the BatchNormalization before the ReLU, or give a number: `margin=-0.1`."
            )
        return layer

    def _margin_of(self, place: int) -> Any:
        """One for each channel, or for all. Read in each step: a loaded teacher gets its weights after `build`."""
        if not isinstance(self.margin, str):
            return float(self.margin)
        layer = self._normalizations[place]
        beta = 0.0 * layer.moving_mean if layer.beta is None else layer.beta
        gamma = 1.0 + 0.0 * beta if layer.gamma is None else layer.gamma
        return ops.stop_gradient(negative_mean(ops.cast(beta, "float32"), ops.abs(ops.cast(gamma, "float32"))))

    def get_config(self) -> dict[str, Any]:
        return {"margin": self.margin, **super().get_config()}


def partial_distance(teacher: Any, student: Any) -> Any:
    """Mean over channels of (t - s)^2, 0 where s <= t <= 0; shape (batch, positions ...)."""
    counts = ops.logical_or(student > teacher, teacher > 0)
    return ops.mean(ops.square(teacher - student) * ops.cast(counts, "float32"), axis=-1)


def negative_mean(mean: Any, deviation: Any) -> Any:
    """E[x | x < 0] of Gaussians: mean - deviation * pdf(a) / cdf(a), a = -mean / deviation.

    Where x < 0 has a probability below 0.001 it is -3 deviations, as in the authors' code.

    Args:
        mean, deviation: Shape (channels,), float32; deviations >= 0.

    Returns: shape (channels,).
    """
    deviation = ops.maximum(deviation, 1e-12)
    a = ops.clip(-mean / deviation, -10.0, 10.0)  # beyond, the density is 0 and its share as well
    cdf = 0.5 * (1.0 + ops.erf(a / math.sqrt(2)))
    pdf = ops.exp(-ops.square(a) / 2) / math.sqrt(2 * math.pi)
    return ops.where(cdf > 1e-3, mean - deviation * pdf / ops.maximum(cdf, 1e-3), -3.0 * deviation)
