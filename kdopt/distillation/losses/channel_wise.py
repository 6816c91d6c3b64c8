"""Dense prediction: where in the image each class is."""

import math
from typing import Any

from keras import ops

from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.tempered import TemperedLoss
from kdopt.distillation.scheduled import now


def channel_wise(teacher: Any, student: Any, temperature: Any) -> Any:
    """Divergence of each channel's distribution over the positions.

        loss = T^2 / C * sum_c sum_i f(t)_ci * log(f(t)_ci / f(s)_ci),    f(z)_ci = softmax over i of z_ci / T

    Args:
        teacher, student: Shape (batch, positions ..., channels).
        temperature: Float > 0.

    Returns: shape (batch,).

    Reference: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021, equations 4 and 5.
    """
    log_p, log_q = (ops.log_softmax(_rows(values) / temperature, axis=1) for values in (teacher, student))
    return temperature**2 * ops.mean(ops.sum(ops.exp(log_p) * (log_p - log_q), axis=1), axis=-1)


def _rows(values: Any) -> Any:
    positions = values.shape[1:-1]
    if None in positions:
        return ops.reshape(values, (ops.shape(values)[0], -1, values.shape[-1]))
    return ops.reshape(values, (-1, math.prod(positions), values.shape[-1]))


@DISTILLATION_LOSSES.register("channel_wise")
class ChannelWise(TemperedLoss):
    """For segmentation and other maps: each class is at the places where the teacher sees it.

    Weighs the few positions that matter to a class more than the many that do not, where a divergence at each position
    weighs all alike. It looks at the logits of the outputs, whatever makes probabilities of them.

    Args:
        temperature: Float > 0 or a schedule. Defaults to `4.0`.
        activation, output, name: As in `DistillationLoss`.

    Raises: ValueError at the first step for outputs without positions.

    Reference: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
    """

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax") -> Any:
        """`channel_wise`; shape (batch,)."""
        if len(student.shape) < 3:
            raise ValueError(
                f"ChannelWise compares positions, but the outputs have shape {tuple(student.shape)}; it takes (batch, "
                "positions ..., classes). Use SoftTargets for one class vector a sample."
            )
        return channel_wise(teacher, student, now(self.temperature))
