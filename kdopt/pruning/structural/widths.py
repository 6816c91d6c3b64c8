"""Which widths are really faster: what is known of some processors, or what is measured on yours."""

from collections.abc import Callable, Iterable

import keras
import numpy as np

from kdopt.core.validation import check_integer

# Widths between two multiples cost as much as the larger one: the tile of the matrix product.
ROUND_TO = {"arm": 8, "avx512": 32}
_CANDIDATES = (2, 4, 8, 16, 32, 64)


def checked_round_to(round_to: int | str) -> int:
    """An integer >= 1, or the one of a name in `ROUND_TO`.

    Raises: ValueError.
    """
    if isinstance(round_to, str) and round_to not in ROUND_TO:
        names = " or ".join(repr(name) for name in ROUND_TO)
        raise ValueError(
            f"`round_to` must be an integer >= 1, {names}; got {round_to!r}. `measure_round_to` finds it for a device."
        )
    if isinstance(round_to, str):
        return ROUND_TO[round_to]
    return check_integer("round_to", round_to)


def measure_round_to(
    latency_of: Callable[[keras.Model], float],
    *,
    widths: Iterable[int] = range(4, 133, 4),
    shape: tuple[int, int, int] = (16, 16, 64),
    repeats: int = 5,
    make: Callable[[int], keras.Model] | None = None,
) -> int:
    """Finds the multiple of channels that a device computes at a time, by timing nets of many widths.

        latency(w) = a + c * w + b * ceil(w / m)        least squares for m = 2, 4, ... 64; the m that fits best

    It must fit by a quarter better than a straight line does, or 1 is returned: the latency knows no steps. Of fits
    that are as good (within 5 %) the smallest m. Each net is timed `repeats` times, all in turn, and the shortest time
    counts.

    Args:
        latency_of: Function model -> float, any unit, e.g. `lambda m: benchmark(convert(m, "int8", x)).median_ms`.
        widths: Integers, at least eight different ones, not all multiples of 64. Defaults to 4, 8, ... 132.
        shape: (height, width, channels) of the input of the nets that are timed. Defaults to `(16, 16, 64)`.
        repeats: Integer >= 1. Defaults to `5`.
        make: Function width -> model of that width. Defaults to `None`: a 1x1 convolution of that width between two
            of 64 channels.

    Returns: integer >= 1, for `round_to`.
    Raises: ValueError for too few widths, or latencies that are no positive numbers.

    Example:
    ```
    small, plan = prune_channels(model, macs=0.5, round_to=measure_round_to(my_phone))
    ```
    """
    check_integer("repeats", repeats)
    if not callable(latency_of):
        raise TypeError(f"`latency_of` must be a function model -> number; got {latency_of!r}.")
    sizes = sorted({check_integer("widths", width) for width in widths})
    if len(sizes) < 8 or all(size % max(_CANDIDATES) == 0 for size in sizes):
        raise ValueError(f"`widths` must be eight different integers at least, not all multiples of 64; got {sizes}.")
    models = [(make or (lambda width: _net(width, shape)))(size) for size in sizes]
    times = np.array([[float(latency_of(model)) for model in models] for _ in range(repeats)]).min(axis=0)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError(f"`latency_of` must return positive numbers; got {times.tolist()}.")
    return best_multiple(np.array(sizes), times)


def best_multiple(widths: np.ndarray, times: np.ndarray) -> int:
    """The m whose steps, a + c * w + b * ceil(w / m) with b > 0, fit the times best; 1 where a line does as well.

    Args:
        widths: Integer array (n,).
        times: Float array (n,).
    """
    line = np.stack([np.ones(len(widths)), widths.astype(float)], axis=1)
    straight, _ = _fit(line, times)
    errors = {}
    for multiple in _CANDIDATES:
        error, weights = _fit(np.column_stack([line, -(-widths // multiple)]), times)
        if weights[-1] > 0:
            errors[multiple] = error
    rounding = 1e-9 * float(np.linalg.norm(times))
    best = min(errors.values(), default=np.inf)
    if best > 0.75 * straight or straight <= rounding:
        return 1
    return next(m for m, error in errors.items() if error <= 1.05 * best + rounding)


def _fit(table: np.ndarray, times: np.ndarray) -> tuple[float, np.ndarray]:
    """(norm of what is left, weights) of the least-squares fit."""
    weights = np.linalg.lstsq(table, times, rcond=None)[0]
    return float(np.linalg.norm(table @ weights - times)), weights


def _net(width: int, shape: tuple[int, int, int]) -> keras.Model:
    inputs = keras.Input(shape)
    hidden = keras.layers.Conv2D(width, 1, activation="relu", name="narrow")(inputs)
    return keras.Model(inputs, keras.layers.Conv2D(64, 1)(hidden))
