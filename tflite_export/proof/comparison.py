"""Which of several files, or numbers of threads, is faster, on a machine that does other things, too."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tflite_export.proof.verification import TFLite
from tflite_export.runtime.cold import first_use
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.ready import ready
from tflite_export.runtime.runner import KERNELS, Runner

_RESAMPLES = 2000


@dataclass(frozen=True)
class FileTime:
    """How long one inference of a file takes, beside the first one.

    Attributes:
        name: As given; with the number of threads, if there are several.
        min_ms: Of the least disturbed block.
        median_ms: Over all blocks.
        ratio: min_ms over that of the first file.
        median_ratio: Median of the ratios of blocks that ran one after the other.
        low, high: 95 % interval of that median, by bootstrap.
        threads: CPU threads.
    """

    name: str
    min_ms: float
    median_ms: float
    ratio: float
    median_ratio: float
    low: float
    high: float
    threads: int


@dataclass(frozen=True)
class Comparison:
    """Times of several files from interleaved runs.

    Attributes:
        files: In the order given, each with every number of threads; ratios are those to the first.
        rounds: Blocks of each.
        kernels: `"xnnpack"`, `"builtin"` or `"reference"`.
    """

    files: tuple[FileTime, ...]
    rounds: int
    kernels: str

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
    files: Mapping[str, TFLite],
    *,
    threads: int | Sequence[int] = 1,
    rounds: int = 20,
    block_ms: float = 20.0,
    kernels: str = "xnnpack",
) -> Comparison:
    """Times several files in turns, block by block, so that what disturbs one disturbs all.

    Args:
        files: Name -> `TFLiteModel`, path or bytes; the first one is the base of the ratios.
        threads: Integer >= 1, CPU threads; of several, e.g. `(1, 2, 4)`, each file runs with all. Defaults to 1.
        rounds: Integer >= 3, blocks of each file. Defaults to 20.
        block_ms: Float > 0, about how long a block runs. Defaults to 20.
        kernels: As in `benchmark`. Defaults to `"xnnpack"`.

    Returns: a `Comparison`; print it.
    Raises: ValueError, TypeError, FileNotFoundError.
    Example:
    ```
    compare({"float32": a, "int8": b}, threads=(1, 2)).fastest.name     # "int8, 2 threads"
    ```
    """
    if not isinstance(files, Mapping) or not files:
        raise ValueError("`files` must be a dict name -> file with at least one entry.")
    if not isinstance(rounds, int) or rounds < 3:
        raise ValueError(f"`rounds` must be an integer >= 3; got {rounds!r}.")
    if not block_ms > 0:
        raise ValueError(f"`block_ms` must be a number > 0; got {block_ms!r}.")
    counts = tuple(threads) if isinstance(threads, Sequence) else (threads,)
    if not counts or len(set(counts)) < len(counts):
        raise ValueError(f"`threads` must be an integer, or different ones; got {threads!r}.")
    loaded = {name: TFLiteModel.load(file) for name, file in files.items()}
    for file in loaded.values() if kernels in KERNELS[1:] else ():  # which end the process for some files
        first_use(file, 1, kernels)
    runners = {(name, count): ready(file, count, kernels) for name, file in loaded.items() for count in counts}
    times = _in_turns(list(runners.values()), rounds, block_ms)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, rounds, (_RESAMPLES, rounds))
    names = [name if len(counts) == 1 else f"{name}, {_threads(count)}" for name, count in runners]
    found = [
        _file_time(name, count, times[:, place], times[:, 0], draws)
        for place, (name, (_, count)) in enumerate(zip(names, runners, strict=True))
    ]
    return Comparison(tuple(found), rounds, kernels)


def _in_turns(runners: list[Runner], rounds: int, block_ms: float) -> np.ndarray:
    """Milliseconds of one inference, array (rounds, runners)."""
    sizes = [_count(runner, block_ms) for runner in runners]
    return np.array(
        [[_block(runner, size) for runner, size in zip(runners, sizes, strict=True)] for _ in range(rounds)]
    )


def _file_time(name: str, threads: int, own: np.ndarray, base: np.ndarray, draws: np.ndarray) -> FileTime:
    """One row, from times by round; `draws` are the rounds of each resample."""
    ratios = own / base
    low, high = np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5])
    return FileTime(
        name=name,
        min_ms=float(own.min()),
        median_ms=float(np.median(own)),
        ratio=float(own.min() / base.min()),
        median_ratio=float(np.median(ratios)),
        low=float(low),
        high=float(high),
        threads=threads,
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"


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
