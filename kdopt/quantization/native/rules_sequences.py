"""Rules for recurrent layers, attention and LayerNormalization: as the operations that TFLite computes them with."""

from typing import Any

from keras import activations, layers, ops

from kdopt.quantization.native.rules import UNKNOWN, Rule, register

UNIT, SIGNED_UNIT = (0.0, 255 / 256), (-1.0, 127 / 128)


def _lstm(scope: Any, layer: Any, sequence: Any, in_order: bool = False) -> Any:
    """Unrolled; the same ranges at every step of time."""
    cell = layer.cell
    bias = (lambda: cell.bias) if cell.use_bias else None
    moved = scope.inner("input", scope.product(sequence, cell.kernel, bias, (-1,), ops.matmul))
    states: list[Any] = []
    state = carry = None
    for time in _times(layer, moved):
        gates = moved[:, time]
        if state is not None:
            product = scope.product(state, cell.recurrent_kernel, None, (-1,), ops.matmul)
            gates = scope.inner("gates", gates + scope.inner("recurrent", product))
        i, f, c, o = _slices(gates, 4)
        i, f, o = (scope.fixed(ops.sigmoid(gate), *UNIT) for gate in (i, f, o))
        added = scope.inner("added", i * scope.fixed(ops.tanh(c), *SIGNED_UNIT))
        kept: Any = None if carry is None else scope.inner("kept", f * carry)
        carry = added if kept is None else scope.inner("carry", kept + added)
        state = scope.inner("state", o * scope.fixed(ops.tanh(carry), *SIGNED_UNIT))
        states.append(state)
    return _output(layer, states, in_order)


def _gru(scope: Any, layer: Any, sequence: Any, in_order: bool = False) -> Any:
    """Unrolled, reset after the product, the same ranges at every step of time."""
    cell, units = layer.cell, layer.units
    bias = (lambda: cell.bias[0]) if cell.use_bias else None
    recurrent_bias = (lambda: cell.bias[1]) if cell.use_bias else None
    moved = scope.inner("input", scope.product(sequence, cell.kernel, bias, (-1,), ops.matmul))
    state = ops.zeros_like(moved[:, 0, :units])
    states: list[Any] = []
    for time in _times(layer, moved):
        product = scope.product(state, cell.recurrent_kernel, recurrent_bias, (-1,), ops.matmul)
        product = scope.inner("recurrent", product)
        x, candidate = moved[:, time, : 2 * units], moved[:, time, 2 * units :]
        gates = scope.inner("gates", x + product[:, : 2 * units])
        update, reset = (scope.fixed(ops.sigmoid(gate), *UNIT) for gate in _slices(gates, 2))
        candidate = scope.inner("candidate", candidate + scope.inner("reset", reset * product[:, 2 * units :]))
        new = scope.fixed(ops.tanh(candidate), *SIGNED_UNIT)
        # z * h + (1 - z) * n = n + z * (h - n)
        change = scope.inner("change", update * scope.inner("difference", state - new))
        state = scope.inner("state", new + change)
        states.append(state)
    return _output(layer, states, in_order)


def _slices(x: Any, count: int) -> list[Any]:
    """Equal parts of the last axis. Not a split: the converter leaves one in float now and then."""
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def _output(layer: Any, states: list[Any], in_order: bool) -> Any:
    if not layer.return_sequences:
        return states[-1]
    return ops.stack(states[::-1] if in_order and layer.go_backwards else states, axis=1)


def _times(layer: Any, sequence: Any) -> range:
    return range(sequence.shape[1] - 1, -1, -1) if layer.go_backwards else range(sequence.shape[1])


def _bidirectional(scope: Any, layer: Any, sequence: Any) -> Any:
    rules = {name: _cell_rule(getattr(layer, f"{name}_layer")) for name in ("forward", "backward")}
    made = []
    for name, rule in rules.items():
        assert rule.call is not None
        made.append(rule.call(scope.part(name), getattr(layer, f"{name}_layer"), sequence, in_order=True))
    if layer.merge_mode == "concat":
        return ops.concatenate(made, axis=-1)
    return made[0] + made[1] if layer.merge_mode == "sum" else made[0] * made[1]


def _cell_rule(layer: Any) -> Rule:
    """The rule for a recurrent layer whose loop is as TFLite computes it; `UNKNOWN` for others."""
    rule = {layers.LSTM: LSTM, layers.GRU: GRU}.get(type(layer), UNKNOWN)
    if rule is UNKNOWN or not getattr(layer, "reset_after", True):
        return UNKNOWN
    plain = layer.activation is activations.tanh and layer.recurrent_activation is activations.sigmoid
    odd = layer.return_state or layer.stateful or layer.dropout or layer.recurrent_dropout
    return rule if plain and not odd else UNKNOWN


def _runs(step: Any) -> Rule:
    layer = step.operation
    if len(step.inputs) > 1 or not _steps_known(layer):
        return UNKNOWN
    if not isinstance(layer, layers.Bidirectional):
        return _cell_rule(layer)
    rules = {name: _cell_rule(getattr(layer, f"{name}_layer")) for name in ("forward", "backward")}
    if UNKNOWN in rules.values() or layer.merge_mode not in ("concat", "sum", "mul"):
        return UNKNOWN
    inner = tuple(f"{part}.{name}" for part, rule in rules.items() for name in rule.inner)
    return Rule(call=_bidirectional, inner=inner)


def _steps_known(layer: Any) -> bool:
    """Whether the number of steps of time is fixed, so that the loop can be unrolled."""
    config = layer.get_build_config() or {}
    shape = config.get("input_shape") or next(iter((config.get("shapes_dict") or {}).values()), None)
    return shape is not None and len(shape) == 3 and shape[1] is not None


