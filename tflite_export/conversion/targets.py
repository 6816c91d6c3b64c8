"""Where a file is to run, and what that makes of precision, inputs and outputs."""

from dataclasses import dataclass

from tflite_export.errors import Violation
from tflite_export.hardware.assessment import delegates
from tflite_export.hardware.report import NOT_AT_ALL, Verdict
from tflite_export.runtime.model import TFLiteModel

_FLOATS = ("float32", "float16")
_INTEGERS = ("int8", "uint8", "int8_float_io")


@dataclass(frozen=True)
class Target:
    """A place to run a file.

    Attributes:
        name: As the user writes it, and as `delegates` does.
        integer: Precision with representative data, or of a source trained with quantization.
        plain: Precision without; None where only integers run.
        allowed: Precisions that the user may ask for.
        why: The reason for the choice.
        prefers_float: Whether it gains nothing from integers: only a source that was trained with them gets them.
    """

    name: str
    integer: str
    plain: str | None
    allowed: tuple[str, ...]
    why: str
    prefers_float: bool = False


TARGETS = {
    target.name: target
    for target in (
        Target(
            "xnnpack",
            "int8_float_io",
            "weight_int8",
            (*_FLOATS, *_INTEGERS, "dynamic", "weight_int8", "int4", "int8_int4"),
            "a third or a quarter of the size; how fast it is depends on the processor: `convert_best` measures",
        ),
        Target(
            "gpu",
            "int8_float_io",
            "float16",
            (*_FLOATS, *_INTEGERS),
            "GPUs compute in float16, whatever is stored",
            prefers_float=True,
        ),
        Target("edgetpu", "uint8", None, _INTEGERS, "it computes in 8 bits only"),
        Target("nnapi", "int8", "float16", (*_FLOATS, *_INTEGERS), "most drivers have 8 bits and float16"),
        Target("micro", "int8", None, ("float32", "int8", "int16x8"), "few microcontrollers are fast in float"),
    )
}


def choose(target: str, precision: str | None, batch: int | None, *, data: bool, trained: bool) -> tuple[Target, str]:
    """The target, and the precision for it.

    Args:
        target: Name.
        precision: What the user asks for, or None.
        batch: Samples of a run.
        data: Whether there are representative data.
        trained: Whether the source was trained with quantization.

    Raises: ValueError.
    """
    if target not in TARGETS:
        raise ValueError(f"`target` must be one of {', '.join(map(repr, TARGETS))}; got {target!r}.")
    found = TARGETS[target]
    if batch is None:
        raise ValueError(f"Target {target!r} needs a fixed batch: pass `batch=1`.")
    if precision is not None:
        if precision not in found.allowed:
            raise ValueError(
                f"Target {target!r} runs {', '.join(map(repr, found.allowed))}; got precision {precision!r}."
            )
        return found, precision
    chosen = found.integer if trained or (data and not found.prefers_float) else found.plain
    if chosen is None:
        raise ValueError(
            f"Target {target!r} needs `representative_data`, 100-500 inputs as in use: {found.why}, and from these the "
            "ranges are learned."
        )
    return found, chosen


def assess(target: Target, model: TFLiteModel) -> tuple[tuple[str, ...], list[Violation]]:
    """What is to be said of a file on its target, and what stands in its way."""
    verdict = delegates(model, target.name)[target.name]
    if verdict.verdict == NOT_AT_ALL:
        return (), [
            Violation(f"target {target.name}", f"{one.op} does not run: {one.reason}", one.op, one.layer, "")
            for one in verdict.falls_back
        ]
    return (_said(target, model.precision, verdict),), []


def _said(target: Target, precision: str, verdict: Verdict) -> str:
    left = ", ".join(f"{one.count} {one.op} ({one.reason})" for one in verdict.falls_back[:3])
    more = f" and {len(verdict.falls_back) - 3} more" if len(verdict.falls_back) > 3 else ""
    outside = f"; on the CPU stay {left}{more}" if left else ""
    basis = "measured here" if verdict.measured else "from documentation, not run here"
    return f"target {target.name}: {precision}, since {target.why}; {verdict.verdict} ({basis}){outside}"
