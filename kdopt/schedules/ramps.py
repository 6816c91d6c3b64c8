"""Schedules that go from one sparsity to another, along different curves."""

import math
from abc import abstractmethod
from typing import Any

import keras

from kdopt.core.validation import check_fraction, check_positive
from kdopt.schedules.base import Schedule
from kdopt.schedules.times import Time, check_order, check_time, steps_of, to_config


class Ramp(Schedule):
    """Sparsity that goes from `initial_sparsity` at `begin_step` to `final_sparsity` at `end_step`.

    Before `begin_step` nothing is pruned (s = 0); after `end_step` it stays. Masks change at `begin_step`, every
    `frequency` updates after it, and at `end_step`. A subclass says along which curve.

    Args:
        final_sparsity: Float in [0, 1).
        initial_sparsity: Float in [0, 1), at `begin_step`. Defaults to `0.0`.
        begin_step: Integer >= 0, optimizer updates, or `Epochs`. Defaults to `0`.
        end_step: Integer > `begin_step`, or `Epochs`. Leave some training after it, for the net to recover.
        frequency: Integer >= 1, updates between two changes of the masks, or `Epochs`. Defaults to `100`.
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        begin_step: Time = 0,
        *,
        end_step: Time,
        frequency: Time = 100,
    ) -> None:
        self._final_sparsity = check_fraction("final_sparsity", final_sparsity)
        self.initial_sparsity = check_fraction("initial_sparsity", initial_sparsity)
        self.begin_step = check_time("begin_step", begin_step, minimum=0)
        self.end_step = check_time("end_step", end_step)
        self.frequency = check_time("frequency", frequency)
        check_order("end_step", self.end_step, "begin_step", self.begin_step)

    @abstractmethod
    def curve(self, share: float) -> float:
        """Sparsity when `share`, in [0, 1), of the time from `begin_step` to `end_step` has passed."""

    def __call__(self, step: int) -> float:
        begin, end = steps_of(self.begin_step), steps_of(self.end_step)
        if step < begin:
            return 0.0
        if step >= end:
            return self._final_sparsity
        return self.curve((step - begin) / (end - begin))

    def next_update(self, step: int) -> int | None:
        begin, end, frequency = map(steps_of, (self.begin_step, self.end_step, self.frequency))
        if step < begin:
            return begin
        if step >= end:
            return None
        passed = (step - begin) // frequency
        return min(begin + (passed + 1) * frequency, end)

    @property
    def final_sparsity(self) -> float:
        return self._final_sparsity

    def get_config(self) -> dict[str, Any]:
        return {
            "final_sparsity": self._final_sparsity,
            "initial_sparsity": self.initial_sparsity,
            "begin_step": to_config(self.begin_step),
            "end_step": to_config(self.end_step),
            "frequency": to_config(self.frequency),
        }


@keras.saving.register_keras_serializable("kdopt")
class Linear(Ramp):
    """Sparsity that grows by the same amount at every update.

        s(t) = s_i + (s_f - s_i) * (t - t_0) / (t_1 - t_0)      for t_0 <= t <= t_1

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, t_1 = end_step. It is hard on the net near
    the end, when each step takes a large part of what is left.

    Args: as `Ramp`.

    Example:
    ```
    Linear(0.8, end_step=1000)(500)      # 0.4
    ```
    """

    def curve(self, share: float) -> float:
        return self.initial_sparsity + (self._final_sparsity - self.initial_sparsity) * share


@keras.saving.register_keras_serializable("kdopt")
class Polynomial(Ramp):
    """Sparsity that grows fast at first and slowly near the end.

        s(t) = s_f + (s_i - s_f) * (1 - (t - t_0) / (t_1 - t_0)) ** power      for t_0 <= t <= t_1

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, t_1 = end_step.

    Args: as `Ramp`, and
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
        begin_step: Time = 0,
        *,
        end_step: Time,
        frequency: Time = 100,
        power: float = 3,
    ) -> None:
        super().__init__(final_sparsity, initial_sparsity, begin_step, end_step=end_step, frequency=frequency)
        self.power = check_positive("power", power)

    def curve(self, share: float) -> float:
        return self._final_sparsity + (self.initial_sparsity - self._final_sparsity) * (1 - share) ** self.power

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "power": self.power}


@keras.saving.register_keras_serializable("kdopt")
class Exponential(Ramp):
    """Density that decays exponentially: every update prunes the same fraction of the weights that are left.

        1 - s(t) = (1 - s_i) * ((1 - s_f) / (1 - s_i)) ** ((t - t_0) / (t_1 - t_0))      for t_0 <= t <= t_1

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, t_1 = end_step. The schedule of iterative
    magnitude pruning, where each round takes e.g. 20 % of the survivors.

    Args: as `Ramp`.

    Example:
    ```
    Exponential(0.75, end_step=1000)(500)      # 0.5
    ```

    Reference: Frankle & Carbin, "The lottery ticket hypothesis: finding sparse, trainable neural networks",
        ICLR 2019, section 1 (in n rounds, each takes the same fraction 1 - (1 - p) ** (1 / n) of the survivors).
    """

    def curve(self, share: float) -> float:
        density = 1 - self.initial_sparsity
        return 1 - density * ((1 - self._final_sparsity) / density) ** share


@keras.saving.register_keras_serializable("kdopt")
class Cosine(Ramp):
    """Sparsity that starts and ends gently, along half a cosine.

        s(t) = s_f + (s_i - s_f) * (1 + cos(pi * (t - t_0) / (t_1 - t_0))) / 2      for t_0 <= t <= t_1

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, t_1 = end_step.

    Args: as `Ramp`.

    Example:
    ```
    Cosine(0.8, end_step=1000)(250)      # 0.117
    ```

    Reference: Loshchilov & Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, equation 5
        (the curve, there for the learning rate).
    """

    def curve(self, share: float) -> float:
        left = (1 + math.cos(math.pi * share)) / 2
        return self._final_sparsity + (self.initial_sparsity - self._final_sparsity) * left
