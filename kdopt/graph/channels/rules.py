"""What each kind of layer does with channels: the registry of rules."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.labels import Flow, Labels


@dataclass(frozen=True)
class Call:
    """One call of one layer or `keras.ops` operation.

    Attributes:
        operation: The layer or operation.
        args, kwargs: As it was called, with a `Flow` for every tensor.
        shapes: Of its outputs, `None` where open.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shapes: tuple[tuple[int | None, ...], ...]

    @property
    def flows(self) -> list[Flow]:
        """All tensors it was called on, in order."""
        return [leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, Flow)]

    @property
    def x(self) -> Flow:
        """The first tensor."""
        return self.flows[0]

    def freeze(self, labels: Labels, reason: str) -> None:
        """Keeps all channels of all tensors it was called on."""
        for flow in self.flows:
            for axis in flow.labeled():
                labels.freeze(flow.labels[axis], reason)

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Of the first output."""
        return self.shapes[0]


Rule = Callable[[Labels, Any, Call], Any]
Resize = Callable[[Any, Callable[[keras.Variable], tuple[int, ...]], Any], dict[str, Any]]
_RULES: dict[type, Rule] = {}
_RESIZES: dict[type, Resize] = {}
Arguments = Callable[[Call, Callable[[np.ndarray], np.ndarray]], dict[int | str, Any]]
_ARGUMENTS: dict[type, Arguments] = {}


_KEEPS_ZEROS: set[type] = set()


def channel_rule(*classes: type, keeps_zeros: bool = False) -> Callable[[Rule], Rule]:
    """Decorator: what calls of a layer class do with channels.

    The rule is called as `rule(labels, layer, call)` and returns the `Flow` of the output (a list for several). It
    says with `labels.makes`, `labels.reads` and `labels.follows` which axes of the layer's Variables hold channels,
    with `labels.unite` which go together, and with `labels.freeze` which must stay. It holds for subclasses that keep
    `call`. A layer whose size is an argument of its constructor needs a `resize_rule`, too; one that makes channels
    with kernels of its own a method `get_prunable_weights()`, the list of these Variables, for criteria to score.

    Args:
        *classes: `keras.layers.Layer` classes, or classes of `keras.ops` operations.
        keeps_zeros: Whether a channel that is zero everywhere comes out as zero, and one that the layer makes with
            weights that are all zero (kernel and bias), so that channels which training made zero can go
            (`criterion="mask"`). Defaults to `False`: they stay.

    Raises: TypeError for what is no class; when a model is traced, for a rule that returns no `Flow`, or one of another
        size than the output's.

    Example:
    ```
    @channel_rule(MyScale, keeps_zeros=True)       # one weight a channel
    def my_scale(labels, layer, call):
        labels.follows(layer, layer.scale, 0, call.x.at(-1))
        return call.x

    @channel_rule(MyDense, keeps_zeros=True)       # a kernel (inputs, outputs), a bias
    def my_dense(labels, layer, call):
        labels.reads(layer, layer.kernel, 0, call.x.at(-1))
        made = labels.makes(layer, layer.kernel, 1)
        labels.follows(layer, layer.bias, 0, made)
        return call.x.given(call.shape, {-1: made})

    @resize_rule(MyDense)                          # `units` is an argument of its constructor
    def smaller(layer, size, outputs):
        return {"units": size(layer.kernel)[-1]}   # and MyDense.get_prunable_weights returns [self.kernel]
    ```
    """

    _check_classes("channel_rule", classes)

    def add(rule: Rule) -> Rule:
        _KEEPS_ZEROS.update(classes if keeps_zeros else ())
        _RULES.update(dict.fromkeys(classes, rule))
        return rule

    return add


def resize_rule(*classes: type) -> Callable[[Resize], Resize]:
    """Decorator: the constructor's arguments of a smaller layer.

    Called as `rule(layer, size, outputs)`: `size(variable)` is the new shape of one of its Variables, `outputs` a list
    of the new shapes of its outputs; returns the entries of `get_config()` that change.

    Example:
    ```
    @resize_rule(keras.layers.Dense)
    def dense(layer, size, outputs):
        return {"units": size(layer.kernel)[-1]}
    ```
    """

    _check_classes("resize_rule", classes)

    def add(rule: Resize) -> Resize:
        _RESIZES.update(dict.fromkeys(classes, rule))
        return rule

    return add


def argument_rule(*classes: type) -> Callable[[Arguments], Arguments]:
    """Decorator: arguments of a call that say places, such as the key of a slice.

    Called as `rule(call, stays)`: `stays(labels)` is whether each identity stays; returns place or name of an argument
    -> its new value.
    """

    def add(rule: Arguments) -> Arguments:
        _ARGUMENTS.update(dict.fromkeys(classes, rule))
        return rule

    return add


def rearranged(
    call: Call, args: tuple[Any, ...], kwargs: dict[str, Any], stays: Callable[[np.ndarray], np.ndarray]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call for what is left; `args` and `kwargs` hold the tensors it is now called on."""
    rule = _ARGUMENTS.get(type(call.operation))
    changed = {} if rule is None else rule(call, stays)
    placed = tuple(changed.get(place, value) for place, value in enumerate(args))
    return placed, {name: changed.get(name, value) for name, value in kwargs.items()}


