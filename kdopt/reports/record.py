"""What a report is made of: plain records that go to JSON and back."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kdopt.core.files import write_atomic

SCHEMA = 1


@dataclass(frozen=True)
class Variant:
    """One `.tflite` file and everything measured on it.

    Attributes:
        name: Unique, for people: "student int8".
        precision: As the exporter names it: "float32", "float16", "int8".
        file: Name of the file, next to the report.
        accuracy: Fraction in [0, 1] of test images that the file itself classifies right.
        size_bytes, gzip_bytes: Of the file, raw and after gzip at level 9.
        latency_ms, latency_p90_ms: Of one inference of one sample.
        parameters, nonzero, macs: Of the model it was made from; multiply-accumulates for one sample.
        verification: What the comparison with that model found: at least `passed` (bool) and `why` (string).
        robustness: Mean accuracy on the test images under noise, blur and low contrast; `None` if not measured.
    """

    name: str
    precision: str
    file: str
    accuracy: float
    size_bytes: int
    gzip_bytes: int
    latency_ms: float
    latency_p90_ms: float
    parameters: int
    nonzero: int
    macs: int
    verification: dict[str, Any]
    robustness: float | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among all parameters, in [0, 1]."""
        return 1 - self.nonzero / self.parameters


@dataclass(frozen=True)
class Gain:
    """What a variant wins and loses against the reference: above 1 is smaller, faster, less work.

    Attributes:
        size, gzip, speed, macs: Reference divided by variant: bytes, gzip bytes, latency, multiply-accumulates.
        points: Accuracy difference in percentage points; negative is lost.
    """

    size: float
    gzip: float
    speed: float
    macs: float
    points: float


@dataclass(frozen=True)
class Report:
    """One run.

    Attributes:
        title: Heading.
        facts: Name -> value, what the run was: data set, seed, versions, machine. Strings or numbers.
        stages: Name -> epochs, each a dict with `epoch` (from 1) and what training logged: `val_accuracy`, `sparsity`.
        variants: At least one.
        reference: Name of the variant the others are compared with.
        seconds: Duration of the run.
        notes: Sentences a reader must know.
    """

    title: str
    facts: dict[str, Any]
    stages: dict[str, list[dict[str, float]]]
    variants: tuple[Variant, ...]
    reference: str
    seconds: float
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variants]
        if len(set(names)) != len(names):
            raise ValueError(f"Variants must have different names; got {names}.")
        if self.reference not in names:
            raise ValueError(f"`reference` must name a variant, one of {names}; got {self.reference!r}.")

    def variant(self, name: str) -> Variant:
        """The variant of that name."""
        return next(variant for variant in self.variants if variant.name == name)

    def gain(self, variant: Variant) -> Gain:
        """`variant` against the reference."""
        base = self.variant(self.reference)
        return Gain(
            size=base.size_bytes / variant.size_bytes,
            gzip=base.gzip_bytes / variant.gzip_bytes,
            speed=base.latency_ms / variant.latency_ms,
            macs=base.macs / variant.macs,
            points=100 * (variant.accuracy - base.accuracy),
        )


def write_json(report: Report, path: str | os.PathLike[str]) -> Path:
    """Writes `report` as JSON, whole or not at all; numbers that JSON cannot say (infinity, NaN) become null."""
    content = {"schema": SCHEMA, **asdict(report)}
    return write_atomic(path, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | os.PathLike[str]) -> Report:
    """Reads what `write_json` wrote.

    Raises: ValueError if it is something else.
    """
    try:
        content = json.loads(Path(path).read_text())
        if content.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        names = {field.name for field in fields(Report)}
        variants = tuple(Variant(**variant) for variant in content.pop("variants"))
        known = {name: content[name] for name in names & set(content)}
        return Report(**{**known, "variants": variants, "notes": tuple(content["notes"])})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not a report of this version of kdopt: {error}") from error


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
