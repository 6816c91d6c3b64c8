"""Schedules: optimizer step -> sparsity."""

from abc import ABC, abstractmethod
from typing import Any

import keras

from kdopt.core.validation import check_fraction, check_integer, check_positive


class Schedule(ABC):
    """Sparsity as a function of the optimizer updates made since the schedule began.

    Subclass it for one of your own.
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

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """Makes the schedule from `get_config()`."""
        return cls(**config)


@keras.saving.register_keras_serializable("kdopt")
class Constant(Schedule):
    """The same sparsity from the first step on.

        s(t) = sparsity

    For a model that is sparse already: fine-tunes it with its zeros kept.

    Args:
        sparsity: Float in [0, 1).

    Example:
    ```
    Constant(0.8)(0)      # 0.8
    ```
    """

    def __init__(self, sparsity: float) -> None:
        self.sparsity = check_fraction("sparsity", sparsity)

    def __call__(self, step: int) -> float:
        return self.sparsity

    def next_update(self, step: int) -> int | None:
        return 0 if step < 0 else None

    @property
    def final_sparsity(self) -> float:
        return self.sparsity

    def get_config(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity}


@keras.saving.register_keras_serializable("kdopt")
class Polynomial(Schedule):
    """Sparsity that grows fast at first and slowly near the end.

        s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0)) ** power      for t_0 <= t <= t_1

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, t_1 = end_step. Before t_0
    nothing is pruned (s = 0); after t_1 it stays s_f. Masks change at t_0, every `frequency` steps
    after it, and at t_1.

    Args:
        final_sparsity: Float in [0, 1).
        initial_sparsity: Float in [0, 1), at `begin_step`. Defaults to `0.0`.
        begin_step: Integer >= 0, optimizer updates. Defaults to `0`.
        end_step: Integer > `begin_step`. Leave some training after it, for the net to recover.
        frequency: Integer >= 1, updates between two changes of the masks. Defaults to `100`.
        power: Float > 0. 1 is linear, 3 is the paper's. Defaults to `3`.

    Example:
    ```
    Polynomial(0.8, end_step=1000)(500)      # 0.7
    ```

    Reference: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
        compression", 2017, equation 1.
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        begin_step: int = 0,
        *,
        end_step: int,
        frequency: int = 100,
        power: float = 3,
    ) -> None:
        self._final_sparsity = check_fraction("final_sparsity", final_sparsity)
        self.initial_sparsity = check_fraction("initial_sparsity", initial_sparsity)
        self.begin_step = check_integer("begin_step", begin_step, minimum=0)
        self.end_step = check_integer("end_step", end_step)
        self.frequency = check_integer("frequency", frequency)
        self.power = check_positive("power", power)
        if self.end_step <= self.begin_step:
            raise ValueError(f"`end_step` must be greater than begin_step={begin_step}; got {end_step}.")

    def __call__(self, step: int) -> float:
        if step < self.begin_step:
            return 0.0
        left = max(0.0, 1 - (step - self.begin_step) / (self.end_step - self.begin_step))
        return self._final_sparsity + (self.initial_sparsity - self._final_sparsity) * left**self.power

    def next_update(self, step: int) -> int | None:
        if step < self.begin_step:
            return self.begin_step
        if step >= self.end_step:
            return None
        passed = (step - self.begin_step) // self.frequency
        return min(self.begin_step + (passed + 1) * self.frequency, self.end_step)

    @property
    def final_sparsity(self) -> float:
        return self._final_sparsity

    def get_config(self) -> dict[str, Any]:
        return {
            "final_sparsity": self._final_sparsity,
            "initial_sparsity": self.initial_sparsity,
            "begin_step": self.begin_step,
            "end_step": self.end_step,
            "frequency": self.frequency,
            "power": self.power,
        }
