"""Whether a file is the function that its source is: its outputs on a few samples."""

from collections.abc import Iterator, Mapping

import numpy as np

from tflite_export import metrics
from tflite_export.errors import Violation
from tflite_export.precisions import Precision
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import Runner
from tflite_export.sources.protocol import Source
from tflite_export.tflite import records

SAMPLES = 8
_RULE = "same function"


def differences(
    model: TFLiteModel,
    source: Source,
    precision: Precision,
    sample: Mapping[str, np.ndarray],
    remarks: list[str] | None = None,
) -> list[Violation]:
    """Outputs that are not finite, or far from the source's.

    The limit is wide, ten times the precision's tolerance but at most half of the output's peak, for the root mean
    square: it catches lost weights, NaN and exchanged outputs, not a loss of accuracy, which `verify` measures.
    """
    expected = source.compared(source.predict(sample))
    found = source.compared(Runner(model.content).run(sample))
    slack = min(0.5, 10 * precision.tolerance)
    steps = records.output_steps(model.content)
    for step, (name, reference) in zip(steps, expected.items(), strict=True):
        if remarks is not None and reference.dtype.kind == "f" and np.ptp(found[name]) == 0 < np.ptp(reference):
            remarks.append(
                f"output {name!r}: the file gives {float(found[name].flat[0]):.3g} for everything on the "
                f"{len(reference)} samples compared, the source up to {float(np.abs(reference).max()):.3g}: a step of "
                f"the file is {step:.3g}. Look at the representative data with `diagnose`"
            )
    return [
        violation
        for step, (name, reference) in zip(steps, expected.items(), strict=True)
        for violation in _of_output(name, reference, found[name], slack, step)
    ]


def _of_output(
    name: str, reference: np.ndarray, candidate: np.ndarray, slack: float, step: float
) -> Iterator[Violation]:
    place = f"output {name!r}"
    if reference.shape != candidate.shape:
        yield Violation(_RULE, f"{place}: the file gives shape {candidate.shape}, the source {reference.shape}")
    elif reference.dtype.kind in "iub":  # labels, indices: an error has no size
        differing = float(np.mean(reference != candidate))
        if differing > slack:
            yield Violation(_RULE, f"{place}: {differing:.0%} of the integers differ from the source's")
    elif not np.isfinite(reference).all():
        yield Violation(
            _RULE, f"{place}: the source itself gives NaN or infinity", mend="Check its weights and the data"
        )
    elif not np.isfinite(candidate).all():
        yield Violation(_RULE, f"{place}: the file gives NaN or infinity where the source does not")
    else:
        distance = metrics.errors(reference, candidate)
        if distance.rmse > slack * distance.peak + step:
            yield Violation(
                _RULE,
                f"{place}: the file is another function than its source: rmse {distance.rmse:.3g}, cosine "
                f"{distance.cosine:.4f}, while the source's largest |value| is {distance.peak:.3g}",
                mend="Usual causes: representative data on another scale than the training data, or a net too "
                "sensitive for this precision",
            )
