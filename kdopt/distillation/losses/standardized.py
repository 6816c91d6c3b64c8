"""Losses on logits that leave the student its own scale: standardized logits, correlations."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.logits import soft_targets
from kdopt.distillation.losses.tempered import TemperedLoss
from kdopt.distillation.scheduled import Scheduled, now

_EPSILON = 1e-7


def standardized(logits: Any) -> Any:
    """z-scores over the last axis: (z - mean) / (standard deviation + 1e-7)."""
    mean = ops.mean(logits, axis=-1, keepdims=True)
    return (logits - mean) / (ops.sqrt(ops.var(logits, axis=-1, keepdims=True) + _EPSILON**2) + _EPSILON)


def correlation(one: Any, other: Any, axis: int = -1) -> Any:
    """Pearson's correlation along an axis, in [-1, 1]; 0 where one of both is constant."""
    a = one - ops.mean(one, axis=axis, keepdims=True)
    b = other - ops.mean(other, axis=axis, keepdims=True)
    return ops.sum(_unit(a, axis) * _unit(b, axis), axis=axis)


def _unit(values: Any, axis: int) -> Any:
    return values * ops.rsqrt(ops.maximum(ops.sum(ops.square(values), axis=axis, keepdims=True), 1e-16))


@DISTILLATION_LOSSES.register("logit_standardization")
class LogitStandardization(TemperedLoss):
    """Soft targets of z-scores: the student keeps mean and scale of its logits, and learns their relations alone.

        loss = T^2 * KL(softmax(Z(t) / T) || softmax(Z(s) / T)),    Z(z) = (z - mean(z)) / std(z)

    A small student need not reach the magnitude of a large teacher's logits.

    Args:
        temperature: Float > 0 or a schedule, of the z-scores. Defaults to `2.0`, the paper's.
        output, name: As in `DistillationLoss`.

    Reference: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, algorithm 1 and equation 11.
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
    within_batch = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: Scheduled = 1.0, **options: Any) -> None:
        super().__init__(temperature, **options)
        self.beta = check_positive("beta", beta, zero=True)
        self.gamma = check_positive("gamma", gamma, zero=True)

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax") -> Any:
        """Shape (batch, ...); positions count as samples."""
        temperature = now(self.temperature)
        p, q = ops.softmax(teacher / temperature), ops.softmax(student / temperature)
        classes = teacher.shape[-1]
        columns = correlation(ops.reshape(p, (-1, classes)), ops.reshape(q, (-1, classes)), axis=0)
        within, between = 1.0 - correlation(p, q), ops.mean(1.0 - columns)
        return temperature**2 * (self.beta * within + self.gamma * between)

    def get_config(self) -> dict[str, Any]:
        return {"beta": self.beta, "gamma": self.gamma, **super().get_config()}
