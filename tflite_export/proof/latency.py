"""How long one inference takes."""

import time
from dataclasses import dataclass

import numpy as np

from tflite_export.proof.verification import TFLite
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec

_MIN_WARMUP, _MIN_RUNS, _MAX_RUNS = 3, 5, 5000


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one inference (one batch), in milliseconds.

    Attributes:
        median_ms, p90_ms, mean_ms, min_ms: Over `runs`; p90 is the time that 90 % of the runs stay within.
        runs: Measured inferences.
        warmup: Inferences before, not counted.
        threads: CPU threads.
    """

    median_ms: float
    p90_ms: float
    mean_ms: float
    min_ms: float
    runs: int
    warmup: int
    threads: int

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.3f} ms median, {self.p90_ms:.3f} ms p90, {self.min_ms:.3f} ms min "
            f"({self.runs} runs, {self.threads} thread{'s' if self.threads > 1 else ''})"
        )


def benchmark(tflite: TFLite, threads: int = 1, *, seconds: float = 1.0) -> Latency:
    """Times inferences on ai_edge_litert (CPU, XNNPACK), without the copies in and out.

    The first quarter of the time warms up. On a busy machine look at `min_ms`, and at ratios of interleaved runs.

    Args:
        tflite: `TFLiteModel`, path, or bytes. A file with any batch size runs with one sample.
        threads: Integer >= 1, CPU threads.
        seconds: Float > 0, time spent; at least 3 + 5 inferences are made, at most 5,000 counted. Defaults to `1.0`.

    Returns: a `Latency`.
    Raises: TypeError, ValueError, FileNotFoundError.
    """
    if not isinstance(seconds, float | int) or not 0 < seconds < float("inf"):
        raise ValueError(f"`seconds` must be a number > 0; got {seconds!r}.")
    runner = loaded(tflite, threads)
    warmup = len(_timed(runner, 0.25 * seconds, _MIN_WARMUP))
    times = 1e3 * np.array(_timed(runner, 0.75 * seconds, _MIN_RUNS))
    return Latency(
        median_ms=float(np.median(times)),
        p90_ms=float(np.percentile(times, 90)),
        mean_ms=float(np.mean(times)),
        min_ms=float(np.min(times)),
        runs=len(times),
        warmup=warmup,
        threads=threads,
    )


def loaded(tflite: TFLite, threads: int, kernels: str = "xnnpack") -> Runner:
    """A file that is ready to run on random numbers.

    Raises: ValueError, TypeError, FileNotFoundError.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"`threads` must be an integer >= 1; got {threads!r}.")
    file = TFLiteModel.load(tflite)
    runner = Runner(file.content, threads, kernels=kernels)
    specs = {name: InputSpec((None, *spec.shape[1:]), spec.dtype) for name, spec in file.float_specs.items()}
    runner.set_inputs(samples.random_sample(specs, runner.batch or 1))
    return runner


def _timed(runner: Runner, budget: float, least: int) -> list[float]:
    """Seconds of each inference until `budget` seconds are over, at least `least` of them."""
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < least or (time.perf_counter() < end and len(times) < _MAX_RUNS):
        start = time.perf_counter()
        runner.invoke()
        times.append(time.perf_counter() - start)
    return times
