"""Who runs which operation of a file: frozen results, as a table and as JSON."""

import json
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass

WHOLE, IN_PART, NOT_AT_ALL = "runs whole", "runs in part", "does not run"
MEASURED, WRITTEN = "measured here", "from documentation, not run here"
_SHOWN, _WIDTH = 3, 120


@dataclass(frozen=True)
class Fallback:
    """Operations that a delegate does not run, of one kind, layer and reason.

    Attributes:
        op: Name, e.g. `"CUMSUM"`.
        count: How many.
        layer: Path of the layer's scope, as `inspect` shows it; empty if it is not known.
        reason: Why not.
    """

    op: str
    count: int
    layer: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What one delegate makes of a file.

    Attributes:
        name: Of the delegate.
        measured: Whether it ran here; otherwise all is from documentation.
        source: Runtime that was measured, or documents and their dates.
        runs: Operations of the main graph that it runs.
        falls_back: Those that stay on the CPU, or, where a file runs whole or not at all, those in the way.
        partitions: Pieces of operations that it has, before its own limit on how many of them it takes. 1 is best.
        macs_share: Fraction in [0, 1] of the multiply-accumulates that it computes.
        verdict: `"runs whole"`, `"runs in part"` or `"does not run"`.
        advice: What to do, and what to know.
    """

    name: str
    measured: bool
    source: str
    runs: int
    falls_back: tuple[Fallback, ...]
    partitions: int
    macs_share: float
    verdict: str
    advice: str

    def __str__(self) -> str:
        basis = f"{MEASURED if self.measured else WRITTEN}: {self.source}"
        said = [line for text in (self.advice, basis) for line in _wrapped(text)]
        return "\n".join([f"{self.name}: {self.verdict}", *_reasons(self), *said])


@dataclass(frozen=True)
class DelegateReport:
    """Which delegates run a file.

    Attributes:
        operations: Of the main graph.
        macs: Multiply-accumulates of one run.
        verdicts: One for each delegate asked about.
    """

    operations: int
    macs: int
    verdicts: tuple[Verdict, ...]

    def __getitem__(self, name: str) -> Verdict:
        """The verdict of a delegate by its name."""
        for verdict in self.verdicts:
            if verdict.name == name:
                return verdict
        raise KeyError(f"No verdict on {name!r}; there are {', '.join(one.name for one in self.verdicts)}.")

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "DelegateReport":
        """What `to_json` wrote."""
        stored = json.loads(text)
        verdicts = (
            Verdict(**{**one, "falls_back": tuple(Fallback(**left) for left in one["falls_back"])})
            for one in stored["verdicts"]
        )
        return cls(stored["operations"], stored["macs"], tuple(verdicts))

    def __str__(self) -> str:
        title = f"{self.operations} operations, {self.macs:,} multiply-accumulates"
        return "\n".join([title, *_table(self), *(f"\n{verdict}" for verdict in self.verdicts)])


def _table(report: DelegateReport) -> list[str]:
    rows = [("delegate", "verdict", "operations", "pieces", "MACs", "basis")]
    for one in report.verdicts:
        share = f"{one.runs} of {report.operations}"
        basis = MEASURED if one.measured else WRITTEN
        rows.append((one.name, one.verdict, share, str(one.partitions), f"{one.macs_share:.0%}", basis))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def _reasons(verdict: Verdict) -> Iterable[str]:
    """One line for each operation and reason."""
    groups: dict[tuple[str, str], list[Fallback]] = {}
    for left in verdict.falls_back:
        groups.setdefault((left.op, left.reason), []).append(left)
    for (op, reason), parts in groups.items():
        count = sum(part.count for part in parts)
        layers = [part.layer for part in parts if part.layer]
        more = f" and {len(layers) - _SHOWN} more" if len(layers) > _SHOWN else ""
        where = f" ({', '.join(layers[:_SHOWN])}{more})" if layers else ""
        yield f"  {op}{f' x{count}' if count > 1 else ''}{where}: {reason}"
