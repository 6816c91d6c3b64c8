"""Which samples of a batch the teacher finds alike: similarity matrices."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_integer, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.losses.relation import RelationLoss, not_itself
from kdopt.distillation.taps import Taps


@DISTILLATION_LOSSES.register("similarity_preserving")
class SimilarityPreserving(RelationLoss):
    """Samples that the teacher represents alike are alike for the student.

        G = rows of A A^T, each of length 1;     loss_i = 1/b * sum_j (G_t,ij - G_s,ij)^2

    so that the mean over the batch is 1/b^2 |G_t - G_s|^2.

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`. The paper takes the last convolution; maps are read flat.

    Reference: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019, equations 1 to 4.
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        return ops.mean(ops.square(_similarity(teacher) - _similarity(student)), axis=-1)


def _similarity(values: Any) -> Any:
    return unit(ops.matmul(values, ops.transpose(values)))


@DISTILLATION_LOSSES.register("correlation_congruence")
class CorrelationCongruence(RelationLoss):
    """Correlations between samples, by a Gaussian kernel, are those of the teacher.

        k(x, y) = sum_{p=0..P} exp(-2 g) (2 g)^p / p! * (x . y)^p       for x, y of length 1
        loss_i  = 1/b * sum_j (k(t_i, t_j) - k(s_i, s_j))^2

    the kernel exp(-g |x - y|^2) as a Taylor series of order P.

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`.
        gamma: Float > 0, the g above. Defaults to `0.4`, the paper's.
        order: Integer >= 1, the P above. Defaults to `2`, the paper's.

    Reference: Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, equations 4 and 10.
    """

    def __init__(
        self,
        student_tap: Taps = "embedding",
        teacher_tap: Taps | None = None,
        *,
        gamma: float = 0.4,
        order: int = 2,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        self.gamma, self.order = check_positive("gamma", gamma), check_integer("order", order)

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        return ops.mean(ops.square(self._kernel(teacher) - self._kernel(student)), axis=-1)

    def _kernel(self, values: Any) -> Any:
        values = unit(values)
        products = 2.0 * self.gamma * ops.matmul(values, ops.transpose(values))
        term = total = ops.ones_like(products)
        for power in range(1, self.order + 1):
            term = term * products / power
            total = total + term
        return ops.exp(-2.0 * self.gamma) * total

    def get_config(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "order": self.order, **super().get_config()}


@DISTILLATION_LOSSES.register("pkt")
class PKT(RelationLoss):
    """Each sample is as likely a neighbor of the others for the student as for the teacher.

        k(x, y) = (cos(x, y) + 1) / 2,     p_j|i = k(t_i, t_j) / sum_{m != i} k(t_i, t_m),     q: of the student
        loss_i = sum_{j != i} p_j|i * log(p_j|i / q_j|i)

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`.

    Reference: Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", ECCV 2018,
    equations 5 to 8 (the authors' code counts a sample among its own neighbors).
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        p, q = _neighbors(teacher), _neighbors(student)
        return ops.sum(p * (ops.log(p + 1e-7) - ops.log(q + 1e-7)), axis=-1)


def _neighbors(values: Any) -> Any:
    values = unit(values)
    kernel = (ops.matmul(values, ops.transpose(values)) + 1.0) / 2.0 * not_itself(values)
    return kernel / ops.maximum(ops.sum(kernel, axis=-1, keepdims=True), 1e-7)
