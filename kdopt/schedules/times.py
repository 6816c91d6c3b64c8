"""Points of time in a schedule: optimizer updates, or epochs that become updates when `fit` knows how many."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kdopt.core.validation import check_integer, check_positive


@dataclass(frozen=True)
class Epochs:
    """A time in epochs, wherever a schedule takes one in optimizer updates.

        updates = number * updates per epoch, rounded to the nearest, at least 1 unless number = 0

    `schedule.in_steps(n)` turns it into updates; `GradualPruning` calls that at its first batch.

    Args:
        number: Float >= 0. `0.5` is half an epoch.

    Example:
    ```
    Polynomial(0.8, end_step=Epochs(10), frequency=Epochs(0.5))
    ```
    """

    number: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "number", check_positive("number of epochs", self.number, zero=True))

    def __repr__(self) -> str:
        return f"Epochs({self.number:g})"


Time = int | Epochs


def check_time(name: str, value: Any, *, minimum: int = 1) -> Time:
    """Returns `value` as an int or `Epochs` if it is a time >= `minimum` (of 0 or 1) updates.

    A mapping `{"epochs": number}`, as `to_config` writes it, is read as `Epochs`.

    Raises: ValueError.
    """
    if isinstance(value, Mapping) and set(value) == {"epochs"}:
        value = Epochs(value["epochs"])
    if isinstance(value, Epochs):
        if minimum and not value.number:
            raise ValueError(f"`{name}` must be more than 0 epochs; got {value!r}.")
        return value
    try:
        return check_integer(name, value, minimum=minimum)
    except ValueError as error:
        raise ValueError(f"{str(error)[:-1]}. Epochs are written Epochs(2.5).") from None


def check_order(name: str, later: Time, other: str, earlier: Time) -> None:
    """Refuses a time that is not after another; mixed units can be compared only once they are all updates.

    Raises: ValueError.
    """
    if type(later) is type(earlier) and _number(later) <= _number(earlier):
        raise ValueError(f"`{name}` must be greater than {other}={earlier}; got {later}.")


def steps_of(time: Time) -> int:
    """A time in optimizer updates.

    Raises: RuntimeError for one in epochs.
    """
    if isinstance(time, Epochs):
        raise RuntimeError(
            f"This schedule has a time in epochs ({time!r}), and how many optimizer updates that is depends on the "
            "data: use schedule.in_steps(updates_per_epoch)."
        )
    return time


def to_config(time: Time) -> int | dict[str, float]:
    """A time as JSON can hold it."""
    return {"epochs": time.number} if isinstance(time, Epochs) else time


def map_epochs(config: Any, function: Callable[[float], Any]) -> Any:
    """A copy of a config in which `function` has replaced the number of every `{"epochs": number}`."""
    if isinstance(config, Mapping):
        if set(config) == {"epochs"}:
            return function(config["epochs"])
        return {key: map_epochs(value, function) for key, value in config.items()}
    if isinstance(config, list):
        return [map_epochs(value, function) for value in config]
    return config


def rounded(epochs: float, steps_per_epoch: int) -> int:
    """Optimizer updates of a time in epochs; see `Epochs`."""
    return max(int(epochs * steps_per_epoch + 0.5), 1 if epochs else 0)


def _number(time: Time) -> float:
    return time.number if isinstance(time, Epochs) else time
