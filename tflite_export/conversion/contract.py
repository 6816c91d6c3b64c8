"""What a file must satisfy before it is handed over."""

from collections.abc import Mapping

import numpy as np

from tflite_export.errors import ConversionError
from tflite_export.precisions import Precision
from tflite_export.proof import metrics
from tflite_export.proof.model import TFLiteModel
from tflite_export.proof.runtime import Runner
from tflite_export.sources.protocol import Source
from tflite_export.tflite import records

SAMPLES = 8
_INTEGERS = ("int8", "int16", "int32", "int64", "bool")


def check(
    model: TFLiteModel,
    source: Source,
    precision: Precision,
    sample: Mapping[str, np.ndarray],
    floats: frozenset[str] = frozenset(),
) -> None:
    """Refuses a file that is not what was asked for, or is another function than its source.

    The file (which has already loaded and allocated) has the source's inputs and outputs by name and in order; builtin
    operations only; if the precision is integer, nothing that computes in float; its outputs on `sample` are finite
    and roughly the source's. The last limit is wide, ten times the precision's tolerance but at most half of the
    output's peak, for the root mean square: it catches lost weights, NaN and exchanged outputs, not a loss of accuracy.
    `floats` names the tensors that layers make which the user wants in floating point.

    Raises: ConversionError that says what is wrong and in which layer.
    """
    _check_names(model, source)
    _check_operations(model, source, precision, floats)
    expected = source.predict(sample)
    found = Runner(model.content).run(sample)
    for step, (name, reference) in zip(records.output_steps(model.content), expected.items(), strict=True):
        _check_output(name, reference, found[name], min(0.5, 10 * precision.tolerance), step, source.label)


def float_layers(content: bytes, source: Source, wanted: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Layers (operation in brackets) that compute in floating point, but for those that are wanted so.

    Args:
        content: A `.tflite` file.
        source: What it was made from.
        wanted: Names of tensors that float operations may make.
    """
    found = records.ops(content, source.layers, scopes_numbered=source.scopes_numbered)
    left = (op for op in found if op.is_float and op.outputs[0].name not in wanted)
    return tuple(
        dict.fromkeys(
            f"{op.layer or '?'} ({op.name})" for op in left if not source.floats & set((op.layer or "").split("/"))
        )
    )


def _check_names(model: TFLiteModel, source: Source) -> None:
    for what, infos, wanted in (("inputs", model.inputs, source.inputs), ("outputs", model.outputs, source.outputs)):
        names = [info.name for info in infos]
        if names != list(wanted):
            raise ConversionError(f"{source.label}: the file's {what} are {names}; expected {list(wanted)}.")


def _check_operations(model: TFLiteModel, source: Source, precision: Precision, floats: frozenset[str]) -> None:
    found = records.ops(model.content, source.layers, scopes_numbered=source.scopes_numbered)
    custom = [f"{op.layer or '?'} ({op.name})" for op in found if op.custom]
    if custom:
        raise ConversionError(f"{source.label}: not builtin operations, in layer {', '.join(dict.fromkeys(custom))}.")
    if precision.integer and (left := float_layers(model.content, source, floats)):
        raise ConversionError(f"{source.label}: these layers stayed float in the {precision.name} file: {left}.")
    if precision.integer and not precision.float_io:
        wrong = [info.name for info in (*model.inputs, *model.outputs) if info.dtype not in _INTEGERS]
        if wrong:
            raise ConversionError(f"{source.label}: {', '.join(wrong)} stayed float in the {precision.name} file.")


def _check_output(
    name: str, reference: np.ndarray, candidate: np.ndarray, slack: float, step: float, label: str
) -> None:
    place = f"{label}, output {name!r}"
    if reference.shape != candidate.shape:
        raise ConversionError(f"{place}: the file gives shape {candidate.shape}, the source {reference.shape}.")
    if reference.dtype.kind in "iub":  # labels, indices: an error has no size
        differing = float(np.mean(reference != candidate))
        if differing > slack:
            raise ConversionError(f"{place}: {differing:.0%} of the integers differ from the source's.")
        return
    if not np.isfinite(reference).all():
        raise ConversionError(f"{place}: the source itself gives NaN or infinity; check its weights and the data.")
    if not np.isfinite(candidate).all():
        raise ConversionError(f"{place}: the file gives NaN or infinity where the source does not.")
    distance = metrics.errors(reference, candidate)
    if distance.rmse > slack * distance.peak + step:
        raise ConversionError(
            f"{place}: the file is another function than its source: rmse {distance.rmse:.3g}, cosine "
            f"{distance.cosine:.4f}, while the source's largest |value| is {distance.peak:.3g}. Usual causes: "
            "representative data on another scale than the training data, or a net too sensitive for this precision."
        )
