"""How long one inference takes, and what else a file costs while it runs."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export.proof.profile import Profile, profile_of
from tflite_export.proof.sustained import Sustained, sustained_of
from tflite_export.proof.verification import TFLite
from tflite_export.runtime.cold import first_use
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.ready import check, ready
from tflite_export.runtime.runner import Runner
from tflite_export.tflite.energy import EnergyEstimate, energy_estimate

_MIN_WARMUP, _MIN_RUNS, _MAX_RUNS = 3, 5, 5000


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one inference (one batch), in milliseconds, and what else it costs.

    Attributes:
        median_ms, p90_ms, mean_ms, min_ms: Over `runs`; p90 is the time that 90 % of the runs stay within.
        runs: Measured inferences.
        warmup: Inferences before, not counted.
        threads: CPU threads.
        kernels: `"xnnpack"`, `"builtin"` or `"reference"`.
        spread: (third quartile - first quartile) / median; above 0.1 the machine was busy.
        load_ms: Of the first load in a fresh process: reading the mapped file, preparing kernels, making tensors. The
            import of the runtime, and the first read from a disk, are not in it. None if not asked for.
        first_ms: Of the first inference there, which sets up what is left to do. None if not asked for.
        peak_memory_bytes: By how much the resident memory of that process grew from before the load to its peak, over
            the load and six inferences: tensors, prepared and mapped weights, about 3 MB of the runtime's own code.
            Inputs of the caller are not in it. None if not asked for, and where no Linux tells it.
        arena_bytes: What the tensors of the main graph take when the runtime's own kernels run it, those that share a
            place counted once, without weights; XNNPACK keeps its tensors in a workspace that it tells nothing about.
            None if not asked for, or if the built-in kernels cannot run the file.
        energy: An estimate of joules from work and bytes, not a measurement.
        sustained: Inferences per second over a longer time; None if not asked for.
        profile: Time by operation; None if not asked for.
    """

    median_ms: float
    p90_ms: float
    mean_ms: float
    min_ms: float
    runs: int
    warmup: int
    threads: int
    kernels: str
    spread: float
    load_ms: float | None
    first_ms: float | None
    peak_memory_bytes: int | None
    arena_bytes: int | None
    energy: EnergyEstimate
    sustained: Sustained | None
    profile: Profile | None

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        lines = [
            f"{self.median_ms:.3f} ms median, {self.p90_ms:.3f} ms p90, {self.min_ms:.3f} ms min, "
            f"spread {self.spread:.0%} ({self.runs} runs, {threads}, {self.kernels})"
        ]
        if self.load_ms is not None:
            lines.append(f"load {self.load_ms:.1f} ms, first inference {self.first_ms:.1f} ms{self._memory()}")
        lines += [str(part) for part in (self.sustained, self.energy) if part is not None]
        if self.profile is not None:
            lines.append(f"by operation, {self.profile.runs} runs:\n{self.profile}")
        return "\n".join(lines)

    def _memory(self) -> str:
        sizes = (("peak memory", self.peak_memory_bytes), ("arena", self.arena_bytes))
        return "".join(f", {name} {size:,} bytes" for name, size in sizes if size is not None)


def benchmark(
    tflite: TFLite,
    threads: int = 1,
    *,
    seconds: float = 1.0,
    kernels: str = "xnnpack",
    cold: bool = True,
    sustained: float | None = None,
    profile: bool = False,
    verbose: int = 0,
) -> Latency:
    """Times inferences on ai_edge_litert (CPU), on random inputs, without the copies in and out.

    The first quarter of the time warms up. On a busy machine look at `min_ms`; `compare` times files, and numbers of
    threads, in turns.

    Args:
        tflite: `TFLiteModel`, path, or bytes. A file with any batch size runs with one sample.
        threads: Integer >= 1, CPU threads.
        seconds: Float > 0, time spent; at least 3 + 5 inferences are made, at most 5,000 counted. Defaults to `1.0`.
        kernels: `"xnnpack"`, as apps run it; `"builtin"`, the runtime's own; `"reference"`, its plain loops. The last
            two end the process for some files, so a fresh one tries them first. Defaults to `"xnnpack"`.
        cold: Whether to load it in a fresh process, too, for `load_ms`, `first_ms`, `peak_memory_bytes` and
            `arena_bytes`; takes half a second, and is done in any case with other kernels. Defaults to True.
        sustained: Float > 0, seconds of inferences without a pause; 60 for video. None: not measured.
        profile: Whether to ask the runtime how long each operation takes, for another `seconds`. It is part of the C
            interface of ai_edge_litert 2.2 and later. Not for `"reference"`, open sizes, loops, several signatures.
        verbose: 1 draws a bar on standard error while `sustained` runs, 0 nothing. Defaults to 0.

    Returns: a `Latency`; print it.
    Raises: TypeError, FileNotFoundError; ValueError, also for a file that ends the runtime with these kernels;
        RuntimeError if a profile is asked for and this ai_edge_litert gives none.
    Example:
    ```
    print(tflite_export.benchmark("model.tflite", sustained=60))
    ```
    """
    _check_seconds("seconds", seconds)
    if sustained is not None:
        _check_seconds("sustained", sustained)
    check(threads, kernels)
    file = TFLiteModel.load(tflite)
    profiled = profile_of(file, threads, kernels, seconds) if profile else None
    found: dict[str, Any] = first_use(file, threads, kernels) if cold or kernels != "xnnpack" else {}
    runner = ready(file, threads, kernels)
    return Latency(
        **_times(runner, seconds),
        threads=threads,
        kernels=kernels,
        load_ms=found.get("load_ms"),
        first_ms=found.get("first_ms"),
        peak_memory_bytes=found.get("peak_memory_bytes"),
        arena_bytes=found.get("arena_bytes"),
        energy=energy_estimate(file),
        sustained=None if sustained is None else sustained_of(runner, sustained, bool(verbose)),
        profile=profiled,
    )


def _check_seconds(name: str, value: Any) -> None:
    if not isinstance(value, float | int) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError(f"`{name}` must be a number > 0; got {value!r}.")


def _times(runner: Runner, seconds: float) -> dict[str, Any]:
    warmup = len(_timed(runner, 0.25 * seconds, _MIN_WARMUP))
    times = 1e3 * np.array(_timed(runner, 0.75 * seconds, _MIN_RUNS))
    first, median, third, p90 = (float(value) for value in np.percentile(times, [25, 50, 75, 90]))
    return {
        "median_ms": median,
        "p90_ms": p90,
        "mean_ms": float(np.mean(times)),
        "min_ms": float(np.min(times)),
        "runs": len(times),
        "warmup": warmup,
        "spread": (third - first) / median,
    }


def _timed(runner: Runner, budget: float, least: int) -> list[float]:
    """Seconds of each inference until `budget` seconds are over, at least `least` of them."""
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < least or (time.perf_counter() < end and len(times) < _MAX_RUNS):
        start = time.perf_counter()
        runner.invoke()
        times.append(time.perf_counter() - start)
    return times
