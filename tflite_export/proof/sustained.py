"""How many inferences a second a file keeps up, as in video."""

import time
from dataclasses import dataclass

import numpy as np

from tflite_export.progress import progress
from tflite_export.runtime.runner import Runner

_MIN_RUNS = 20


@dataclass(frozen=True)
class Sustained:
    """Inferences one after the other, without a pause.

    Attributes:
        seconds: How long it went on.
        runs: Inferences (batches) made.
        per_second: runs / seconds.
        first_per_second: Over the first tenth of the runs.
        last_per_second: Over the last tenth. Lower than the first: the processor got hot and slower, or was shared.
    """

    seconds: float
    runs: int
    per_second: float
    first_per_second: float
    last_per_second: float

    def __str__(self) -> str:
        return (
            f"{self.per_second:,.1f} inferences/s over {self.seconds:.1f} s; {self.first_per_second:,.1f} in the first "
            f"tenth, {self.last_per_second:,.1f} in the last"
        )


def sustained_of(runner: Runner, seconds: float, shown: bool) -> Sustained:
    """Runs a file that holds its inputs for so many seconds, at least 20 times; `shown` is whether to draw a bar."""
    ends = [time.perf_counter()]
    with progress("seconds", seconds, shown) as update:
        while len(ends) <= _MIN_RUNS or ends[-1] - ends[0] < seconds:
            runner.invoke()
            ends.append(time.perf_counter())
            update(min(ends[-1] - ends[0], seconds))
    return rates(np.array(ends))


def rates(ends: np.ndarray) -> Sustained:
    """Rates from the times at which inferences ended.

    Args:
        ends: Array (runs + 1,) of seconds, ascending; the first is when it began.
    """
    runs = len(ends) - 1
    part = max(1, runs // 10)
    return Sustained(
        seconds=float(ends[-1] - ends[0]),
        runs=runs,
        per_second=float(runs / (ends[-1] - ends[0])),
        first_per_second=float(part / (ends[part] - ends[0])),
        last_per_second=float(part / (ends[-1] - ends[-1 - part])),
    )
