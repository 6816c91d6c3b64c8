"""Rules for attention: products of matrices and a softmax, with masks."""

import math
import re
from typing import Any

import numpy as np
from keras import layers, ops

from kdopt.quantization.native.rules import UNKNOWN, Rule, refused, register

UNIT, SIGNED_UNIT = (0.0, 255 / 256), (-1.0, 127 / 128)
_HIDDEN = -1e9


def _multi_head(
    scope: Any, layer: Any, query: Any, value: Any, key: Any = None, attention_mask: Any = None, **options: Any
) -> Any:
    """Products and a softmax; what queries are divided by is part of their kernel. Places of images are a sequence."""
    places = query.shape[1:-1]
    key = value if key is None else key
    query, value, key = (
        x if len(x.shape) == 3 else scope.as_rounded(ops.reshape(x, (-1, math.prod(x.shape[1:-1]), x.shape[-1])), x)
        for x in (query, value, key)
    )
    mask = _mask(scope, layer, query, value, attention_mask, options.get("use_causal_mask", False))
    queries = _projected(scope, layer._query_dense, "query", query, layer._inverse_sqrt_key_dim)
    keys = _projected(scope, layer._key_dense, "key", key)
    values = _projected(scope, layer._value_dense, "value", value)
    heads = (0, 2, 1, 3)  # (batch, heads, places, width)
    scores = ops.matmul(ops.transpose(queries, heads), ops.transpose(keys, (0, 2, 3, 1)))
    weights = _softmax(scope, scores, mask)
    dropped = layer._dropout_layer(weights, training=scope.training)
    attended = scope.inner("attended", ops.matmul(dropped, ops.transpose(values, heads)))
    made = _product(scope, layer._output_dense, ops.transpose(attended, heads), "abcd,cde->abe")
    made = made if len(places) == 1 else ops.reshape(made, (-1, *places, made.shape[-1]))
    return [made, weights] if options.get("return_attention_scores") else made


def _softmax(scope: Any, scores: Any, mask: Any) -> Any:
    """Weights of attention, on TFLite's scale for them.

    Hidden scores get the low end of the range, which is wide enough for them to weigh nothing:

        low = min(smallest visible score, smallest maximum of a row - log(512 n))

    All n scores of a row, were they hidden, would weigh less than 1/512 together, half a step. A row in which nothing
    is visible gets equal weights, as in `keras.ops.dot_product_attention`.

    Args:
        scores: Tensor (..., queries, keys).
        mask: Boolean tensor that broadcasts to it, True where a key is visible; None for none.
    """
    if mask is None:
        return scope.fixed(ops.softmax(scope.inner("scores", scores), axis=-1), *UNIT)
    if scope.exporting:
        rounded = scope.inner("scores", scores)
        hidden = scope.inner("scores", ops.where(mask, rounded, scope.lowest("scores")))
        return scope.fixed(ops.softmax(hidden, axis=-1), *UNIT)
    hidden = ops.where(mask, scores, ops.cast(_HIDDEN, scores.dtype))
    most = ops.max(hidden, axis=-1, keepdims=True)
    least = ops.where(mask, scores, most)
    margin = math.log(512 * scores.shape[-1])
    low = ops.stop_gradient(ops.minimum(ops.min(least), ops.min(most) - margin))
    if scope.is_float:  # the range is measured, the weights are those of the source
        scope.inner("scores", ops.where(mask, scores, low))
    else:
        hidden = scope.inner("scores", ops.where(mask, scores, low) if scope.training else hidden)
    return scope.fixed(ops.softmax(hidden, axis=-1), *UNIT)


def _mask(scope: Any, layer: Any, query: Any, value: Any, given: Any, causal: bool) -> Any:
    """The mask that is given, joined with that of the layer's options, which only depends on sizes; None for none."""
    sizes = [np.zeros((1, *x.shape[1:]), "float32") for x in (query, value)]
    window = getattr(layer, "_sliding_window", None)
    made = None
    if causal or window is not None:
        made = scope.constant(lambda: layer._compute_attention_mask(*sizes, use_causal_mask=causal))
        made = ops.cast(made, "bool")[:, None]
    if given is None:
        return made
    given = ops.cast(given, "bool")
    given = given if len(given.shape) == 4 else given[:, None]
    return given if made is None else ops.logical_and(given, made)


