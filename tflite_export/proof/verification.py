"""Is the file the same function as its source, on the user's data?"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export import precisions
from tflite_export.errors import ConversionError
from tflite_export.files import write_atomic
from tflite_export.proof.divergence import LayerError, first_beyond, layer_errors
from tflite_export.proof.file_source import file_source
from tflite_export.proof.outputs import Accepted, OutputCheck, check_output
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import flatbuffer, records

_NOISE_SAMPLES = 64
TFLite = TFLiteModel | str | os.PathLike[str] | bytes
Arrays = Mapping[str, np.ndarray]


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
        top5_agreement: Fraction of samples whose largest class is among the file's five largest; None for fewer than
            six classes.
        tolerance: Largest accepted rmse as a fraction of the source's largest |output|; see `verify`.
        passed: Whether every output is within its tolerance.
        why: One sentence with the numbers that decided.
        samples: Number of samples compared.
        outputs: One `OutputCheck` for each output.
        layers: The error of every layer, in order of execution; empty if it was not measured.
        diverges: The first layer whose relative error is above the tolerance; None if none is, or none was measured.
    """

    max_abs_error: float
    rmse: float
    snr_db: float
    cosine: float
    top1_agreement: float | None
    top5_agreement: float | None
    tolerance: float
    passed: bool
    why: str
    samples: int
    outputs: tuple[OutputCheck, ...]
    layers: tuple[LayerError, ...] = ()
    diverges: LayerError | None = None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes all of it as JSON; beside a `.tflite` file, if that is what `path` names: `model.verify.json`."""
        place = Path(path)
        place = place.with_suffix(".verify.json") if place.suffix == ".tflite" else place
        return write_atomic(place, (json.dumps(_finite(asdict(self)), indent=1) + "\n").encode())

    def __str__(self) -> str:
        tops = (("top-1", self.top1_agreement), ("top-5", self.top5_agreement))
        said = "".join(f", {name} agreement {share:.2%}" for name, share in tops if share is not None)
        whole = all(check.differing is not None for check in self.outputs)
        numbers = "" if whole else f": snr {self.snr_db:.1f} dB, cosine {self.cosine:.6f}"
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: {self.why}",
            f"  {self.samples} samples{numbers}{said}",
        ]
        if self.diverges is not None:
            lines.append(f"  first layer above the tolerance: {self.diverges}")
        elif self.layers:
            lines.append(f"  worst layer: {max(self.layers, key=lambda layer: layer.relative)}")
        return "\n".join(lines)


def _finite(value: Any) -> Any:
    """JSON has no infinity: such numbers as strings."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def verify(
    source: Any, tflite: TFLite, data: Any, tolerance: float | None = None, *, layers: bool = False
) -> Verification:
    """Runs source and file on the same data and compares their outputs.

        limit   = max(tolerance * max |source| + step, noise)
        passed <=> rmse <= limit  and  max |file - source| <= 20 * limit        for every output

    step and noise count with the default tolerance only. step is that of a quantized output, as no such file can be
    closer, but at most 4/255 of max |source|. noise is the root mean square difference of the file itself on XNNPACK
    and on the runtime's other kernels, measured when the file would not pass otherwise. The first condition is about
    accuracy; the second about single values, such as one class of many that never fires. Of an output of integers (as
    `fold_processing` makes them) the share that differs must be at most the tolerance, of classes by rank that of the
    first ones. Of a file that does not pass the first layer that differs is looked for.

    Args:
        source: As in `convert`; or another `.tflite` file, e.g. the float32 one (path, bytes, `TFLiteModel`), for which
            TensorFlow is not loaded. For a file of several signatures, a dict signature name -> source, of those to
            compare.
        tflite: `TFLiteModel`, path, or bytes.
        data: As `representative_data` in `convert`; all of it is used. For several signatures a dict of these.
        tolerance: Float > 0, or None for the precision's: 2e-5 for float32, 0.002 for float16, 0.02 for
            int16x8, 0.15 for 4 bits, 0.04 for the others.
        layers: Whether the error of every layer is measured, also of a file that passes. Defaults to `False`.

    Returns: a `Verification`.
    Raises: TypeError, ValueError, FileNotFoundError for what cannot be read; ValueError if the inputs or outputs of
        file and source do not match, or the source's own output is not finite; ConversionError for `layers=True` if the
        source does not become a float32 file to compare with.

    Example:
    ```
    print(tflite_export.verify(model, "model.tflite", x_test))
    # passed: rmse 0.0185 <= 0.0439, max |error| 0.314 <= 0.878 (tolerance 0.04 of the largest |output|)
    ```
    """
    if tolerance is not None and not (isinstance(tolerance, float | int) and 0 < tolerance < float("inf")):
        raise ValueError(f"`tolerance` must be a number > 0; got {tolerance!r}.")
    file = TFLiteModel.load(tflite)
    if isinstance(source, Mapping):
        return _verify_signatures(source, file, data, tolerance, layers)
    resolved: Source | None = file_source(source)
    if resolved is None:
        with silenced():
            resolved = resolve(source)
    arrays = samples.read(resolved.inputs, data, what="data")
    pairs = _pair(resolved, file)
    given = {pairs[name]: array for name, array in arrays.items()}
    with silenced():
        expected = resolved.predict(arrays)
        found = Runner(file.content).run(given)
    _refuse_bad_reference(expected, resolved.label)
    found = {name: found[pairs[name]] for name in expected}
    own = precisions.get(file.precision).tolerance
    ranked = resolved.ranked
    checks = _checks(file, expected, found, arrays, own if tolerance is None else tolerance, tolerance is None, ranked)
    if tolerance is None and not all(check.passed for check in checks):
        noise = _noise(file, given)
        noise = {name: noise[pairs[name]] for name in expected}
        checks = _checks(file, expected, found, arrays, own, True, ranked, noise)
    result = _summary(checks, float(own if tolerance is None else tolerance), len(next(iter(arrays.values()))))
    if layers:
        return _with_layers(result, resolved, file, arrays, pairs)
    if result.passed:
        return result
    try:
        return _with_layers(result, resolved, file, arrays, pairs)
    except (ConversionError, ValueError):  # the source alone does not become a float file: nothing to compare with
        return result


