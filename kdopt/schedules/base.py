"""The schedule: optimizer step -> sparsity."""

from abc import ABC, abstractmethod
from typing import Any, Self

from kdopt.core.validation import check_integer
from kdopt.schedules.times import Epochs, map_epochs, rounded


class Schedule(ABC):
    """Sparsity as a function of the optimizer updates made since the schedule began.

    Subclass it for one of your own. Where one of the shipped schedules takes a time in updates, it also takes
    `Epochs`; such a schedule has values once `in_steps` has made the times updates.
    """

    @abstractmethod
    def __call__(self, step: int) -> float:
        """Sparsity in [0, 1) at `step`, an integer >= 0."""

    @abstractmethod
    def next_update(self, step: int) -> int | None:
        """The first step > `step` at which the sparsity changes; `None` when it no longer does.

        `next_update(-1)` is the first step with an update.
        """

    @property
    @abstractmethod
    def final_sparsity(self) -> float:
        """Sparsity in [0, 1) after the last update."""

    @property
    def has_epochs(self) -> bool:
        """Whether a time is in epochs, so that it has no values before `in_steps`."""
        found: list[float] = []
        map_epochs(self.get_config(), found.append)
        return bool(found)

    def in_steps(self, steps_per_epoch: int | None) -> Self:
        """The same schedule with every time in optimizer updates; itself if they all are.

        Args:
            steps_per_epoch: Integer >= 1, optimizer updates in an epoch (batches, divided by
                `gradient_accumulation_steps`); `None` if that is not known.

        Raises: ValueError if a time is in epochs and `steps_per_epoch` is `None`, or so small that two times
            become the same update.

        Example:
        ```
        Linear(0.8, end_step=Epochs(10)).in_steps(50)      # Linear(0.8, end_step=500)
        ```
        """
        config = self.get_config()
        if not self.has_epochs:
            return self
        if steps_per_epoch is None:
            raise ValueError(
                f"{self!r} has times in epochs, but the number of batches in an epoch is not known: pass "
                "`steps_per_epoch` (to fit or plot; `updates_per_epoch` to pruning_loop), or give the times in updates."
            )
        updates = check_integer("steps_per_epoch", steps_per_epoch)
        try:
            return self.from_config(map_epochs(config, lambda epochs: rounded(epochs, updates)))
        except ValueError as error:
            raise ValueError(f"With {updates} updates per epoch, {self!r} is not possible: {error}") from error

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes the schedule from `get_config()`."""
        return cls(**config)

    def __repr__(self) -> str:
        config = map_epochs(self.get_config(), Epochs)
        arguments = ", ".join(f"{name}={value!r}" for name, value in config.items())
        return f"{type(self).__name__}({arguments})"