def _check_classes(name: str, classes: tuple[Any, ...]) -> None:
    if not classes or not all(isinstance(one, type) for one in classes):
        raise TypeError(f"Write @{name}(MyLayer), with one class or several; got {classes}.")


def keeps_zeros(operation: Any) -> bool:
    """Whether a user's rule says so."""
    return _known(operation, dict.fromkeys(_KEEPS_ZEROS)) is not None


def extended(operation: Any) -> bool:
    """Whether Keras has given a layer, or one inside it, more Variables: `quantize` and `enable_lora` do."""
    layers = operation._flatten_layers() if isinstance(operation, keras.layers.Layer) else []
    return any(getattr(one, "quantization_mode", None) or getattr(one, "lora_enabled", False) for one in layers)


def rule_of(operation: Any) -> Rule | None:
    """The rule for an operation; one of a base class only if `call` is inherited, none for an extended layer."""
    if extended(operation):
        return None
    return _RULES.get(_known(operation, _RULES))  # type: ignore[arg-type]


def resize_of(operation: Any) -> Resize | None:
    """The resize rule for an operation."""
    return _RESIZES.get(_known(operation, _RESIZES))  # type: ignore[arg-type]


def _known(operation: Any, rules: dict[type, Any]) -> type | None:
    kind: Any = type(operation)
    for cls in kind.__mro__:
        if cls in rules and (cls is kind or getattr(cls, "call", None) is getattr(kind, "call", None)):
            return cls
    return None


def renewed(operation: Any, size: Callable[[keras.Variable], tuple[int, ...]], outputs: Any) -> Any:
    """A new layer or operation like `operation`, of the new size.

    Args:
        operation: The layer or operation.
        size: Variable -> its new shape.
        outputs: New shapes of its outputs.
    """
    rule = resize_of(operation)
    if rule is None and not isinstance(operation, keras.layers.Layer):
        return _copied(operation)
    config = operation.get_config()
    for key in {"activation", "recurrent_activation"} & set(config):
        if inspect.isfunction(function := getattr(operation, key, None)):
            config[key] = function  # a user's own one cannot be made from a config
    changed = rule(operation, size, outputs) if rule else {}
    if not isinstance(changed, dict):
        raise TypeError(f"The resize_rule of {type(operation).__name__} must return a dict; got {changed!r}.")
    if unknown := set(changed) - set(config):
        raise TypeError(
            f"The resize_rule of {type(operation).__name__} changes {', '.join(map(repr, sorted(unknown)))}, which "
            f"its get_config() does not have: {', '.join(map(repr, sorted(config)))}."
        )
    return type(operation).from_config({**config, **changed})


def _copied(operation: Any) -> Any:
    """A `keras.ops` operation once more: it has no state, and one made with an array has no config."""
    made = object.__new__(type(operation))
    made.__dict__.update(operation.__dict__, _inbound_nodes=[], _outbound_nodes=[])
    return made
