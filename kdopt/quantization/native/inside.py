"""Activations inside a rule: rounded as a layer of their own would be."""

from typing import Any

import keras

from kdopt.quantization.native.rules import Rule, rule_of_function


def ranges_of(function: Any, name: str, before: str = "") -> tuple[str, ...] | None:
    """Ranges that a rule needs for `activated(scope, function, name, x, before)`; None for a function without a rule.

    A recurrent layer has one activation for all steps of time; a layer instance in its place has no rule here.
    """
    rule = None if isinstance(function, keras.Operation) else rule_of_function(function)
    if rule is None or not rule.known or rule.output == "float":
        return None
    if rule.identity and not before:
        return ()
    between = (before,) if before and not (rule.relu or rule.identity) else ()
    if rule.output == "fixed":
        return between
    return (*between, name, *(f"{name}.{one}" for one in rule.inner))


def limits_of(function: Any) -> tuple[float, float] | None:
    """The scale that TFLite fixes for the output of a function."""
    return rule_of_function(function).limits


def activated(scope: Any, function: Any, name: str, x: Any, before: str = "") -> Any:
    """`function(x)`, rounded.

    Args:
        scope: The scope.
        function: An activation for which `ranges_of` gives names.
        name: Of the range of its output.
        x: Tensor, rounded already, or to be rounded to the range `before`, unless the file fuses the activation.
        before: See `x`. Defaults to `""`: rounded already.
    """
    rule: Rule = rule_of_function(function)
    if rule.identity and not before:
        return x
    if before and not (rule.relu or rule.identity):
        x = scope.inner(before, x)
    made = function(x) if rule.call is None else rule.call(scope.part(name), function, x)
    return scope.fixed(made, *rule.limits) if rule.limits is not None else scope.inner(name, made)
