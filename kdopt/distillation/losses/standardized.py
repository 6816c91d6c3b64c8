"""Losses on logits that leave the student its own scale: standardized logits, correlations."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.logits import soft_targets
from kdopt.distillation.losses.tempered import TemperedLoss
from kdopt.distillation.scheduled import Scheduled, now

_RESOLUTION = 1e-12  # variance over mean square up to which float32 cannot tell values from a constant
_TINY = 1e-35


def standardized(logits: Any) -> Any:
    """z-scores over the last axis: (z - mean) / standard deviation; 0 where the logits are all alike."""
    return _scaled(logits, -1, None)


def correlation(one: Any, other: Any, axis: int = -1, weight: Any = None) -> Any:
    """Pearson's correlation along an axis, in [-1, 1]; 0 where one of both is constant.

    Args:
        one, other: Floats of one shape.
        axis: Integer. Defaults to `-1`.
        weight: What each value counts, broadcastable to them; or None.
    """
    return ops.squeeze(_mean(_scaled(one, axis, weight) * _scaled(other, axis, weight), axis, weight), axis)


def _scaled(values: Any, axis: int, weight: Any) -> Any:
    centered = values - _mean(values, axis, weight)
    variance = _mean(ops.square(centered), axis, weight)
    # 1 / deviation of a constant would be 10 million and more, and so its gradient.
    known = variance > _RESOLUTION * _mean(ops.square(values), axis, weight) + _TINY
    return centered * ops.where(known, ops.rsqrt(ops.where(known, variance, 1.0)), 0.0)


def _mean(values: Any, axis: int, weight: Any) -> Any:
    if weight is None:
        return ops.mean(values, axis=axis, keepdims=True)
    total = ops.maximum(ops.sum(weight, axis=axis, keepdims=True), _TINY)
    return ops.sum(values * weight, axis=axis, keepdims=True) / total


@DISTILLATION_LOSSES.register("logit_standardization")
class LogitStandardization(TemperedLoss):
    """Soft targets of z-scores: the student keeps mean and scale of its logits, and learns their relations alone.

        loss = T^2 * KL(softmax(Z(t) / T) || softmax(Z(s) / T)),    Z(z) = (z - mean(z)) / std(z)

    A small student need not reach the magnitude of a large teacher's logits.

    Args:
        temperature: Float > 0 or a schedule, of the z-scores. Defaults to `2.0`, the paper's.
        output, name: As in `DistillationLoss`.

    Reference: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1 and equation 11
    (the authors' code divides the variance by classes - 1, which is a slightly higher temperature).
    """

    activations = ("softmax",)

    def __init__(self, temperature: Scheduled = 2.0, **options: Any) -> None:
        super().__init__(temperature, **options)

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax") -> Any:
        """Shape (batch, ...)."""
        return soft_targets(standardized(teacher), standardized(student), now(self.temperature))


@DISTILLATION_LOSSES.register("dist")
class DIST(TemperedLoss):
    """The student's probabilities correlate with the teacher's, over the classes and over the batch.

        loss_n = T^2 * (beta * (1 - r(p_n, q_n)) + gamma * mean_c (1 - r(p_:c, q_:c))),    r: Pearson's correlation

    p, q are the softened probabilities; a row p_n is a sample, a column p_:c one class over the whole batch. Kinder
    than a divergence where the teacher is much stronger. The second part needs batches in which each class shows.

    Args:
        beta: Float >= 0, weight over classes. Defaults to `1.0`.
        gamma: Float >= 0, weight over the batch. Defaults to `1.0`.
        temperature: Float > 0 or a schedule. Defaults to `1.0`.
        output, name: As in `DistillationLoss`.

    Reference: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, equations 7 to 10.
    """

    activations = ("softmax",)
    uses_mask = True
    within_batch = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: Scheduled = 1.0, **options: Any) -> None:
        super().__init__(temperature, **options)
        self.beta = check_positive("beta", beta, zero=True)
        self.gamma = check_positive("gamma", gamma, zero=True)

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax", mask: Any = None) -> Any:
        """Shape (batch, ...); positions count as samples, those that `mask` leaves out do not."""
        temperature = now(self.temperature)
        p, q = ops.softmax(teacher / temperature), ops.softmax(student / temperature)
        classes = teacher.shape[-1]
        weight = None if mask is None else ops.cast(ops.reshape(mask, (-1, 1)), p.dtype)
        columns = correlation(ops.reshape(p, (-1, classes)), ops.reshape(q, (-1, classes)), 0, weight)
        within, between = 1.0 - correlation(p, q), ops.mean(1.0 - columns)
        return temperature**2 * (self.beta * within + self.gamma * between)

    def get_config(self) -> dict[str, Any]:
        return {"beta": self.beta, "gamma": self.gamma, **super().get_config()}