def _at_all_times(scope: Any, layer: Any, inputs: Any) -> Any:
    """A dense layer at every step of time is one over the last axis."""
    return layer.layer.activation(scope.linear(layer.layer, inputs))


def _is_dense(step: Any) -> Rule:
    inner = step.operation.layer
    plain = type(inner) is layers.Dense and inner.activation in (activations.linear, activations.relu)
    return Rule(call=_at_all_times) if plain else UNKNOWN


def _attention(scope: Any, layer: Any, query: Any, value: Any, key: Any = None) -> Any:
    """Products and a softmax; what queries are divided by is part of their kernel."""
    key = value if key is None else key
    queries = _projected(scope, layer._query_dense, "query", query, layer._inverse_sqrt_key_dim)
    keys = _projected(scope, layer._key_dense, "key", key)
    values = _projected(scope, layer._value_dense, "value", value)
    heads = (0, 2, 1, 3)  # (batch, heads, places, width)
    scores = ops.matmul(ops.transpose(queries, heads), ops.transpose(keys, (0, 2, 3, 1)))
    weights = scope.fixed(ops.softmax(scope.inner("scores", scores), axis=-1), *UNIT)
    weights = layer._dropout_layer(weights, training=scope.training)
    attended = scope.inner("attended", ops.matmul(weights, ops.transpose(values, heads)))
    return _product(scope, layer._output_dense, ops.transpose(attended, heads))


def _projected(scope: Any, dense: Any, name: str, x: Any, factor: float = 1.0) -> Any:
    return scope.inner(name, _product(scope, dense, x, factor))


def _product(scope: Any, dense: Any, x: Any, factor: float = 1.0) -> Any:
    """An EinsumDense of attention, with a step for each output channel."""
    _, kernel = dense.equation.split("->")[0].split(",")
    output = dense.equation.split("->")[1]
    axes = tuple(i for i, letter in enumerate(kernel) if letter in output)
    bias = None if dense.bias is None else (lambda: dense.bias)
    return scope.product(x, dense._kernel, bias, axes, lambda x, w: ops.einsum(dense.equation, x, w), factor)


def _attends(step: Any) -> Rule:
    layer = step.operation
    given = {name: value for name, value in step.kwargs.items() if value is not None and value is not False}
    if masks := {"attention_mask", "use_causal_mask", "query_mask", "value_mask", "key_mask"} & set(given):
        raise ValueError(
            f"{layer.name!r} attends with {', '.join(sorted(masks))}: the -1e9 that a mask adds would take the whole "
            "int8 range of the scores. Way out: feed sequences of full length without a mask, or export the float "
            "model as 'float16' or 'dynamic'."
        )
    odd = given.get("return_attention_scores") or getattr(layer, "_use_gate", False)
    return ATTENTION if not odd and layer._query_dense.equation == "abc,cde->abde" else UNKNOWN


def _layer_normalization(scope: Any, layer: Any, inputs: Any) -> Any:
    """(x - mean) / sqrt(variance + epsilon), or without the mean; then a factor and an offset for each channel."""
    centered, scale, shift = inputs, getattr(layer, "gamma", None), getattr(layer, "beta", None)
    if isinstance(layer, layers.RMSNormalization):
        scale = layer.scale
    else:
        centered = scope.inner("centered", inputs - scope.inner("mean", ops.mean(inputs, axis=-1, keepdims=True)))
    squares = scope.inner("squares", centered * centered)
    variance = scope.inner("variance", ops.mean(squares, axis=-1, keepdims=True))
    stabilized = scope.inner("stabilized", variance + layer.epsilon)
    # Where the variance is less than half a step: the file takes the largest value of the range, too.
    root = ops.rsqrt(stabilized if scope.exporting else ops.maximum(stabilized, 1e-12))
    normalized = centered * scope.inner("reciprocal", root)
    if scale is None and shift is None:
        return normalized

    def values() -> tuple[Any, Any]:
        size = (inputs.shape[-1],)
        factor = ops.ones(size) if scale is None else ops.cast(scale, "float32")
        return factor, ops.zeros(size) if shift is None else ops.cast(shift, "float32")

    return scope.scaled(scope.inner("normalized", normalized), values)


def _normalizes(step: Any) -> Rule:
    layer = step.operation
    axes = list(layer.axis) if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    rank = len((layer.get_build_config() or {}).get("input_shape") or ())
    last = axes == [-1] or (rank > 0 and axes == [rank - 1])
    return NORMALIZATION if last and not getattr(layer, "rms_scaling", False) else UNKNOWN


LSTM = Rule(
    call=_lstm, inner=("input", "recurrent", "gates", "added", "kept", "carry", "state"), keeps="state", activates=True
)
GRU = Rule(
    call=_gru,
    inner=("input", "recurrent", "gates", "reset", "candidate", "difference", "change", "state"),
    keeps="state",
    activates=True,
)
ATTENTION = Rule(call=_attention, inner=("query", "key", "value", "scores", "attended"))
NORMALIZATION = Rule(
    call=_layer_normalization,
    inner=("mean", "centered", "squares", "variance", "stabilized", "reciprocal", "normalized"),
)
register(layers.LSTM, layers.GRU, layers.Bidirectional, choose=_runs)
register(layers.TimeDistributed, choose=_is_dense)
register(layers.MultiHeadAttention, choose=_attends)
register(layers.LayerNormalization, layers.RMSNormalization, choose=_normalizes)
