"""Whether representative data look like data in use: what can be seen without running the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FEW = 32
_PIXELS = 32.0  # larger values than this in all samples: pixels 0..255, not 0..1 or standard scores
_FAR = 20.0


@dataclass(frozen=True)
class Finding:
    """One thing about calibration data that may ruin an integer file.

    Attributes:
        kind: `"few"`, `"alike"`, `"constant"`, `"scale"`, `"outliers"`, `"never active"`,
            `"not looked at"`.
        problem: What was found, with numbers.
        mend: What to do.
        where: Input or layer.
    """

    kind: str
    problem: str
    mend: str
    where: str = ""

    def __str__(self) -> str:
        place = f"{self.where!r}: " if self.where else ""
        return f"{place}{self.problem}. {self.mend}."


def findings(arrays: Mapping[str, np.ndarray], *, rescales: bool = False) -> list[Finding]:
    """What is strange about the data themselves.

    Args:
        arrays: Input name -> array (n, ...).
        rescales: Whether the model begins with a Rescaling or Normalization, which takes pixels as they are.
    """
    found = []
    count = len(next(iter(arrays.values())))
    if count < FEW:
        found.append(
            Finding(
                "few",
                f"{count} samples of representative data: ranges will be too narrow",
                "Give 100-500 samples as in use",
            )
        )
    elif _alike(arrays):
        found.append(Finding("alike", f"all {count} samples are the same", "Give different ones, as in use"))
    for name, values in arrays.items():
        if values.dtype.kind == "f":
            found += _of_input(name, values.astype(np.float32), rescales)
    return found


def _of_input(name: str, values: np.ndarray, rescales: bool) -> Iterator[Finding]:
    largest = float(np.abs(values).max(initial=0))
    if values.size > 1 and float(np.ptp(values)) == 0:
        yield Finding("constant", f"all numbers are {values.flat[0]:g}", "Give data as in use", name)
        return
    if not rescales and values.ndim == 4 and values.shape[-1] in (1, 3) and _PIXELS < largest <= 255:
        yield Finding(
            "scale",
            f"pixels up to {largest:g}, and the model does not begin by rescaling them",
            "If it was trained on 0..1 or -1..1, give the data as `fit` had them, e.g. x / 255",
            name,
        )
    typical = float(np.percentile(np.abs(values), 99.9)) if values.size >= 10_000 else 0.0
    if typical > 0 and largest > _FAR * typical:
        yield Finding(
            "outliers",
            f"the largest number, {largest:.3g}, is {largest / typical:.0f} times the 99.9th percentile",
            "int8 spreads its 256 steps up to it: clip or remove what is not seen in use",
            name,
        )


def _alike(arrays: Mapping[str, np.ndarray]) -> bool:
    return all(len(values) > 1 and bool((values == values[:1]).all()) for values in arrays.values())
