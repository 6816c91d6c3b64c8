"""Whether representative data look like data in use: what can be seen without running the model."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FEW = 32
_PIXELS = 32.0  # larger values than this in all samples: pixels 0..255, not 0..1 or standard scores
_FAR = 20.0
_KEPT = 2**20  # numbers


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


class Statistics:
    """What is to be told about data that come a batch at a time; it keeps a few thousand numbers of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: Mapping[str, np.ndarray] = {}
        self._alike = True
        self._ranges: dict[str, _Range] = {}

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Takes a batch in: input name -> array (n, ...)."""
        self._first = self._first or {name: values[:1].copy() for name, values in batch.items()}
        self._alike = self._alike and all(bool((batch[name] == own).all()) for name, own in self._first.items())
        self.count += len(next(iter(batch.values())))
        for name, values in batch.items():
            if values.dtype.kind == "f":
                self._ranges.setdefault(name, _Range()).add(values)

    def findings(self, *, rescales: bool = False) -> list[Finding]:
        """What is strange about the data.

        Args:
            rescales: Whether the model begins with a Rescaling or Normalization, which takes pixels as they are.
        """
        found = []
        if self.count < FEW:
            found.append(
                Finding(
                    "few",
                    f"{self.count} samples of representative data: ranges will be too narrow",
                    "Give 100-500 samples as in use",
                )
            )
        elif self._alike:
            found.append(Finding("alike", f"all {self.count} samples are the same", "Give different ones, as in use"))
        for name, range_ in self._ranges.items():
            found += range_.findings(name, rescales)
        return found


def findings(arrays: Mapping[str, np.ndarray], *, rescales: bool = False) -> list[Finding]:
    """As `Statistics.findings`, of arrays (n, ...) by input name."""
    seen = Statistics()
    seen.add(arrays)
    return seen.findings(rescales=rescales)


class _Range:
    """The numbers of one input."""

    def __init__(self) -> None:
        self._low, self._high, self._size = np.inf, -np.inf, 0
        self._shape: tuple[int, ...] = ()
        self._kept: list[np.ndarray] = []
        self._stride = 1
        self._largest: list[float] = []

    def add(self, values: np.ndarray) -> None:
        """Takes numbers in: smallest, largest, and evenly spaced ones for the percentile."""
        flat = values.astype(np.float32).ravel()
        self._low, self._high = min(self._low, float(flat.min())), max(self._high, float(flat.max()))
        self._size += flat.size
        self._shape = values.shape
        if len(self._largest) < _KEPT:
            self._largest += np.abs(flat).reshape(len(values), -1).max(axis=1).tolist()
        self._kept.append(np.abs(flat[:: self._stride]))
        while sum(part.size for part in self._kept) > _KEPT:
            self._stride *= 2
            self._kept = [np.concatenate(self._kept)[::2].copy()]

    def findings(self, name: str, rescales: bool) -> Iterator[Finding]:
        """What is strange about them."""
        largest = max(abs(self._low), abs(self._high))
        if self._size > 1 and self._low == self._high:
            yield Finding("constant", f"all numbers are {self._low:g}", "Give data as in use", name)
            return
        if not rescales and len(self._shape) == 4 and self._shape[-1] in (1, 3) and _PIXELS < largest <= 255:
            yield Finding(
                "scale",
                f"pixels up to {largest:g}, and the model does not begin by rescaling them",
                "If it was trained on 0..1 or -1..1, give the data as `fit` had them, e.g. x / 255",
                name,
            )
        usual = float(np.median(self._largest))
        if len(self._largest) >= FEW and usual > 0 and max(self._largest) > _FAR * usual:
            yield Finding(
                "outliers",
                f"sample {int(np.argmax(self._largest))} reaches {max(self._largest):.3g}, half of the samples no more "
                f"than {usual:.3g}",
                "int8 spreads its 256 steps up to it: was it not scaled as the others? Mend or remove it",
                name,
            )
            return
        typical = float(np.percentile(np.concatenate(self._kept), 99.9)) if self._size >= 10_000 else 0.0
        if typical > 0 and largest > _FAR * typical:
            yield Finding(
                "outliers",
                f"the largest number, {largest:.3g}, is {largest / typical:.0f} times the 99.9th percentile",
                "int8 spreads its 256 steps up to it: clip or remove what is not seen in use",
                name,
            )
