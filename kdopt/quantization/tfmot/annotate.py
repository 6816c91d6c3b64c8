"""Where fake quantization goes: tfmot's 8-bit placement as rules over steps, widened to the layers tfmot refuses.

A tensor gets a range if the `.tflite` really has that tensor: after conv + BatchNormalization + ReLU, not between;
not after an op that keeps the scale of its input (pooling, reshape); not after an op whose output scale TFLite fixes
(softmax, sigmoid, tanh). What goes into a concatenation has one range with what comes out of it, as the converter does
it: otherwise the file would have a QUANTIZE before it. It is measured behind the concatenation.
"""

from collections import defaultdict
from dataclasses import dataclass

import keras
import numpy as np
from keras.src.ops import numpy as knp

from kdopt.graph.inline import Ref
from kdopt.quantization.report import LayerReport
from kdopt.quantization.tfmot.bridge import Blueprint
from kdopt.quantization.tfmot.schemes import Scheme
from kdopt.quantization.tfmot.steps import Step

_KEEPS_SCALE = {
    *("Flatten", "Reshape", "Permute", "RepeatVector", "Dropout", "GaussianDropout", "GaussianNoise"),
    *("SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
    *("MaxPooling1D", "MaxPooling2D"),
    *("GlobalMaxPooling1D", "GlobalMaxPooling2D", "GlobalMaxPooling3D"),
    *("AveragePooling1D", "AveragePooling2D"),
    *("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D", "Cropping1D", "Cropping2D", "Cropping3D"),
    *("UpSampling1D", "UpSampling3D"),
}
# Of `keras.ops`, which stay Keras 3 code.
_MOVES = {
    *("Split", "GetItem", "Reshape", "Transpose", "Squeeze", "ExpandDims", "Repeat", "Pad"),
    *("MaxPool", "AveragePool", "Max", "Amax"),
}
_ROUNDS = "AveragePool"
_JOINS = {"Concatenate", "Maximum", "Minimum"}
_FIXED_SCALE = {"softmax", "sigmoid", "tanh"}
# A BatchNormalization after one of these is folded into the kernel by the converter.
_FOLDS_NORM = {"Conv2D", "DepthwiseConv2D", "Dense"}
# No int8 kernel in TFLite: they and their outputs stay float.
_STAYS_FLOAT = {"Conv3D", "Conv3DTranspose", "AveragePooling3D", "MaxPooling3D"}
_FUSES_RELU = {"Add", "Subtract", "Multiply", "BatchNormalization"}
_KNOWN_TO_TFMOT = {
    *("ReLU", "LeakyReLU", "Activation", "Softmax", "Concatenate", "Add", "UpSampling2D"),
    *("GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalAveragePooling3D"),
}
_FUSED = "its output is read only after what is fused with it"
_RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "TimeDistributed", "ConvLSTM")


@dataclass(frozen=True)
class Placement:
    """Tensors and kernels that are fake-quantized, and what that means for each source layer.

    Args:
        tensors: Numbers of the tensors that get a range.
        shared: Number of a tensor -> that of the tensor in `tensors` whose range it is rounded to.
        kernels: Names of the steps whose kernel is quantized.
        report: One record a source layer, in order.
    """

    tensors: frozenset[int]
    shared: dict[int, int]
    kernels: frozenset[str]
    report: tuple[LayerReport, ...]


def place(blueprint: Blueprint, scheme: Scheme) -> Placement:
    """Decides the placement for a blueprint."""
    return _Placer(blueprint, scheme).place()


