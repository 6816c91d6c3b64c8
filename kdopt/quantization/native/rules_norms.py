"""Rules for normalizations with the statistics of each sample: as the operations that TFLite computes them with."""

from collections.abc import Callable
from typing import Any

from keras import layers, ops

from kdopt.quantization.native.rules import FLOAT, Rule, register
from kdopt.quantization.native.shapes import together

MOMENTS = ("mean", "centered", "squares", "variance", "stabilized", "reciprocal", "normalized")


def _normalized(scope: Any, x: Any, epsilon: float, center: bool = True) -> Any:
    """(x - mean) / sqrt(variance + epsilon) over the last axis, or without the mean; not yet rounded."""
    if center:
        x = scope.inner("centered", x - scope.inner("mean", ops.mean(x, axis=-1, keepdims=True)))
    variance = scope.inner("variance", ops.mean(scope.inner("squares", x * x), axis=-1, keepdims=True))
    return x * _reciprocal_root(scope, scope.inner("stabilized", variance + epsilon))


def _reciprocal_root(scope: Any, x: Any) -> Any:
    # Where x is less than half a step: the file takes the largest value of the range, too.
    return scope.inner("reciprocal", ops.rsqrt(x if scope.exporting else ops.maximum(x, 1e-12)))


def _with_factors(scope: Any, x: Any, scale: Any, shift: Any) -> Any:
    """A factor and an offset for each entry of the last axis; either may be None."""
    if scale is None and shift is None:
        return x

    def values() -> tuple[Any, Any]:
        size = (x.shape[-1],)
        factor = ops.ones(size) if scale is None else ops.reshape(ops.cast(scale, "float32"), size)
        return factor, ops.zeros(size) if shift is None else ops.reshape(ops.cast(shift, "float32"), size)

    return scope.scaled(scope.inner("normalized", x), values)


def _layer_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    flat, back = together(inputs, layer.axis)
    if isinstance(layer, layers.RMSNormalization):
        return back(_with_factors(scope, _normalized(scope, flat, layer.epsilon, center=False), layer.scale, None))
    return back(_with_factors(scope, _normalized(scope, flat, layer.epsilon), layer.gamma, layer.beta))


def _group_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """All places and channels of a group as one axis."""
    channels = inputs.shape[-1]
    groups = layer.groups
    split = ops.reshape(inputs, (-1, *inputs.shape[1:-1], groups, channels // groups))
    flat, back = together(split, [axis for axis in range(1, len(split.shape)) if axis != len(split.shape) - 2])
    y = ops.reshape(back(_normalized(scope, flat, layer.epsilon)), (-1, *inputs.shape[1:]))
    return _with_factors(scope, y, layer.gamma, layer.beta)


def _unit_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """x / sqrt(sum of squares)."""
    squares = scope.inner("squares", inputs * inputs)
    return inputs * _reciprocal_root(scope, scope.inner("sum", ops.sum(squares, axis=layer.axis, keepdims=True)))


def _if_sizes_known(rule: Rule, fits: Callable[[Any], bool]) -> Callable[[Any], Rule]:
    """The rule where all sizes but the batch are known, for reshapes; without them the file has float operations."""

    def choose(step: Any) -> Rule:
        shape = (step.operation.get_build_config() or {}).get("input_shape")
        known = shape is not None and None not in shape[1:]
        return rule if known and fits(step.operation) else FLOAT

    return choose


def _over_places(layer: Any) -> bool:
    """No statistics over the batch."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    rank = len(layer.get_build_config()["input_shape"])
    return all(axis % rank for axis in axes) and not getattr(layer, "rms_scaling", False)


def _channels_last(layer: Any) -> bool:
    return layer.axis in (-1, len(layer.get_build_config()["input_shape"]) - 1)


_LAYER = Rule(call=_layer_normalization, inner=MOMENTS)
_GROUP = Rule(call=_group_normalization, inner=MOMENTS)
_UNIT = Rule(call=_unit_normalization, inner=("squares", "sum", "reciprocal"))
register(layers.LayerNormalization, layers.RMSNormalization, choose=_if_sizes_known(_LAYER, _over_places))
register(layers.GroupNormalization, choose=_if_sizes_known(_GROUP, _channels_last))
register(layers.UnitNormalization, rule=_UNIT)
