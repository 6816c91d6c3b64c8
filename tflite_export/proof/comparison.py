"""Which of several files is faster, on a machine that does other things, too."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tflite_export.proof.latency import loaded
from tflite_export.proof.verification import TFLite
from tflite_export.runtime.runner import Runner

_RESAMPLES = 2000


@dataclass(frozen=True)
class FileTime:
    """How long one inference of a file takes, beside the first one.

    Attributes:
        name: As given.
        min_ms: Of the least disturbed block.
        median_ms: Over all blocks.
        ratio: min_ms over that of the first file.
        median_ratio: Median of the ratios of blocks that ran one after the other.
        low, high: 95 % interval of that median, by bootstrap.
    """

    name: str
    min_ms: float
    median_ms: float
    ratio: float
    median_ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Times of several files from interleaved runs.

    Attributes:
        files: In the order given; ratios are those to the first.
        rounds: Blocks of each.
        threads: CPU threads.
    """

    files: tuple[FileTime, ...]
    rounds: int
    threads: int

    @property
    def fastest(self) -> FileTime:
        """By the least disturbed block."""
        return min(self.files, key=lambda file: file.min_ms)

    def __str__(self) -> str:
        width = max(len(file.name) for file in self.files)
        rows = [
            f"  {file.name.ljust(width)}  {file.min_ms:9.3f} ms min  {file.ratio:6.3f}   "
            f"{file.median_ratio:6.3f} ({file.low:.3f} - {file.high:.3f})"
            for file in self.files
        ]
        head = f"  {'':{width}}  {'':13}  ratio of minima, median ratio (95 %); {self.rounds} rounds"
        return "\n".join([head, *rows])


def compare(
    files: Mapping[str, TFLite], *, threads: int = 1, rounds: int = 20, block_ms: float = 20.0, kernels: str = "xnnpack"
) -> Comparison:
    """Times several files in turns, block by block, so that what disturbs one disturbs all.

    Args:
        files: Name -> `TFLiteModel`, path or bytes; the first one is the base of the ratios.
        threads: Integer >= 1, CPU threads. Defaults to 1.
        rounds: Integer >= 3, blocks of each file. Defaults to 20.
        block_ms: Float > 0, about how long a block runs. Defaults to 20.
        kernels: `"xnnpack"`, or `"builtin"` without it. Defaults to `"xnnpack"`.

    Returns: a `Comparison`.
    Raises: ValueError, TypeError, FileNotFoundError.
    """
    if not isinstance(files, Mapping) or not files:
        raise ValueError("`files` must be a dict name -> file with at least one entry.")
    if not isinstance(rounds, int) or rounds < 3:
        raise ValueError(f"`rounds` must be an integer >= 3; got {rounds!r}.")
    if not block_ms > 0:
        raise ValueError(f"`block_ms` must be a number > 0; got {block_ms!r}.")
    runners = {name: loaded(file, threads, kernels) for name, file in files.items()}
    counts = {name: _count(runner, block_ms) for name, runner in runners.items()}
    times = np.empty((rounds, len(runners)))
    for turn in range(rounds):
        for place, (name, runner) in enumerate(runners.items()):
            times[turn, place] = _block(runner, counts[name])
    generator = np.random.default_rng(0)
    draws = generator.integers(0, rounds, (_RESAMPLES, rounds))
    found = []
    for place, name in enumerate(runners):
        ratios = times[:, place] / times[:, 0]
        low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
        least, base = times[:, place].min(), times[:, 0].min()
        median = float(np.median(times[:, place]))
        found.append(
            FileTime(name, float(least), median, float(least / base), float(np.median(ratios)), float(low), float(high))
        )
    return Comparison(tuple(found), rounds, threads)


def _count(runner: Runner, block_ms: float) -> int:
    """Inferences in a block."""
    _block(runner, 2)
    return max(1, int(block_ms / max(_block(runner, 2), 1e-6)))


def _block(runner: Runner, count: int) -> float:
    """Milliseconds of one inference, the mean over a block."""
    start = time.perf_counter()
    for _ in range(count):
        runner.invoke()
    return 1e3 * (time.perf_counter() - start) / count