class _Placer:
    def __init__(self, blueprint: Blueprint, scheme: Scheme) -> None:
        self.blueprint = blueprint
        self.rounds_kernels = scheme.weight_bits is not None
        self.outputs = set(blueprint.trace.outputs)
        self.producer = {index: step for step in blueprint.steps for index in step.outputs}
        self.consumers: dict[int, list[Step]] = defaultdict(list)
        self.calls: dict[str, int] = defaultdict(int)
        for step in blueprint.steps:
            self.calls[step.name] += 1
            for index in step.inputs:
                self.consumers[index].append(step)
        self.dtypes = {entry.index: entry.dtype for entry in blueprint.trace.inputs}
        for call in blueprint.trace.calls:
            self.dtypes.update(zip(call.outputs, call.dtypes, strict=True))

    def place(self) -> Placement:
        floats = [entry.index for entry in self.blueprint.trace.inputs if self.is_float(entry.index)]
        tensors = {index for index in floats if self.consumers[index]}
        tensors |= {i for step in self.blueprint.steps for i in step.outputs if self.needs_range(step, i)}
        kernels = frozenset(step.name for step in self.blueprint.steps if step.kernel and self.rounds_kernels)
        shared = self.shared(tensors)
        return Placement(frozenset(tensors - set(shared)), shared, kernels, self.records(tensors))

    def shared(self, tensors: set[int]) -> dict[int, int]:
        """Tensors that go into a concatenation, moved or not -> the last tensor of the same range."""
        after: dict[int, int] = {}

        def last(number: int) -> int:
            while number in after:
                number = after[number]
            return number

        for step in self.blueprint.steps:
            for number in step.inputs if step.kind in _JOINS else ():
                root = last(self.origin(number))
                if root >= 0 and root != step.outputs[0]:
                    after[root] = step.outputs[0]
        roots = {number: last(number) for number in after}
        return {number: root for number, root in roots.items() if number in tensors and root in tensors}

    def origin(self, number: int) -> int:
        """The tensor whose range a tensor has, -1 without a trained one."""
        before = self.producer.get(number)
        while before is not None and keeps_scale(before):
            number = before.inputs[0]
            before = self.producer.get(number)
        trained = before is None or not (fixes_scale(before) or is_recurrent(before))
        return number if trained and self.is_float(number) else -1

    def is_float(self, index: int) -> bool:
        return self.dtypes.get(index, "float32").startswith("float")

    def only_consumer(self, index: int) -> Step | None:
        """The one step that reads the tensor, None if several do or it is an output of the model."""
        consumers = self.consumers[index]
        return consumers[0] if len(consumers) == 1 and index not in self.outputs else None

    def needs_range(self, step: Step, index: int) -> bool:
        if not self.is_float(index) or keeps_scale(step) or fixes_scale(step) or is_recurrent(step):
            return False
        if step.kind in _STAYS_FLOAT or self.is_in_kernel(step):
            return False
        after = self.only_consumer(index)
        if after is None:
            return True
        if self.joins(after):
            return False
        if is_relu(after) and (step.kernel or step.kind in _FUSES_RELU) and step.activation == "linear":
            return False
        if adds_number(after) and step.kernel and step.activation == "linear":
            return False
        return not self.folds(step, after)

    def is_in_kernel(self, step: Step) -> bool:
        """Whether the step is a rescaling by a number, which the converter makes part of the convolution after it."""
        if step.kind != "Rescaling" or np.any(step.config["offset"]):
            return False
        if np.size(step.config["scale"]) > 1 or np.min(step.config["scale"]) <= 0:
            return False
        after = self.only_consumer(step.outputs[0])
        while after is not None and after.kind == "ZeroPadding2D":
            after = self.only_consumer(after.outputs[0])
        return after is not None and after.kind in ("Conv2D", "DepthwiseConv2D")

    def joins(self, step: Step | None) -> bool:
        """Whether a concatenation gives its scale to what the step reads, perhaps through others that keep values."""
        while step is not None and keeps_scale(step) and not rounds(step) and len(step.outputs) == 1:
            step = self.only_consumer(step.outputs[0])
        return step is not None and step.kind in _JOINS

    def folds(self, step: Step, after: Step) -> bool:
        """Whether `after` is a BatchNormalization that disappears into the kernel of `step`."""
        return (
            after.kind == "BatchNormalization"
            and step.kind in _FOLDS_NORM
            and step.activation == "linear"
            and _is_last_axis(step, after)
            and self.are_paired(step, after)
        )

    def are_paired(self, step: Step, norm: Step) -> bool:
        """Whether every call of a layer goes to a normalization that is called on nothing else."""
        made = [one.outputs[0] for one in self.blueprint.steps if one.name == step.name]
        readers = [self.only_consumer(number) for number in made]
        return len(made) == self.calls[norm.name] and all(one is not None and one.name == norm.name for one in readers)

    def records(self, tensors: set[int]) -> tuple[LayerReport, ...]:
        by_source: dict[str, list[Step]] = defaultdict(list)
        for step in self.blueprint.steps:
            by_source[step.source].append(step)
        return tuple(self.record(source, steps, tensors) for source, steps in by_source.items())

    def record(self, source: str, steps: list[Step], tensors: set[int]) -> LayerReport:
        outputs = [index for step in steps for index in step.outputs]
        ranged = any(index in tensors for index in outputs)
        if not any(self.is_float(index) for index in outputs):
            return LayerReport(source, "float", "its outputs are integers")
        if steps[0].kind in _STAYS_FLOAT:
            return LayerReport(
                source, "float", f"TFLite has no int8 kernel for {steps[0].kind}; an int8 file is refused"
            )
        if any(is_recurrent(step) for step in steps):
            unrolled = "" if not any(is_rolled(step) for step in steps) else "; int8 export needs `unroll=True` in it"
            return LayerReport(
                source, "calibration-only", f"recurrent: its state and kernels get scales at export{unrolled}"
            )
        foreign = [step for step in steps if not self.is_known(step)]
        if not foreign:
            return LayerReport(source, "quantized", self.why_quantized(steps, ranged))
        return LayerReport(source, "output-only", _why_output_only(foreign[0], ranged))

    def is_known(self, step: Step) -> bool:
        if step.kernel or keeps_scale(step) or fixes_scale(step):
            return True
        before = self.producer.get(step.inputs[0])
        if step.kind == "BatchNormalization" and before is not None and self.only_consumer(step.inputs[0]) is step:
            return self.folds(before, step)
        return step.kind in _KNOWN_TO_TFMOT and not (
            step.kind == "Activation" and step.activation not in ("swish", "gelu")
        )

    def why_quantized(self, steps: list[Step], ranged: bool) -> str:
        if any(step.kernel for step in steps):
            kernel = "kernel" if self.rounds_kernels else "its kernel gets scales at export"
            after = "output" if self.rounds_kernels else "its output has a range"
            return f"{kernel} and {after}" if ranged else f"{kernel}; {_FUSED}"
        if steps[0].kind == "BatchNormalization":
            return "folded into the kernel before it"
        if all(keeps_scale(step) for step in steps):
            return "keeps the scale of its input"
        if all(fixes_scale(step) for step in steps):
            return "TFLite fixes the scale of its output"
        return "output" if ranged else _FUSED


