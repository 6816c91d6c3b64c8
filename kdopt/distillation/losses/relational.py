"""Relational knowledge: distances and angles between the samples of a batch."""

from typing import Any

from keras import ops

from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.losses.relation import RelationLoss, huber, not_itself, squared_distances

_RESOLUTION = 1e-12  # squared length of an edge over those of its ends


def relative_distances(values: Any) -> Any:
    """Distances between rows over their mean: |x_i - x_j| / mu, mu over all pairs i != j.

    Args:
        values: Shape (batch, features).

    Returns: shape (batch, batch), 0 on the diagonal.
    """
    squares = squared_distances(values)
    apart = ops.sqrt(ops.where(squares > 1e-12, squares, 1.0)) * ops.cast(squares > 1e-12, "float32")
    pairs = ops.maximum(ops.sum(not_itself(values)), 1.0)
    return apart / ops.maximum(ops.sum(apart) / pairs, 1e-12)


def angles(values: Any) -> Any:
    """cos of the angle at j between i and k, for all triples: shape (batch j, batch i, batch k).

    0 where two of the three rows are equal, or differ by no more than float32 resolves.

    Args:
        values: Shape (batch, features).
    """
    squares = ops.sum(ops.square(values), axis=-1)
    least = _RESOLUTION * (squares[None, :] + squares[:, None])
    edges = unit(values[None, :, :] - values[:, None, :], least=least[..., None])
    return ops.matmul(edges, ops.transpose(edges, (0, 2, 1)))


@DISTILLATION_LOSSES.register("relational_distance")
class RelationalDistance(RelationLoss):
    """Samples are as far apart for the student as for the teacher, in units of the mean distance.

        loss_i = mean_{j != i} huber(|t_i - t_j| / mu_t - |s_i - s_j| / mu_s)

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 6 to 8.
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        differences = huber(relative_distances(teacher) - relative_distances(student))
        others = ops.sum(not_itself(student), axis=-1)
        return ops.sum(differences, axis=-1) / ops.maximum(others, 1.0)


@DISTILLATION_LOSSES.register("relational_angle")
class RelationalAngle(RelationLoss):
    """Triples of samples form the same angles for the student as for the teacher.

        loss_j = mean_{i, k} huber(cos(t_i t_j t_k) - cos(s_i s_j s_k))

    Memory and time grow with the cube of the batch, and with its square times the features: 64 samples are 262,144
    angles, and 4,096 differences of feature vectors.

    Args:
        student_tap, teacher_tap, name: As in `RelationLoss`.

    Reference: Park et al., "Relational Knowledge Distillation", CVPR 2019, equations 9 and 10 (the authors' code takes
    the mean over all triples, as here).
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        return ops.mean(huber(angles(teacher) - angles(student)), axis=(1, 2))
