"""Features of the teacher as they are: hints."""

from typing import Any

from keras import ops

from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import FeatureLoss

_EPSILON = 1e-12


@DISTILLATION_LOSSES.register("hint")
class Hint(FeatureLoss):
    """The student's features, through a projector, come near the teacher's in the mean square.

        loss = mean_c (t_c - r(s)_c)^2 at each position,     r: the projector

    The paper trains the layers up to the hint first and the whole net afterwards; here both losses act at once, and a
    schedule as weight makes it a first phase.

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`. The tap defaults to `"stages"`.

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3 (there half the sum).
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch, positions ...)."""
        return ops.mean(ops.square(teacher - student), axis=-1)


@DISTILLATION_LOSSES.register("cosine_feature")
class CosineFeature(FeatureLoss):
    """The student's features, through a projector, point where the teacher's do; their length is free.

        loss = 1 - t . r(s) / (|t| |r(s)|) at each position,     r: the projector

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`. The tap defaults to `"stages"`.

    Reference: the cosine embedding loss of Sanh et al., "DistilBERT", 2019, section 3.
    """

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch, positions ...), in [0, 2]."""
        return 1.0 - ops.sum(unit(teacher) * unit(student), axis=-1)


def unit(values: Any, axis: Any = -1, least: Any = _EPSILON) -> Any:
    """Vectors of length 1 along an axis; zeros stay zeros, with a gradient of zero.

    Args:
        values: Any shape.
        axis: One axis or several, of a vector.
        least: Squared length up to which a vector counts as zero; broadcastable, 1 along `axis`.
    """
    squares = ops.sum(ops.square(values), axis=axis, keepdims=True)
    known = squares > least
    # Scaled up instead, a dead channel or position would pass a gradient of a million on.
    return values * ops.where(known, ops.rsqrt(ops.where(known, squares, 1.0)), 0.0)