def _projected(scope: Any, dense: Any, name: str, x: Any, factor: float = 1.0) -> Any:
    return scope.inner(name, _product(scope, dense, x, "abc,cde->abde", factor))


def _product(scope: Any, dense: Any, x: Any, equation: str, factor: float = 1.0) -> Any:
    """An EinsumDense of attention, with a step for each output channel."""
    _, kernel, output = re.split(",|->", equation)
    axes = tuple(i for i, letter in enumerate(kernel) if letter in output)
    bias = None if dense.bias is None else (lambda: dense.bias)
    return scope.product(x, dense._kernel, bias, axes, lambda x, w: ops.einsum(equation, x, w), factor)


def _dot_or_sum(scope: Any, layer: Any, inputs: Any, use_causal_mask: bool = False) -> Any:
    """Attention without projections."""
    query, value = inputs[:2]
    key = inputs[2] if len(inputs) > 2 else value
    sizes = (query.shape[1], value.shape[1])
    mask = np.tril(np.ones((1, *sizes), bool)) if use_causal_mask else None
    summed = isinstance(layer, layers.AdditiveAttention)
    weights = _softmax(scope, (_sums if summed else _dots)(scope, layer, query, key), mask)
    if scope.training and layer.dropout:
        from keras import random

        weights = random.dropout(weights, layer.dropout, seed=layer.seed_generator)
    return ops.matmul(weights, value)


def _dots(scope: Any, layer: Any, query: Any, key: Any) -> Any:
    scores = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
    if layer.scale is None:
        return scores
    factor = scope.constant(lambda: ops.convert_to_tensor(layer.scale))
    return scope.inner("unscaled", scores) * ops.cast(factor, scores.dtype)


def _sums(scope: Any, layer: Any, query: Any, key: Any) -> Any:
    """sum_i scale_i tanh(q_i + k_i)."""
    x = scope.fixed(ops.tanh(scope.inner("added", query[:, :, None] + key[:, None])), *SIGNED_UNIT)
    if layer.scale is None:
        return ops.sum(x, axis=-1)
    return scope.product(x, layer.scale, None, (), lambda x, w: ops.matmul(x, w[:, None])[..., 0])


def _refuse_masks(step: Any, kinds: set[str]) -> None:
    if masks := kinds & {name for name, value in step.kwargs.items() if value is not None}:
        raise ValueError(
            f"{step.operation.name!r} attends with {', '.join(sorted(masks))}: what such a mask adds would take the "
            "whole int8 range of the scores. Way out: `MultiHeadAttention` with one boolean `attention_mask`, or with "
            "`use_causal_mask=True`; or sequences of full length."
        )


def _attends(step: Any) -> Rule:
    layer = step.operation
    _refuse_masks(step, {"query_mask", "value_mask", "key_mask"})
    if getattr(layer, "_use_gate", False):
        return _unless_masked(step, layer)
    rank = len(layer._query_dense.equation.split(",")[0])
    everywhere = tuple(layer._attention_axes) == tuple(range(1, rank - 1))
    window = getattr(layer, "_sliding_window", None)
    masked = step.kwargs.get("attention_mask") is not None or step.kwargs.get("use_causal_mask") or window
    plain = everywhere and len(layer._output_dense.equation.split("->")[1]) == rank and not (rank > 3 and masked)
    return ATTENTION if plain else refused("the converter refuses attention over other axes than all of its places")


def _unless_masked(step: Any, layer: Any) -> Rule:
    """Without a rule a mask would be the source's large negative number."""
    kinds = {"attention_mask"} | ({"use_causal_mask"} if step.kwargs.get("use_causal_mask") else set())
    _refuse_masks(step, kinds)
    return UNKNOWN


def _attends_plainly(step: Any) -> Rule:
    layer = step.operation
    _refuse_masks(step, {"mask"})
    if step.kwargs.get("return_attention_scores") or getattr(layer, "score_mode", "dot") != "dot":
        return _unless_masked(step, layer)
    inner = ("added", "scores") if isinstance(layer, layers.AdditiveAttention) else ("unscaled", "scores")
    return Rule(call=_dot_or_sum, inner=inner)


ATTENTION = Rule(call=_multi_head, inner=("query", "key", "value", "scores", "attended"))
register(layers.MultiHeadAttention, choose=_attends)
register(layers.Attention, layers.AdditiveAttention, choose=_attends_plainly)
register(layers.GroupQueryAttention, rule=refused("the converter leaves its products float"))
