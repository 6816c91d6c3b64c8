"""Factors: what an autoencoder keeps of the teacher's features."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from kdopt.core.validation import check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import ChannelFreeLoss
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.projectors import channels_of
from kdopt.distillation.taps import Tapped, Taps


@DISTILLATION_LOSSES.register("factor_transfer")
class FactorTransfer(ChannelFreeLoss):
    """The student learns not the teacher's features but a paraphrase of them.

        loss = mean | F_t / |F_t| - F_s / |F_s| |   +   mean (t - d(F_t))^2,     F_t = e(t), F_s = translator(s)

    e and d are the paraphraser, an autoencoder of the teacher's features with `rate` times their channels; it learns
    by the second part alone, and the student with its translator by the first alone. The paper trains the paraphraser
    beforehand; here both learn in one `fit`.

    Args:
        student_tap, teacher_tap, name: As in `FeatureLoss`; maps or sequences. Defaults to `"stages"`.
        rate: Float > 0, channels of the factors over those of the teacher. Defaults to `0.5`.

    Reference: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018,
    equations 1 to 4.
    """

    ranks = (3, 4)

    def __init__(
        self,
        student_tap: Taps = "stages",
        teacher_tap: Taps | None = None,
        *,
        rate: float = 0.5,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        self.rate = check_positive("rate", rate)
        self._nets: list[tuple[keras.Model, keras.Model, keras.Model]] = []

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            rank = min(len(theirs.shape), len(ours.shape))
            wide = channels_of(theirs.shape, "teacher", theirs.name)
            own = channels_of(ours.shape, "student", ours.name)
            factors = max(1, round(self.rate * wide))
            name = f"{self.name}_{{}}_{place}".format
            nets = (
                _net(rank, wide, (wide, factors, factors), name("paraphraser")),
                _net(rank, factors, (factors, wide, wide), name("decoder")),
                _net(rank, own, (own, factors, factors), name("translator")),
            )
            for net in nets:
                self.add_part(net, tuple(net.input_shape))
            self._nets.append(nets)

    def compute(self, teacher: Sequence[Any], student: Sequence[Any]) -> list[Any]:
        """Shape (batch,)."""
        values = []
        for place, (theirs, ours) in enumerate(zip(teacher, student, strict=True)):
            paraphraser, decoder, translator = self._nets[place]
            t, s = self.prepared(place, theirs.output, ours.output)
            factors = paraphraser(t, training=self.training)
            rebuilt = decoder(factors, training=self.training)
            translated = translator(s, training=self.training)
            values.append(factor_distance(ops.stop_gradient(factors), translated) + _mean(ops.square(t - rebuilt)))
        return values

    def get_config(self) -> dict[str, Any]:
        return {"rate": self.rate, **super().get_config()}


def factor_distance(teacher: Any, student: Any) -> Any:
    """Mean absolute difference of factors, each sample's of length 1; shape (batch,)."""
    axes = tuple(range(1, len(student.shape)))
    return _mean(ops.abs(unit(teacher, axes) - unit(student, axes)))


def _mean(values: Any) -> Any:
    return ops.mean(values, axis=tuple(range(1, len(values.shape))))


def _net(rank: int, inputs: int, widths: tuple[int, ...], name: str) -> keras.Model:
    """Convolutions of width 3 with BatchNormalization and leaky ReLU, the last one linear."""
    kind = layers.Conv2D if rank == 4 else layers.Conv1D
    stack: list[Any] = [keras.Input((*[None] * (rank - 2), inputs), dtype="float32")]
    for place, width in enumerate(widths):
        stack.append(kind(width, 3, padding="same", dtype="float32"))
        if place < len(widths) - 1:
            stack += [layers.BatchNormalization(dtype="float32"), layers.LeakyReLU(negative_slope=0.1, dtype="float32")]
    return keras.Sequential(stack, name=name)
