"""A model as the operations of the int8 file to be: inline activations are steps of their own."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import keras
from keras import layers, ops
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.ops.nn import Relu6

from kdopt.graph.inline import Call, Ref, Trace
from kdopt.quantization.checks import check_unmasked
from kdopt.quantization.native.rules import UNKNOWN, Rule, rule_of

_PAIRED = {layers.Add: ops.add, layers.Multiply: ops.multiply}


class Scaled(keras.Operation):
    """A tensor times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def call(self, x: Any) -> Any:
        return x * self.factor

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape, x.dtype)


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        name: Of the layer, with `.activation` for the activation inside it.
        layer: Name of the source layer.
        operation: The layer, `keras.ops` operation or activation function.
        args, kwargs: As it is called, with a `Ref` for every tensor.
        outputs: Numbers of its outputs.
        rule: How it is quantized.
        norm: The BatchNormalization folded into it.
        regularized: The layer whose activity regularizer its output is for.
    """

    name: str
    layer: str
    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]
    rule: Rule = UNKNOWN
    norm: Any = None
    regularized: Any = None

    @property
    def inputs(self) -> tuple[int, ...]:
        """Numbers of the tensors it is called on."""
        flat = keras.tree.flatten((self.args, self.kwargs))
        return tuple(leaf.index for leaf in flat if isinstance(leaf, Ref))


def steps_of(traced: Trace) -> list[Step]:
    """The calls of a trace as steps."""
    used = [number for call in traced.calls for number in call.outputs]
    numbers = iter(range(max([*used, *(entry.index for entry in traced.inputs)]) + 1, 1 << 30))
    return _without_twins([step for call in traced.calls for step in _steps(call, numbers)])


def _without_twins(steps: list[Step]) -> list[Step]:
    """The steps, each ReLU of a tensor that has one already in place of that one's output: the converter joins them,
    and fuses them into the operation before."""
    first: dict[tuple[int, float | None], int] = {}
    made = []
    for step in steps:
        if step.rule.relu:
            before = first.setdefault((step.inputs[0], end_of_relu(step.operation)), step.outputs[0])
            if before != step.outputs[0]:
                step = replace(step, args=(Ref(before),), kwargs={}, rule=_TWIN)
        made.append(step)
    return made


_TWIN = Rule("input", identity=True, call=lambda scope, operation, x: x)


def activation_of(operation: Any) -> Any:
    """The activation inside a layer, None for none."""
    function = getattr(operation, "activation", None)
    if isinstance(operation, keras.layers.Activation) or function is keras.activations.linear:
        return None
    return function


def end_of_relu(operation: Any) -> float | None:
    """Where a ReLU ends: 6, or nowhere."""
    function = operation.activation if isinstance(operation, keras.layers.Activation) else operation
    six = function is keras.activations.relu6 or isinstance(function, Relu6) or getattr(function, "max_value", None)
    return 6.0 if six else None


def gives_probabilities(step: Step) -> bool:
    """Whether it ends in a softmax over the last axis.

    Raises: ValueError for a sigmoid, which is no distribution over classes.
    """
    operation = step.operation
    function = operation.activation if isinstance(operation, layers.Activation) else operation
    name = (getattr(function, "__name__", None) or type(function).__name__).lower()
    if name == "sigmoid":
        raise ValueError(
            f"losses: 'cross_entropy' is for outputs over classes, but {step.layer!r} ends in a sigmoid. Use 'mse', or "
            "leave it out."
        )
    return name == "softmax"


def _steps(call: Call, numbers: Iterator[int]) -> list[Step]:
    check_unmasked(call)
    operation = call.operation
    pairs = _pairs(call, numbers)
    if len(pairs) > 1:
        return pairs
    whole = _ruled(Step(call.name, call.name, operation, call.args, call.kwargs, call.outputs))
    function = activation_of(operation)
    own = operation if whole.rule.call is not None and hasattr(operation, "activity_regularizer") else None
    if function is None or whole.rule.call is None or whole.rule.activates:
        return [replace(whole, regularized=own)]
    between = next(numbers)
    name = f"{call.name}.activation"
    return [
        replace(whole, outputs=(between,)),
        _ruled(Step(name, call.name, function, (Ref(between),), {}, call.outputs, regularized=own)),
    ]


def _pairs(call: Call, numbers: Iterator[int]) -> list[Step]:
    """A sum or product of several tensors as one of pairs, as TFLite computes it."""
    if isinstance(call.operation, CustomScaleLayer):
        return _scaled_sum(call, numbers)
    if type(call.operation) not in _PAIRED or len(call.inputs()) < 3:
        return []
    first, *others = (Ref(number) for number in call.inputs())
    steps = []
    for place, other in enumerate(others):
        outputs = call.outputs if place == len(others) - 1 else (next(numbers),)
        step = Step(f"{call.name}.{place}", call.name, _PAIRED[type(call.operation)], (first, other), {}, outputs)
        steps.append(_ruled(step))
        first = Ref(outputs[0])
    return steps


def _scaled_sum(call: Call, numbers: Iterator[int]) -> list[Step]:
    """x + scale * y, the residual block of InceptionResNetV2."""
    (first, second), between = (Ref(number) for number in call.inputs()), next(numbers)
    scaled = Step(f"{call.name}.scaled", call.name, Scaled(call.operation.scale), (second,), {}, (between,))
    return [_ruled(scaled), _ruled(Step(call.name, call.name, ops.add, (first, Ref(between)), {}, call.outputs))]


def _ruled(step: Step) -> Step:
    return replace(step, rule=rule_of(step))
