"""Is the file the same function as its source, on the user's data?"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from tflite_export import metrics, precisions
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import records

_MAX_OVER_RMSE = 20
_MAX_STEP = 4 / 255  # of the peak: outputs of both signs, and calibration data that reached twice as far
TFLite = TFLiteModel | str | os.PathLike[str] | bytes


@dataclass(frozen=True)
class OutputCheck:
    """Distances of one output, as in `Verification`, and the limits of rmse and max_abs_error in the output's unit."""

    name: str
    max_abs_error: float
    rmse: float
    snr_db: float
    cosine: float
    top1_agreement: float | None
    rmse_limit: float
    max_limit: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """How far a file is from its source.

    With several outputs every number is that of the worst one; `outputs` has them apart.

    Attributes:
        max_abs_error: max |file - source|, in the output's unit.
        rmse: Root mean square of file - source, in the output's unit.
        snr_db: Power of the source's output over power of the error, in decibel.
        cosine: Of the angle between both outputs, all elements as one vector.
        top1_agreement: Fraction of samples with the same largest class; None unless an output looks like a
            classifier's: shape (n, classes >= 2), and no float input has that shape.
        tolerance: Largest accepted rmse as a fraction of the source's largest |output|; see `verify`.
        passed: Whether every output is within its tolerance.
        why: One sentence with the numbers that decided.
        samples: Number of samples compared.
        outputs: One `OutputCheck` for each output.
    """

    max_abs_error: float
    rmse: float
    snr_db: float
    cosine: float
    top1_agreement: float | None
    tolerance: float
    passed: bool
    why: str
    samples: int
    outputs: tuple[OutputCheck, ...]

    def __str__(self) -> str:
        top1 = "" if self.top1_agreement is None else f", top-1 agreement {self.top1_agreement:.2%}"
        return (
            f"{'passed' if self.passed else 'FAILED'}: {self.why}\n"
            f"  {self.samples} samples: snr {self.snr_db:.1f} dB, cosine {self.cosine:.6f}{top1}"
        )


def verify(source: Any, tflite: TFLite, data: Any, tolerance: float | None = None) -> Verification:
    """Runs source and file on the same data and compares their outputs.

        limit   = tolerance * max |source| + step
        passed <=> rmse <= limit  and  max |file - source| <= 20 * limit        for every output

    step is that of an int8 output with the default tolerance, as no such file can be closer, but at most 4/255 of
    max |source|; else 0. The first
    condition is about accuracy; the second about single values, such as one class of many that never fires.

    Args:
        source: As in `convert`.
        tflite: `TFLiteModel`, path, or bytes.
        data: As `representative_data` in `convert`; all of it is used.
        tolerance: Float > 0, or None for the precision's: 2e-5 for float32, 0.002 for float16, 0.04 for the others.

    Returns: a `Verification`.
    Raises: TypeError, ValueError, FileNotFoundError for what cannot be read; ValueError if the inputs or outputs of
        file and source do not match, or the source's own output is not finite.

    Example:
    ```
    print(tflite_export.verify(model, "model.tflite", x_test))
    # passed: rmse 0.0185 <= 0.0439, max |error| 0.314 <= 0.878 (tolerance 0.04 of the largest |output|)
    ```
    """
    if tolerance is not None and not (isinstance(tolerance, float | int) and 0 < tolerance < float("inf")):
        raise ValueError(f"`tolerance` must be a number > 0; got {tolerance!r}.")
    file = TFLiteModel.load(tflite)
    with silenced():
        resolved = resolve(source)
    arrays = samples.read(resolved.inputs, data, what="data")
    pairs = _pair(resolved, file)
    with silenced():
        expected = resolved.predict(arrays)
        found = Runner(file.content).run({pairs[name]: array for name, array in arrays.items()})
    _refuse_bad_reference(expected, resolved.label)
    names = [pairs[name] for name in expected]
    steps = [0.0] * len(names)
    if tolerance is None:
        tolerance, steps = precisions.get(file.precision).tolerance, _steps(file, names)
    input_shapes = [array.shape for array in arrays.values() if array.dtype.kind == "f"]
    checks = [
        _check(name, reference, found[other], (tolerance, step), input_shapes)
        for other, step, (name, reference) in zip(names, steps, expected.items(), strict=True)
    ]
    return _summary(checks, float(tolerance), len(next(iter(arrays.values()))))


