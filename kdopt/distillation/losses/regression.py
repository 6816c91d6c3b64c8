"""Losses for outputs that are numbers, not classes."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_one_of, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss

_DISTANCES = {"l2": ops.square, "l1": ops.abs}


@DISTILLATION_LOSSES.register("regression")
class Regression(DistillationLoss):
    """The student's numbers come near the teacher's, or near the label as long as the teacher does better.

        margin=None:  mean_u d(s_u - t_u),                     d(x) = x^2 ("l2") or |x| ("l1")
        margin=m:     e_s if e_s + m > e_t else 0,             e = mean_u d(. - label_u)

    The bounded form takes the teacher as an upper bound only: a regression teacher can be wrong without limit, and is
    not to be copied where the student is better already.

    Args:
        distance: `"l2"` or `"l1"`. Defaults to `"l2"`.
        margin: Float >= 0: how much better than the teacher the student is to be (bounded form, needs labels).
            Defaults to `None`: imitate the teacher.
        output, name: As in `DistillationLoss`.

    Raises: ValueError; at the first step for a margin without labels.

    Reference: Chen et al., "Learning Efficient Object Detection Models with Knowledge Distillation", NeurIPS 2017,
    equation 5.
    """

    reads_logits = False
    uses_labels = True

    def __init__(
        self,
        distance: str = "l2",
        margin: float | None = None,
        *,
        output: str | int | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(output=output, name=name)
        self.distance = check_one_of("distance", distance, tuple(_DISTANCES))
        self.margin = None if margin is None else check_positive("margin", margin, zero=True)
        self.uses_labels = self.margin is not None

    def compute_loss(self, teacher: Any, student: Any, labels: Any = None) -> Any:
        """Shape (batch, ...); all arguments have shape (batch, ..., units)."""
        if self.margin is None:
            return self._error(student, teacher)
        if labels is None:
            raise ValueError("Regression with a `margin` compares both models with the labels; the data holds none.")
        ours, theirs = self._error(student, labels), self._error(teacher, labels)
        return ops.where(ours + self.margin > theirs, ours, ops.zeros_like(ours))

    def _error(self, one: Any, other: Any) -> Any:
        return ops.mean(_DISTANCES[self.distance](one - other), axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {"distance": self.distance, "margin": self.margin, "output": self.output, "name": self.name}
