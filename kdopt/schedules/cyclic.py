"""Sparsity that comes and goes."""

from typing import Any

import keras

from kdopt.core.validation import check_fraction, check_integer, check_positive
from kdopt.schedules.base import Schedule
from kdopt.schedules.times import Time, check_time, steps_of, to_config


@keras.saving.register_keras_serializable("kdopt")
class Cyclic(Schedule):
    """Prunes several times over; between two times the masks come back and wrongly pruned weights recover.

        s(t) = s_f + (s_i - s_f) * (1 - min(1, u / r)) ** power,   u = (t - t_0) mod T      for t >= t_0

    with s_i = initial_sparsity, s_f = final_sparsity, t_0 = begin_step, T = period, and r = ramp * T rounded, within
    [1, T - 1]: the sparsity grows for r updates and stays at s_f for the other T - r. Before t_0 it is 0. After the
    given number of cycles it does not fall again: `final_sparsity` is the peak, which every cycle reaches. Masks
    change at the begin of a cycle, every `frequency` updates after it, and at its peak.

    A weight that comes back starts at zero and is trained from there.

    Args:
        final_sparsity: Float in [0, 1).
        initial_sparsity: Float in [0, 1), at the begin of each cycle. Defaults to `0.0`: all masks come back.
        begin_step: Integer >= 0, optimizer updates, or `Epochs`. Defaults to `0`.
        period: Integer >= 2, updates of a cycle, or `Epochs`.
        cycles: Integer >= 1.
        ramp: Float in (0, 1), fraction of a cycle in which the sparsity grows. Defaults to `0.5`.
        frequency: Integer >= 1, updates between two changes of the masks, or `Epochs`. Defaults to `100`.
        power: Float > 0, as of `Polynomial`. Defaults to `3`.

    Example:
    ```
    schedule = Cyclic(0.8, period=1000, cycles=3)
    schedule(250), schedule(500), schedule(1000)      # 0.7, 0.8, 0.0
    ```

    Reference: Srinivas et al., "Cyclical pruning for sparse neural networks", CVPR workshops 2022 (the idea; the
        curve within a cycle is Zhu & Gupta, 2017, equation 1).
    """

    def __init__(
        self,
        final_sparsity: float,
        initial_sparsity: float = 0.0,
        begin_step: Time = 0,
        *,
        period: Time,
        cycles: int,
        ramp: float = 0.5,
        frequency: Time = 100,
        power: float = 3,
    ) -> None:
        self._final_sparsity = check_fraction("final_sparsity", final_sparsity)
        self.initial_sparsity = check_fraction("initial_sparsity", initial_sparsity)
        self.begin_step = check_time("begin_step", begin_step, minimum=0)
        self.period = check_time("period", period)
        if self.period == 1:
            raise ValueError("`period` must be at least 2 updates, one to grow and one at the peak; got 1.")
        self.cycles = check_integer("cycles", cycles)
        self.ramp = check_fraction("ramp", check_positive("ramp", ramp))
        self.frequency = check_time("frequency", frequency)
        self.power = check_positive("power", power)

    def __call__(self, step: int) -> float:
        if step < steps_of(self.begin_step):
            return 0.0
        start, peak, _ = self._cycle(step)
        left = max(0.0, 1 - (step - start) / (peak - start))
        return self._final_sparsity + (self.initial_sparsity - self._final_sparsity) * left**self.power

    def next_update(self, step: int) -> int | None:
        if step < steps_of(self.begin_step):
            return steps_of(self.begin_step)
        start, peak, following = self._cycle(step)
        if step >= peak:
            return following
        frequency = steps_of(self.frequency)
        passed = (step - start) // frequency
        return min(start + (passed + 1) * frequency, peak)

    @property
    def final_sparsity(self) -> float:
        return self._final_sparsity

    def get_config(self) -> dict[str, Any]:
        return {
            "final_sparsity": self._final_sparsity,
            "initial_sparsity": self.initial_sparsity,
            "begin_step": to_config(self.begin_step),
            "period": to_config(self.period),
            "cycles": self.cycles,
            "ramp": self.ramp,
            "frequency": to_config(self.frequency),
            "power": self.power,
        }

    def _cycle(self, step: int) -> tuple[int, int, int | None]:
        """Of the cycle that `step` lies in (the last one lasts for ever): first update, peak, begin of the next."""
        begin, period = steps_of(self.begin_step), steps_of(self.period)
        number = min((step - begin) // period, self.cycles - 1)
        start = begin + number * period
        growing = min(max(1, round(self.ramp * period)), period - 1)
        return start, start + growing, start + period if number < self.cycles - 1 else None
