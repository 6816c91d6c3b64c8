"""How a speed is judged on a noisy machine.

Blocks of all sides run in turn in one process. The ratio of the minima compares the least disturbed block
of each side; the paired ratios, round by round, give a median with a bootstrap 95 % interval.
"""

import time
from collections.abc import Callable

import numpy as np


def compare(blocks: dict[str, Callable[[], None]], rounds: int = 20) -> dict[str, tuple[float, float, float, float]]:
    """Times every block `rounds` times, interleaved, and prints its ratios to the first one.

    Args:
        blocks: Name -> a function that does one block of work (a few tenths of a second).
        rounds: Integer >= 20.

    Returns: name -> (ratio of the minima, median of the paired ratios, lower and upper end of its
        95 % interval).
    """
    seconds = interleaved(blocks, rounds)
    base, *others = blocks
    results = {name: ratios(seconds[name], seconds[base]) for name in others}
    print(f"{rounds} interleaved rounds; {base}: fastest block {min(seconds[base]) * 1000:.0f} ms")
    print(f"| ratio to {base} | of the minima | median of pairs | 95 % interval |")
    print("|---|---|---|---|")
    for name, (minima, median, low, high) in results.items():
        print(f"| {name} | {minima:.3f} | {median:.3f} | {low:.3f} - {high:.3f} |")
    return results


def interleaved(blocks: dict[str, Callable[[], None]], rounds: int = 20) -> dict[str, list[float]]:
    """Seconds of every block, `rounds` times, in turn; the first runs, which compile and warm up, are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in blocks}
    for block in blocks.values():
        block()
    for turn in range(rounds):
        names = list(blocks)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            blocks[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(times: list[float], base: list[float], draws: int = 10_000) -> tuple[float, float, float, float]:
    """(ratio of the minima, median of the paired ratios, and its bootstrap 95 % interval)."""
    paired = np.array(times) / np.array(base)
    sample = np.random.default_rng(0).choice(paired, size=(draws, len(paired)))
    low, high = np.quantile(np.median(sample, axis=1), [0.025, 0.975])
    return min(times) / min(base), float(np.median(paired)), float(low), float(high)
