"""How strong a penalty is: a number, or a schedule that a callback follows."""

import sys
from collections.abc import Callable
from typing import Any

import keras

from kdopt.core.notices import warn_user
from kdopt.core.validation import check_positive

Strength = float | Callable[[int], float]


class StrengthValue:
    """The strength of one penalty, shared by its copies.

    A schedule's value lives in a Variable, so that a compiled step sees it change.

    Args:
        strength: Float >= 0, or a callable optimizer update (integer >= 0) -> float >= 0.
        owner: String, name of the penalty's class, for messages.

    Raises: ValueError for anything else, also where the schedule returns it.
    """

    def __init__(self, strength: Any, owner: str) -> None:
        self.owner = owner
        self.schedule: Callable[[int], float] | None = strength if callable(strength) else None
        self._followed = False
        if self.schedule is None:
            self.now = check_positive("strength", strength, zero=True)
            self.value: Any = self.now
        else:
            self.now = self._scheduled(0)
            self.value = keras.Variable(self.now, dtype="float32", trainable=False, name="strength")

    def follow(self, step: int) -> None:
        """Sets the value to the schedule's at `step`, optimizer updates since its begin."""
        if self.schedule is not None:
            self._followed = True
            self.now = self._scheduled(step)
            self.value.assign(self.now)

    def warn_if_not_followed(self) -> None:
        """Warns, once, where a train step uses a schedule that no callback follows."""
        if self.schedule is not None and not self._followed and _in_train_step():
            self._followed = True
            warn_user(
                f"The strength of {self.owner} has a schedule that nothing follows: it stays {self.now:g}. "
                "Give fit a callback that does: the handle that attach returned, or RegularizationLogger()."
            )

    def get_config(self) -> Any:
        """Float, or the serialized schedule."""
        return self.value if self.schedule is None else keras.saving.serialize_keras_object(self.schedule)

    def _scheduled(self, step: int) -> float:
        assert self.schedule is not None
        return check_positive(f"strength(step={step})", self.schedule(step), zero=True)


def _in_train_step() -> bool:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "train_step":
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
