"""Soft targets taken apart: how sure the teacher is of the label, and what it thinks of the other classes."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_one_of, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.tempered import TemperedLoss
from kdopt.distillation.scheduled import Scheduled, check_scheduled, now, to_config

_FAR = -1e9  # a logit whose probability is 0


def decoupled(teacher: Any, student: Any, labels: Any, temperature: Any, alpha: Any, beta: Any) -> Any:
    """Target-class and non-target-class knowledge, each with a weight of its own.

        loss = T^2 * (alpha * KL(b_t || b_s) + beta * KL(p_t || p_s))
        b = [P(label), 1 - P(label)],    p = softmax over the other classes

    Args:
        teacher, student: Logits of shape (batch, ..., classes).
        labels: Integers of shape (batch, ...).
        temperature: Float > 0.
        alpha, beta: Floats >= 0.

    Returns: shape (batch, ...).

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equations 6 and 7.
    """
    teacher, student = teacher / temperature, student / temperature
    others = 1.0 - ops.one_hot(labels, teacher.shape[-1], dtype=teacher.dtype)
    binary = ops.sum(_with_rest(teacher, others, exponential=True) * _difference(teacher, student, others), axis=-1)
    log_p = ops.log_softmax(teacher + (1.0 - others) * _FAR, axis=-1)
    log_q = ops.log_softmax(student + (1.0 - others) * _FAR, axis=-1)
    rest = ops.sum(ops.exp(log_p) * others * (log_p - log_q), axis=-1)
    return temperature**2 * (alpha * binary + beta * rest)


def _difference(teacher: Any, student: Any, others: Any) -> Any:
    return _with_rest(teacher, others) - _with_rest(student, others)


def _with_rest(logits: Any, others: Any, exponential: bool = False) -> Any:
    """Logarithms of the label's probability and of all others' together, shape (batch, ..., 2)."""
    log_p = ops.log_softmax(logits, axis=-1)
    label = ops.sum(log_p * (1.0 - others), axis=-1)
    rest = ops.logsumexp(log_p + (1.0 - others) * _FAR, axis=-1)
    both = ops.stack([label, rest], axis=-1)
    return ops.exp(both) if exponential else both


@DISTILLATION_LOSSES.register("decoupled_kd")
class DecoupledKD(TemperedLoss):
    """Soft targets whose part on the wrong classes is not silenced where the teacher is sure.

    Hinton's loss weighs what the teacher thinks of the wrong classes by its doubt of the right one; here both parts
    have weights of their own.

    Args:
        alpha: Float >= 0 or a schedule, weight of the target class. Defaults to `1.0`.
        beta: Float >= 0 or a schedule, weight of the others; the paper takes 1 to 8. A ramp over the first epochs (its
            warm-up) keeps a large beta from disturbing a student that knows nothing yet. Defaults to `8.0`.
        temperature: Float > 0 or a schedule. Defaults to `4.0`.
        target: What the target class is: `"label"`, or `"teacher"`, the class the teacher holds most likely, which
            needs no labels. Samples without a class, labeled -1 or beyond the classes, take the teacher's. Defaults to
            `"label"`.
        output, name: As in `DistillationLoss`.

    Raises: ValueError; at the first step without labels.

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7.
    """

    activations = ("softmax",)
    uses_labels = True

    def __init__(
        self,
        alpha: Scheduled = 1.0,
        beta: Scheduled = 8.0,
        temperature: Scheduled = 4.0,
        target: str = "label",
        **options: Any,
    ) -> None:
        super().__init__(temperature, **options)
        self.alpha = check_scheduled("alpha", alpha, check_positive, zero=True)
        self.beta = check_scheduled("beta", beta, check_positive, zero=True)
        self.target = check_one_of("target", target, ("label", "teacher"))
        self.uses_labels = self.target == "label"

    def compute_loss(self, teacher: Any, student: Any, activation: str = "softmax", labels: Any = None) -> Any:
        """Shape (batch, ...); `labels` are integers of this shape."""
        likely = ops.cast(ops.argmax(teacher, axis=-1), "int32")
        if self.target == "label":
            if labels is None:
                raise ValueError(
                    'DecoupledKD takes the label as the target class, but the data holds none. Pass `target="teacher"`.'
                )
            known = ops.logical_and(labels >= 0, labels < teacher.shape[-1])
            likely = ops.where(known, labels, likely)
        return decoupled(teacher, student, likely, now(self.temperature), now(self.alpha), now(self.beta))

    def scheduled(self) -> dict[str, Any]:
        return {"alpha": self.alpha, "beta": self.beta, **super().scheduled()}

    def get_config(self) -> dict[str, Any]:
        weights = {"alpha": to_config(self.alpha), "beta": to_config(self.beta)}
        return {**weights, "target": self.target, **super().get_config()}