def keeps_scale(step: Step) -> bool:
    """Whether TFLite gives output and input one scale."""
    linear = step.kind == "Activation" and step.activation == "linear"
    nearest = step.kind == "UpSampling2D" and step.config.get("interpolation") == "nearest"
    return step.kind in _KEEPS_SCALE or linear or nearest or moves(step) or bool(step.extra.get("identity"))


def moves(step: Step) -> bool:
    """Whether the step is of `keras.ops` and moves or picks values."""
    if step.kind != "Opaque" or not type(step.config["call"].operation).__module__.startswith("keras.src.ops."):
        return False
    call = step.config["call"]
    constants = [leaf for leaf in keras.tree.flatten((call.args[1:], call.kwargs)) if not isinstance(leaf, Ref)]
    kind = type(call.operation).__name__
    return kind in _MOVES and not (kind == "Pad" and any(constants))


def rounds(step: Step) -> bool:
    """Whether a step that keeps the scale has values between the steps of its input."""
    kind = type(step.config["call"].operation).__name__ if step.kind == "Opaque" else step.kind
    return kind.startswith(_ROUNDS)


def fixes_scale(step: Step) -> bool:
    """Whether TFLite prescribes the scale of the output."""
    return step.kind == "Softmax" or (step.kind == "Activation" and step.activation in _FIXED_SCALE)


def is_relu(step: Step) -> bool:
    """Whether TFLite fuses the step into the op before it: ReLU or ReLU6."""
    config = step.config
    plain = not config.get("negative_slope") and not config.get("threshold") and config.get("max_value") in (None, 6.0)
    return step.kind == "ReLU" and plain


def adds_number(step: Step) -> bool:
    """Whether the step first adds a number to a tensor, which the converter makes part of the bias before it."""
    if step.kind != "Opaque":
        return False
    call = step.config["call"]
    if isinstance(call.operation, keras.layers.Activation):
        return call.operation.activation is keras.activations.hard_sigmoid
    numbers = [leaf for leaf in keras.tree.flatten((call.args, call.kwargs)) if not isinstance(leaf, Ref)]
    return type(call.operation) is knp.Add and len(numbers) == 1 and np.size(numbers[0]) == 1


def is_recurrent(step: Step) -> bool:
    """Whether the step runs a loop over time."""
    if step.kind != "Opaque":
        return False
    return any(cls.__name__.startswith(_RECURRENT) for cls in type(step.config["call"].operation).__mro__)


def is_rolled(step: Step) -> bool:
    """Whether the step keeps its loop in the graph, which the int8 converter cannot calibrate."""
    if not is_recurrent(step):
        return False
    operation = step.config["call"].operation
    return not getattr(getattr(operation, "forward_layer", operation), "unroll", True)


def _is_last_axis(step: Step, norm: Step) -> bool:
    rank = {"Conv2D": 4, "DepthwiseConv2D": 4}.get(step.kind)
    axis = norm.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, (list, tuple)) else axis
    return axis == -1 or rank is None or axis == rank - 1


def _why_output_only(step: Step, ranged: bool) -> str:
    name = type(step.config["call"].operation).__name__ if step.kind == "Opaque" else step.kind
    name = step.extra.get("label", step.activation if name == "Activation" and step.kind == name else name)
    if step.kind == "BatchNormalization":
        return "follows no convolution or dense layer alone, so it is not folded: its multiplier gets a scale at export"
    inside = "; its weights get scales at export" if step.kind == "Opaque" and step.weights else ""
    where = "its output has a range" if ranged else "its output is ranged after what is fused with it"
    return f"tfmot has no rule for {name}: {where}{inside}"
