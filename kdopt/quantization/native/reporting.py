"""What the placement means for each layer of the source."""

from collections import defaultdict

import keras

from kdopt.quantization.native.kernels import kernels_of
from kdopt.quantization.native.placement import Placement
from kdopt.quantization.native.steps import Step
from kdopt.quantization.report import LayerReport
from kdopt.quantization.schemes import LayerScheme

UNRULED = (
    "what is inside gets scales at export, if TFLite has int8 kernels for all of it; way out: give it a rule with "
    "`kdopt.quantization.native.rules.quantization_rule`, or leave it float by `layers`"
)

KERNELS_AS_WANTED = "its kernels, as `layers` says; what is between them is int8 in the file"
AS_WANTED = "as `layers` says; its input and output are int8 in the file"


def report_of(placement: Placement) -> tuple[LayerReport, ...]:
    """One record a source layer, in order."""
    names = {id(call.operation): call.name for call in placement.traced.calls}
    by_layer: dict[str, list[Step]] = defaultdict(list)
    for step in placement.steps:
        by_layer[step.layer].append(step)
        if step.norm is not None:
            by_layer[names[id(step.norm)]] = []
    if placement.bits is None:
        kernels = {layer for layer, _, _ in kernels_of(placement)}
        return tuple(_record_weights(layer, steps, placement, layer in kernels) for layer, steps in by_layer.items())
    return tuple(_record(layer, steps, placement) for layer, steps in by_layer.items())


def _record(layer: str, steps: list[Step], placement: Placement) -> LayerReport:
    if not steps:
        return LayerReport(layer, "quantized", "folded into the kernel before it")
    outputs = [number for step in steps for number in step.outputs]
    own = any(placement.grids[number].own for number in outputs if number in placement.grids)
    if layer in placement.schemes.floats:
        return LayerReport(layer, "float", AS_WANTED)
    refused = next((step for step in steps if step.rule.output == "float"), None)
    if refused is not None:
        why = refused.rule.why or f"TFLite has no int8 kernel for {_kind(refused)}"
        way = f"leave it float by layers={{{layer!r}: 'float'}}, else an int8 file is refused"
        return LayerReport(layer, "float", f"{why}; {way}")
    if not any(number in placement.floats for number in outputs):
        return LayerReport(layer, "float", "its outputs are integers")
    unknown = next((step for step in steps if not step.rule.known), None)
    if unknown is not None:
        return LayerReport(layer, "output-only", f"no quantization rule for {_kind(unknown)}: {UNRULED}")
    scheme = placement.schemes.of(layer)
    if scheme.weights is None:
        parts = any(step.rule.inner for step in steps)
        return LayerReport(layer, "float", KERNELS_AS_WANTED if parts else AS_WANTED)
    return LayerReport(layer, "quantized", _why(steps, own) + _special(scheme))


def _record_weights(layer: str, steps: list[Step], placement: Placement, kernel: bool) -> LayerReport:
    scheme = placement.schemes.of(layer)
    if not steps:
        return LayerReport(layer, "quantized", "folded into the kernel before it")
    if kernel and scheme.weights is not None:
        return LayerReport(layer, "quantized", f"weights alone{_special(scheme)}")
    return LayerReport(layer, "float", "as `layers` says" if kernel else "it has no kernel that the scheme is for")


def _special(scheme: LayerScheme) -> str:
    said = [] if scheme.is_plain else [f"weights: {scheme.weights}"]
    said += [] if scheme.per_channel else ["one step for all channels"]
    said += ["symmetric range"] if scheme.symmetric else []
    return f" ({', '.join(said)})" if said else ""


def _kind(step: Step) -> str:
    operation = step.operation.activation if type(step.operation) is keras.layers.Activation else step.operation
    return str(getattr(operation, "__name__", type(operation).__name__))


def _why(steps: list[Step], own: bool) -> str:
    rule = steps[-1].rule
    if any(step.rule.call is not None and getattr(step.operation, "weights", None) for step in steps):
        read = own or rule.keeps or rule.output == "fixed"
        return "weights and output" if read else "weights; its output is read only after what is fused with it"
    if rule.output == "fixed":
        return "TFLite fixes the scale of its output"
    if rule.identity:
        return "nothing is left of it in the file"
    if rule.output == "input":
        return "keeps the scale of its input"
    return "output" if own else "its output is read only after what is fused with it"
