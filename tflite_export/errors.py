"""The one error of its own that this package raises."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One thing in which a file is not what it was to be.

    Attributes:
        rule: What it breaks, e.g. `"builtin operations"`.
        problem: What was found, with numbers.
        op: Operation, e.g. `"CONV_2D"`; empty if it is about the whole file.
        layer: Keras layer it comes from, `outer/inner` in a nested model; empty if that is not known.
        mend: What to do about it.
    """

    rule: str
    problem: str
    op: str = ""
    layer: str = ""
    mend: str = ""

    def __str__(self) -> str:
        place = f"layer {self.layer!r}: " if self.layer else ""
        return f"{place}{self.problem}.{f' {self.mend}.' if self.mend else ''}"


class ConversionError(RuntimeError):
    """A source that cannot become a correct file of the wanted precision: which layer, why, what to do.

    Bad arguments (unknown precision, unusable data, missing file) are `ValueError`, `TypeError` or `OSError` instead.

    Attributes:
        violations: What is wrong with the file that was made; empty if none could be made.
    """

    def __init__(self, message: str, violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.violations = tuple(violations)
