"""How samples of a batch relate to each other: the base of losses on relations."""

from typing import Any

from keras import ops

from kdopt.distillation.losses.feature import ChannelFreeLoss
from kdopt.distillation.taps import Taps


class RelationLoss(ChannelFreeLoss):
    """Compares the relations between the samples of a batch; widths and resolutions need not be equal.

    Subclass it and write `compute_loss(teacher, student)` for two matrices, one row a sample. It returns one value a
    row; sample weights weigh rows, so that a sample of weight 0 still is what others relate to. Under `tf.distribute`
    each replica relates its own part of the batch.

    Args:
        student_tap, teacher_tap, name: As in `FeatureLoss`. The tap defaults to `"embedding"`.
    """

    matches_positions = False
    within_batch = True

    def __init__(
        self, student_tap: Taps = "embedding", teacher_tap: Taps | None = None, *, name: str | None = None
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)

    def prepared(self, place: int, teacher: Any, student: Any) -> tuple[Any, Any]:
        teacher, student = super().prepared(place, teacher, student)
        return rows(teacher), rows(student)


def rows(values: Any) -> Any:
    """Shape (batch, all else)."""
    return values if len(values.shape) == 2 else ops.reshape(values, (ops.shape(values)[0], -1))


def squared_distances(values: Any) -> Any:
    """|x_i - x_j|^2 of all pairs of rows, shape (batch, batch), exactly 0 on the diagonal."""
    values = values - ops.mean(values, axis=0, keepdims=True)  # an offset that all share would cost the digits
    products = ops.matmul(values, ops.transpose(values))
    squares = ops.sum(ops.square(values), axis=-1)
    apart = ops.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    return apart * not_itself(values)


def not_itself(values: Any) -> Any:
    """1 for pairs of different rows, 0 on the diagonal, shape (batch, batch)."""
    size = ops.shape(values)[0]
    numbers = ops.arange(size)
    return ops.cast(numbers[:, None] != numbers[None, :], "float32")


def huber(difference: Any) -> Any:
    """x^2 / 2 for |x| <= 1, |x| - 1/2 beyond."""
    size = ops.abs(difference)
    return ops.where(size <= 1.0, 0.5 * ops.square(difference), size - 0.5)
