"""How features flow from one layer to a later one."""

import itertools
from collections.abc import Sequence
from typing import Any

from keras import ops

from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.projectors import resize
from kdopt.distillation.taps import Tapped


@DISTILLATION_LOSSES.register("fsp")
class FSP(FeatureLoss):
    """The products of features of two layers, averaged over positions, are those of the teacher.

        G_ij = 1 / (h w) * sum over positions of F1_i * F2_j,     loss = mean_ij (G_t,ij - G_s,ij)^2

    for each pair of neighbors among the taps; the earlier layer is averaged down to the later one's positions. The
    student's channels are mapped to the teacher's by trained 1x1 convolutions where they differ.

    Args:
        student_tap, teacher_tap, projector, name: As in `FeatureLoss`; at least two maps on each side, in the order
            of the calls. Defaults to `"stages"`.

    Raises: ValueError for a single tap.

    Reference: Yim et al., "A Gift from Knowledge Distillation: Fast Optimization, Network Minimization and Transfer
    Learning", CVPR 2017, equations 1 and 2.
    """

    ranks = (3, 4)

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        if len(student) < 2:
            raise ValueError(
                f"FSP compares how features change between layers; name at least two taps, or 'stages'. Got {student}."
            )
        super().build(teacher, student)

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Shape (batch,) for each pair of neighbors."""
        outputs = [(t.output, s.output) for t, s in zip(teacher, student, strict=True)]
        pairs = [self.prepared(place, *pair) for place, pair in enumerate(outputs)]
        values = []
        for (t_1, s_1), (t_2, s_2) in itertools.pairwise(pairs):
            values.append(ops.mean(ops.square(flow(t_1, t_2) - flow(s_1, s_2)), axis=(1, 2)))
        return values


def flow(first: Any, second: Any) -> Any:
    """The matrix of products of two layers.

    Args:
        first, second: Shapes (batch, positions ..., channels), those of `second` not more.

    Returns: shape (batch, channels of the first, channels of the second).
    """
    first = resize(first, ops.shape(second)[1:-1])
    a, b = (ops.reshape(values, (ops.shape(values)[0], -1, values.shape[-1])) for values in (first, second))
    return ops.matmul(ops.transpose(a, (0, 2, 1)), b) / ops.cast(ops.shape(a)[1], "float32")
