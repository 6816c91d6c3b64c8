"""Where the teacher looks: activation-based attention."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from kdopt.core.notices import warn_user
from kdopt.core.validation import check_one_of, check_positive
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.feature import ChannelFreeLoss
from kdopt.distillation.losses.hint import unit
from kdopt.distillation.taps import Tapped, Taps

_TINY = 1e-12
_LEAST = 1e-30  # of a squared length: energies are squares themselves


def attention(features: Any, power: float = 2.0) -> Any:
    """How much happens at each position: F = sum_c |a_c|^p.

    Args:
        features: Shape (batch, positions ..., channels).
        power: Float > 0, the p above.

    Returns: shape (batch, positions), flat.
    """
    energy = ops.square(features) if power == 2.0 else ops.power(ops.abs(features) + _TINY, power)
    summed = ops.sum(energy, axis=-1)
    return ops.reshape(summed, (ops.shape(summed)[0], -1))


@DISTILLATION_LOSSES.register("attention_transfer")
class AttentionTransfer(ChannelFreeLoss):
    """The student is active where the teacher is.

        "mse":  | F_s / |F_s| - F_t / |F_t| |^2,                  F = sum_c |a_c|^p over the channels of a position
        "kl":   sum_i f_t,i * log(f_t,i / f_s,i),                 f = F / sum_i F_i

    Needs no projector: any number of channels becomes one map.

    Args:
        student_tap, teacher_tap: As in `FeatureLoss`; maps or sequences. Defaults to `"stages"`.
        distance: `"mse"` or `"kl"`. Defaults to `"mse"`.
        power: Float > 0, the p above; more makes the strongest channels count more. Defaults to `2.0`.
        name: As in `FeatureLoss`.

    Raises: ValueError.

    Reference: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017, equation 2 (there the distance is
    not squared; the authors' code squares it and takes the mean over positions, so that its weights are larger by
    their number).
    """

    ranks = (3, 4)

    def __init__(
        self,
        student_tap: Taps = "stages",
        teacher_tap: Taps | None = None,
        *,
        distance: str = "mse",
        power: float = 2.0,
        name: str | None = None,
    ) -> None:
        super().__init__(student_tap, teacher_tap, name=name)
        self.distance = check_one_of("distance", distance, ("mse", "kl"))
        self.power = check_positive("power", power)

    def build(self, teacher: Sequence[Tapped], student: Sequence[Tapped]) -> None:
        super().build(teacher, student)
        normed = [
            tap.name for tap in (*teacher, *student) if isinstance(tap.operation, keras.layers.LayerNormalization)
        ]
        if normed:
            warn_user(
                f"AttentionTransfer compares how much happens at each position, which {', '.join(map(repr, normed))} "
                "has made the same everywhere (LayerNormalization). Tap what it reads."
            )

    def compute_loss(self, teacher: Any, student: Any) -> Any:
        """Shape (batch,)."""
        theirs, ours = attention(teacher, self.power), attention(student, self.power)
        if self.distance == "mse":
            return ops.sum(ops.square(unit(theirs, least=_LEAST) - unit(ours, least=_LEAST)), axis=-1)
        log_p, log_q = _log_shares(theirs), _log_shares(ours)
        return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)

    def get_config(self) -> dict[str, Any]:
        own = {"distance": self.distance, "power": self.power}
        return {**own, **super().get_config()}


def _log_shares(energy: Any) -> Any:
    energy = energy + _TINY
    return ops.log(energy) - ops.log(ops.sum(energy, axis=-1, keepdims=True))