def _verify_signatures(
    sources: Mapping[str, Any], file: TFLiteModel, data: Any, tolerance: float | None, layers: bool
) -> Verification:
    """Each signature on a freshly loaded file, so that what one assigns is not in the answer of another."""
    known = flatbuffer.signatures(file.content)
    if layers:
        raise ValueError("`layers` is for files of one signature.")
    if not sources or set(sources) - set(known):
        raise ValueError(f"The file has the signatures {list(known)}; got sources for {list(sources)}.")
    if not isinstance(data, Mapping) or set(data) != set(sources):
        raise ValueError(f"`data` for several signatures is a dict signature name -> data, of {list(sources)}.")
    own = precisions.get(file.precision).tolerance if tolerance is None else float(tolerance)
    checks, counts = [], []
    for name, source in sources.items():
        with silenced():
            resolved = resolve(source)
        arrays = samples.read(resolved.inputs, data[name], what=f"data[{name!r}]")
        with silenced():
            expected, found = resolved.predict(arrays), file.session().run(name, arrays)
        _refuse_bad_reference(expected, resolved.label)
        counts.append(len(next(iter(arrays.values()))))
        checks += [
            check_output(f"{name}/{output}", reference, np.asarray(found[output]), Accepted(own))
            for output, reference in expected.items()
        ]
    return _summary(checks, own, min(counts))


def _checks(
    file: TFLiteModel,
    expected: Arrays,
    found: Arrays,
    inputs: Arrays,
    tolerance: float,
    excused: bool,
    ranked: Collection[str] = (),
    noise: Mapping[str, float] | None = None,
) -> list[OutputCheck]:
    shapes = [array.shape for array in inputs.values() if array.dtype.kind == "f"]
    steps = dict(zip((info.name for info in file.outputs), records.output_steps(file.content), strict=True))
    checks = []
    for place, (name, reference) in enumerate(expected.items()):
        step = steps.get(name, [*steps.values()][place])
        accepted = Accepted(tolerance, step if excused else 0.0, (noise or {}).get(name, 0.0))
        scores = reference.dtype.kind == "f" and reference.ndim == 2 and reference.shape[1] >= 2
        # Scores by rank have the largest in the first place in any file.
        classifier = scores and reference.shape not in shapes and not ranked
        checks.append(
            check_output(
                name,
                reference,
                found[name],
                accepted,
                step=step,
                classifier=classifier,
                measured=noise is not None,
                ranked=name in ranked,
            )
        )
    return checks


def _noise(file: TFLiteModel, given: Arrays) -> dict[str, float]:
    """Root mean square difference of each output on XNNPACK and on the runtime's other kernels."""
    some = {name: array[:_NOISE_SAMPLES] for name, array in given.items()}
    with silenced():
        one, other = Runner(file.content).run(some), Runner(file.content, kernels="builtin").run(some)
    return {name: float(np.sqrt(np.mean((one[name].astype(np.float64) - other[name]) ** 2))) for name in one}


def _with_layers(
    result: Verification, source: Source, file: TFLiteModel, arrays: Arrays, pairs: Mapping[str, str]
) -> Verification:
    with silenced():
        errors = layer_errors(source, file, arrays, pairs)
    return replace(result, layers=errors, diverges=first_beyond(errors, result.tolerance))


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


def _summary(checks: list[OutputCheck], tolerance: float, samples: int) -> Verification:
    worst = max(checks, key=lambda check: check.excess)
    place = f"output {worst.name!r}: " if len(checks) > 1 else ""
    floats = [check for check in checks if check.differing is None] or checks
    classes = [check for check in checks if check.differing is not None and check is not worst]
    told = "".join(f"; output {check.name!r}: {check.why(tolerance)}" for check in classes)
    first, five = (
        [share for share in shares if share is not None]
        for shares in (
            [check.top1_agreement for check in checks],
            [check.top5_agreement for check in checks],
        )
    )
    return Verification(
        max_abs_error=max(check.max_abs_error for check in checks),
        rmse=max(check.rmse for check in checks),
        snr_db=min(check.snr_db for check in floats),
        cosine=min(check.cosine for check in floats),
        top1_agreement=min(first, default=None),
        top5_agreement=min(five, default=None),
        tolerance=tolerance,
        passed=all(check.passed for check in checks),
        why=place + worst.why(tolerance) + told,
        samples=samples,
        outputs=tuple(checks),
    )