def _pair(source: Source, file: TFLiteModel) -> dict[str, str]:
    """Name in the source -> name in the file. A single input or output matches whatever its name."""
    pairs: dict[str, str] = {}
    for what, ours, infos in (("inputs", tuple(source.inputs), file.inputs), ("outputs", source.outputs, file.outputs)):
        theirs = tuple(info.name for info in infos)
        if len(ours) == len(theirs) == 1:
            pairs[ours[0]] = theirs[0]
        elif set(ours) == set(theirs):
            pairs |= {name: name for name in ours}
        else:
            raise ValueError(f"{source.label} has the {what} {list(ours)}, the file {list(theirs)}: not its file.")
    for name, spec in source.inputs.items():
        wanted, found = spec.shape[1:], next(info.shape for info in file.inputs if info.name == pairs[name])[1:]
        if len(wanted) != len(found) or any(a not in (None, b) for a, b in zip(wanted, found, strict=True)):
            raise ValueError(f"{source.label} takes samples of shape {wanted}, the file of {found}: not its file.")
    return pairs


def _refuse_bad_reference(expected: dict[str, np.ndarray], label: str) -> None:
    for name, values in expected.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{label} itself gives NaN or infinity in output {name!r} on this data.")


def _steps(file: TFLiteModel, names: list[str]) -> list[float]:
    steps = dict(zip((info.name for info in file.outputs), records.output_steps(file.content), strict=True))
    return [steps[name] for name in names]


def _check(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    accepted: tuple[float, float],
    input_shapes: list[tuple[int, ...]],
) -> OutputCheck:
    if reference.shape != candidate.shape:
        raise ValueError(f"Output {name!r}: the source gives shape {reference.shape}, the file {candidate.shape}.")
    distance = metrics.errors(reference, candidate)
    tolerance, step = accepted
    # A file with a grid far wider than its source's outputs must not loosen its own limit.
    limit = tolerance * distance.peak + min(step, _MAX_STEP * distance.peak)
    classifier = reference.ndim == 2 and reference.shape[1] >= 2 and reference.shape not in input_shapes
    return OutputCheck(
        name=name,
        max_abs_error=distance.max_abs_error,
        rmse=distance.rmse,
        snr_db=distance.snr_db,
        cosine=distance.cosine,
        top1_agreement=metrics.top1_agreement(reference, candidate) if classifier else None,
        rmse_limit=limit,
        max_limit=_MAX_OVER_RMSE * limit,
        passed=distance.rmse <= limit and distance.max_abs_error <= _MAX_OVER_RMSE * limit,
    )


def _excess(check: OutputCheck) -> float:
    """How much of its limit an output uses: above 1 it fails."""
    if check.max_abs_error == 0:
        return 0.0
    if check.rmse_limit == 0:
        return float("inf")
    return max(check.rmse / check.rmse_limit, check.max_abs_error / check.max_limit)


def _why(check: OutputCheck, tolerance: float, several: bool) -> str:
    place = f"output {check.name!r}: " if several else ""
    sides = (("rmse", check.rmse, check.rmse_limit), ("max |error|", check.max_abs_error, check.max_limit))
    said = [f"{name} {value:.3g} {'<=' if value <= limit else '>'} {limit:.3g}" for name, value, limit in sides]
    return f"{place}{', '.join(said)} (tolerance {tolerance:g} of the largest |output|)"


def _summary(checks: list[OutputCheck], tolerance: float, samples: int) -> Verification:
    worst = max(checks, key=_excess)
    agreements = [check.top1_agreement for check in checks if check.top1_agreement is not None]
    return Verification(
        max_abs_error=max(check.max_abs_error for check in checks),
        rmse=max(check.rmse for check in checks),
        snr_db=min(check.snr_db for check in checks),
        cosine=min(check.cosine for check in checks),
        top1_agreement=min(agreements, default=None),
        tolerance=tolerance,
        passed=all(check.passed for check in checks),
        why=_why(worst, tolerance, len(checks) > 1),
        samples=samples,
        outputs=tuple(checks),
    )
