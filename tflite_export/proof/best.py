"""The cheapest file that keeps the accuracy."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tflite_export import precisions as known
from tflite_export.conversion.convert import carry_out, convert, warn_of
from tflite_export.conversion.mixed import OF
from tflite_export.conversion.plan import plan
from tflite_export.errors import ConversionError
from tflite_export.proof.comparison import compare
from tflite_export.proof.divergence import LayerError, layer_errors
from tflite_export.runtime.model import TFLiteModel
from tflite_export.silence import silenced
from tflite_export.sources import samples
from tflite_export.sources.resolve import resolve

PRECISIONS = ("int8_float_io", "dynamic", "weight_int8", "float16")
_ROUNDING = 1e-9  # 0.837 - 0.827 is more than 0.01
_ALIKE = 1.05  # times that differ by less say nothing: the smaller file is taken


@dataclass(frozen=True)
class Step:
    """One file that was tried.

    Attributes:
        precision: Of the file.
        float_layers: Layers that stayed float in it.
        value: Of the metric; None if there was no file.
        drop: How far that is below the float32 file's.
        holds: Whether the drop is accepted.
        size_bytes: Of the file; None if there was none.
        latency_ratio: Time of an inference over the float32 file's; measured for files that hold.
        note: What else there is to say, e.g. why there is no file.
    """

    precision: str
    float_layers: tuple[str, ...]
    value: float | None
    drop: float | None
    holds: bool
    size_bytes: int | None
    latency_ratio: float | None = None
    note: str = ""

    def __str__(self) -> str:
        left = f" with {', '.join(self.float_layers)} in float" if self.float_layers else ""
        if self.value is None or self.drop is None:
            return f"{self.precision}{left}: no file. {self.note}"
        time = "" if self.latency_ratio is None else f", {self.latency_ratio:.2f} of the time"
        verdict = "holds" if self.holds else "drops too far"
        change = f"{self.value:.4f} ({0.0 - self.drop:+.4f})"
        return f"{self.precision}{left}: {change}, {self.size_bytes:,} bytes{time}: {verdict}"


@dataclass(frozen=True)
class Best:
    """The file that was chosen, and how.

    Attributes:
        file: The `TFLiteModel`.
        chosen: Its step.
        reference: Value of the metric for the float32 file.
        max_drop: As given.
        steps: Everything that was tried, in order; the float32 file first.
    """

    file: TFLiteModel
    chosen: Step
    reference: float
    max_drop: float
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        tried = [f"  {'->' if step is self.chosen else '  '} {step}" for step in self.steps]
        head = f"float32 has {self.reference:.4f}; a drop of {self.max_drop:g} is accepted"
        return "\n".join([head, *tried])


def convert_best(
    source: Any,
    data: Any,
    metric: Callable[[TFLiteModel], float],
    *,
    max_drop: float = 0.01,
    precisions: Sequence[str] = PRECISIONS,
    prefer: str = "latency",
    verbose: int = 1,
    **options: Any,
) -> Best:
    """Converts to one precision after the other, and takes the fastest (or smallest) file that keeps the accuracy.

    An int8 file that drops too far gets layers back in float, those that add most of the error first, one at a time
    and later half as many as there are already, until it holds. Which file is fastest is measured here, in interleaved
    runs: int8 may be slower than float where a processor or a runtime lacks kernels.

    Args:
        source: As in `convert`; one that was not trained with quantization.
        data: Representative data, as in `convert`: for the ranges, and to find the layers with the largest errors.
        metric: Function of a `TFLiteModel` -> float, larger is better: `lambda file: np.mean(np.argmax(file.predict(x),
            -1) == y)` on samples that were not trained on.
        max_drop: Float >= 0, accepted drop of the metric below that of the float32 file. Defaults to 0.01.
        precisions: Names, cheapest first. Defaults to `"int8_float_io", "dynamic", "weight_int8", "float16"`.
        prefer: `"latency"`, or `"size"`. Defaults to `"latency"`.
        verbose: 0 prints nothing, 1 a line for every file tried. Defaults to 1.
        options: For `convert`: `batch`, `shapes`, `min_runtime`, ...

    Returns: a `Best`; the float32 file if no other one holds.
    Raises: TypeError, ValueError for bad arguments; what `convert` raises for the float32 file.

    Example:
    ```
    best = tflite_export.convert_best(model, x_train[:300], lambda file: accuracy(file.predict(x_val), y_val))
    print(best)
    best.file.save("model.tflite")
    ```
    """
    _check(metric, max_drop, precisions, prefer)
    with silenced():
        resolved = resolve(source)
    if resolved.has_ranges or resolved.kernels:
        raise ValueError(f"{resolved.label} was trained with quantization: `convert` it to what it was trained for.")
    arrays = samples.read(resolved.inputs, data, limit=512)
    files = {"float32": convert(resolved, "float32", arrays, **options)}
    reference = _value(metric, files["float32"])
    steps = [Step("float32", (), reference, 0.0, True, files["float32"].size_bytes)]
    say: Callable[[Any], None] = print if verbose else lambda step: None
    say(steps[0])
    for precision in precisions:
        for file, step in _tried(resolved, precision, arrays, metric, reference, max_drop, options):
            steps.append(step)
            say(step)
            if file is not None and step.holds:
                files[str(len(steps) - 1)] = file
    times = {timed.name: timed for timed in compare(files).files}
    for name in files:
        place = 0 if name == "float32" else int(name)
        steps[place] = replace(steps[place], latency_ratio=times[name].ratio)
    name = _chosen({name: times[name].min_ms for name in files}, files, prefer)
    chosen = steps[0 if name == "float32" else int(name)]
    return Best(files[name], chosen, reference, max_drop, tuple(steps))


def _tried(
    source: Any, precision: str, arrays: Any, metric: Any, reference: float, max_drop: float, options: dict[str, Any]
) -> Iterator[tuple[TFLiteModel | None, Step]]:
    """The files of one precision, until one holds."""
    floats: list[str] = []
    ranked: list[str] | None = None
    size = 1
    try:
        job, place = plan(source, precision, arrays, **options)
    except ValueError as error:
        yield None, Step(precision, (), None, None, False, None, note=str(error).splitlines()[0])
        return
    while True:
        try:
            file = carry_out(replace(job, layers=dict.fromkeys(floats, "float32")), place)
        except (ConversionError, ValueError) as error:
            yield None, Step(precision, tuple(floats), None, None, False, None, note=str(error).splitlines()[0])
            named = [one.layer for one in getattr(error, "violations", ()) if one.rule == "float islands" and one.layer]
            new = [layer for layer in dict.fromkeys(named) if layer not in floats]
            if precision not in OF or not new:
                return
            floats += new
            continue
        if not floats:
            warn_of(job)
        value = _value(metric, file)
        holds = reference - value <= max_drop + _ROUNDING
        yield file, Step(precision, tuple(floats), value, reference - value, holds, file.size_bytes)
        if holds or precision not in OF:
            return
        if ranked is None:
            names = dict(zip(source.inputs, (info.name for info in file.inputs), strict=True))
            with silenced():
                ranked = by_added_error(layer_errors(source, file, arrays, names))
        group = [layer for layer in ranked if layer not in floats][:size]
        if not group:
            return
        floats += group
        size = max(1, len(floats) // 2)


def by_added_error(errors: Sequence[LayerError]) -> list[str]:
    """Layers by how much of the error they add to what comes in, the worst first.

    Errors of independent roundings add up as squares: added^2 = relative^2 - (relative of the layer before)^2.
    """
    added: dict[str, float] = {}
    before = 0.0
    for error in errors:
        if error.layer:
            new = max(error.relative**2 - before**2, 0.0)
            added[error.layer] = max(added.get(error.layer, 0.0), new)
        before = error.relative
    return sorted(added, key=lambda layer: -added[layer])


def _chosen(times: dict[str, float], files: dict[str, TFLiteModel], prefer: str) -> str:
    if prefer == "size":
        return min(files, key=lambda name: files[name].size_bytes)
    alike = [name for name in files if times[name] <= _ALIKE * min(times.values())]
    return min(alike, key=lambda name: files[name].size_bytes)


def _value(metric: Callable[[TFLiteModel], float], file: TFLiteModel) -> float:
    found = metric(file)
    try:
        value = float(found)
    except (TypeError, ValueError):
        raise TypeError(
            f"`metric` must return a number; got {type(found).__name__} for the {file.precision} file."
        ) from None
    if not np.isfinite(value):
        raise ValueError(f"`metric` must return a finite number; got {value!r} for the {file.precision} file.")
    return value


def _check(metric: Any, max_drop: Any, precisions: Any, prefer: Any) -> None:
    if not callable(metric):
        raise TypeError(f"`metric` must be a function of a TFLiteModel that returns a number; got {metric!r}.")
    if not isinstance(max_drop, float | int) or not max_drop >= 0:
        raise ValueError(f"`max_drop` must be a number >= 0; got {max_drop!r}.")
    if isinstance(precisions, str) or not precisions:
        raise ValueError(f"`precisions` must be a list of names; got {precisions!r}.")
    for name in precisions:
        known.get(name)
    if prefer not in ("latency", "size"):
        raise ValueError(f"`prefer` must be 'latency' or 'size'; got {prefer!r}.")
