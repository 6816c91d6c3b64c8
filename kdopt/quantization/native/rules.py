"""What becomes of each kind of layer in an int8 file: the registry of rules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras

# How the outputs of an operation are scaled in the file.
Output = Literal["trained", "input", "joined", "fixed", "float"]


@dataclass(frozen=True)
class Rule:
    """How one kind of operation is quantized.

    Attributes:
        output: `"trained"`: a range of its own, from training. `"input"`: the scale of its first input, as TFLite
            demands of poolings and reshapes. `"joined"`: one scale for inputs and output (concatenation). `"fixed"`:
            `limits`, which TFLite prescribes (softmax). `"float"`: TFLite has no int8 kernel.
        limits: Smallest and largest value of a fixed scale.
        factor: What integers with the scale of the input are worth more; it becomes part of the next kernel.
        rounds: Whether an output with the scale of the input has values between the input's steps (average pooling).
        identity: Whether nothing of it is left in the file (dropout).
        relu: Whether TFLite fuses it, a ReLU, into the operation before it; its output has nothing below 0.
        fuses_relu: Whether TFLite fuses a ReLU after it into it.
        fuses_norm: Whether a BatchNormalization after it is folded into its kernel.
        inner: Names of trained ranges inside it, besides that of its output.
        keeps: Which of them is that of its output.
        activates: Whether `call` applies the activation of the layer itself.
        call: Function `(scope, operation, *args, **kwargs) -> output`, linear before the activation. Defaults to
            calling the operation.
        known: Whether all that is int8 in the file is rounded in training, too.
        why: What the report says of a `"float"` one. Defaults to `""`: TFLite has no int8 kernel for it.
    """

    output: Output = "trained"
    limits: tuple[float, float] | None = None
    factor: float = 1.0
    rounds: bool = False
    identity: bool = False
    relu: bool = False
    fuses_relu: bool = False
    fuses_norm: bool = False
    inner: tuple[str, ...] = ()
    keeps: str = ""
    activates: bool = False
    call: Callable[..., Any] | None = None
    known: bool = True
    why: str = ""


UNKNOWN = Rule(known=False)
FLOAT = Rule("float")
# Computes in floating point because the user wants it, between a DEQUANTIZE and a QUANTIZE.
LEFT = Rule()
Choose = Callable[[Any], Rule]


def refused(why: str) -> Rule:
    """The rule for what stays float, so that no int8 file can be made; the report says why."""
    return Rule("float", why=why)


_RULES: dict[Any, Rule | Choose] = {}


def quantization_rule(*kinds: Any, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: how calls of a layer class compute with int8 rounding.

    The function is called as `f(scope, layer, *args, **kwargs)` and returns the layer's output before its activation,
    not yet rounded. `scope.weight(variable, axes)` rounds weights, with one step for each entry along `axes`;
    `scope.inner(name, tensor)` rounds a tensor inside the layer to a range named in `inner=`;
    `scope.linear(layer, x, kernel, axes)` calls a layer with one kernel. It holds for subclasses that keep `call`.

    Args:
        *kinds: `keras.layers.Layer` classes, classes of `keras.ops` operations, or activation functions.
        **options: Attributes of `Rule`.

    Example:
    ```
    @quantization_rule(MyDense, fuses_relu=True)
    def my_dense(scope, layer, x):
        return keras.ops.matmul(x, scope.weight(layer.w, axes=(-1,)))
    ```
    """

    def add(call: Callable[..., Any]) -> Callable[..., Any]:
        register(*kinds, rule=Rule(call=call, **options))
        return call

    return add


def register(*kinds: Any, rule: Rule | None = None, choose: Choose | None = None) -> None:
    """Registers a rule that needs no function: the operation is called as it is.

    Args:
        *kinds: Layer classes, classes of `keras.ops` operations, activation functions.
        rule: The rule.
        choose: Function `Step -> Rule` instead, where arguments of the layer decide.
    """
    for kind in kinds:
        if not callable(kind):
            raise TypeError(f"A quantization rule is for layer classes, operations or functions; got {kind!r}.")
    made = rule if rule is not None else choose
    assert made is not None
    _RULES.update(dict.fromkeys(kinds, made))


def rule_of(step: Any) -> Rule:
    """The rule for a step: its layer, operation or activation function; `UNKNOWN` without one."""
    if getattr(step.operation, "data_format", None) == "channels_first":
        return UNKNOWN
    found = _found(step.operation)
    return found if isinstance(found, Rule) else found(step)


def rule_of_function(function: Any) -> Rule:
    """The rule for an activation function; `UNKNOWN` without one, or where arguments of a layer decide."""
    found = _RULES.get(function, UNKNOWN)
    return found if isinstance(found, Rule) else UNKNOWN


def _found(operation: Any) -> Rule | Choose:
    if type(operation) is keras.layers.Activation:
        return _found(operation.activation)
    if not isinstance(operation, keras.Operation):
        return _RULES.get(operation, UNKNOWN)
    kind: Any = type(operation)
    for cls in kind.__mro__:
        if cls in _RULES:
            return _RULES[cls] if cls is kind or kind.call is cls.call else UNKNOWN
    return UNKNOWN
