"""Rules for recurrent layers: unrolled, with the same ranges at every step of time."""

from typing import Any

from keras import activations, layers, ops, random

from kdopt.quantization.native.inside import activated, limits_of, ranges_of
from kdopt.quantization.native.rules import UNKNOWN, Rule, refused, register

LOOP = refused(
    "its loop stays float (unrolled is a plain LSTM, GRU or SimpleRNN on sequences of a fixed length: not stateful, "
    "without masks, with activations that have rules)"
)


def _lstm(scope: Any, layer: Any, sequence: Any, initial_state: Any = None, in_order: bool = False) -> Any:
    cell = layer.cell
    bias = (lambda: cell.bias) if cell.use_bias else None
    sequence = _dropped(scope, cell, sequence, cell.dropout)
    moved = scope.inner("input", scope.product(sequence, cell.kernel, bias, (-1,), ops.matmul))
    state, carry = initial_state or (None, None)
    drop = _recurrent_dropout(scope, cell, moved)
    states: list[Any] = []
    for time in _times(layer, moved):
        gates = moved[:, time]
        if state is not None:
            product = scope.product(drop(state), cell.recurrent_kernel, None, (-1,), ops.matmul)
            gates = scope.inner("gates", gates + scope.inner("recurrent", product))
        i, f, c, o = _slices(gates, 4)
        i, f, o = (
            activated(scope, cell.recurrent_activation, name, gate)
            for name, gate in (("input_gate", i), ("forget_gate", f), ("output_gate", o))
        )
        added = scope.inner("added", i * activated(scope, cell.activation, "candidate", c))
        kept: Any = None if carry is None else scope.inner("kept", f * carry)
        carry = added if kept is None else scope.inner("carry", kept + added)
        state = scope.inner("state", o * activated(scope, cell.activation, "activated", carry))
        states.append(state)
    return _output(layer, states, [state, carry], in_order)


def _gru(scope: Any, layer: Any, sequence: Any, initial_state: Any = None, in_order: bool = False) -> Any:
    cell, units = layer.cell, layer.units
    after = cell.reset_after
    bias = (lambda: cell.bias[0] if after else cell.bias.value) if cell.use_bias else None
    recurrent_bias = (lambda: cell.bias[1]) if cell.use_bias and after else None
    sequence = _dropped(scope, cell, sequence, cell.dropout)
    moved = scope.inner("input", scope.product(sequence, cell.kernel, bias, (-1,), ops.matmul))
    drop = _recurrent_dropout(scope, cell, moved)
    state = initial_state[0] if initial_state else ops.zeros_like(moved[:, 0, :units])
    states: list[Any] = []

    def multiplied(x: Any, name: str, first: int, last: int, offset: Any = None) -> Any:
        made = scope.product(x, cell.recurrent_kernel, offset, (-1,), lambda x, w: ops.matmul(x, w[:, first:last]))
        return scope.inner(name, made)

    for time in _times(layer, moved):
        product = multiplied(drop(state), "recurrent", 0, (3 if after else 2) * units, recurrent_bias)
        x, candidate = moved[:, time, : 2 * units], moved[:, time, 2 * units :]
        gates = scope.inner("gates", x + product[:, : 2 * units])
        z, r = _slices(gates, 2)
        update = activated(scope, cell.recurrent_activation, "update_gate", z)
        reset = activated(scope, cell.recurrent_activation, "reset_gate", r)
        if after:
            past = scope.inner("reset", reset * product[:, 2 * units :])
        else:
            past = multiplied(scope.inner("reset", reset * drop(state)), "past", 2 * units, 3 * units)
        new = activated(scope, cell.activation, "new", candidate + past, before="candidate")
        # z * h + (1 - z) * n = n + z * (h - n)
        change = scope.inner("change", update * scope.inner("difference", state - new))
        state = scope.inner("state", new + change)
        states.append(state)
    return _output(layer, states, [state], in_order)


def _simple(scope: Any, layer: Any, sequence: Any, initial_state: Any = None, in_order: bool = False) -> Any:
    cell = layer.cell
    bias = (lambda: cell.bias) if cell.use_bias else None
    sequence = _dropped(scope, cell, sequence, cell.dropout)
    moved = scope.inner("input", scope.product(sequence, cell.kernel, bias, (-1,), ops.matmul))
    drop = _recurrent_dropout(scope, cell, moved)
    state = initial_state[0] if initial_state else None
    states: list[Any] = []
    for time in _times(layer, moved):
        if state is None:
            state = activated(scope, cell.activation, "state", moved[:, time])
        else:
            product = scope.product(drop(state), cell.recurrent_kernel, None, (-1,), ops.matmul)
            total = moved[:, time] + scope.inner("recurrent", product)
            state = activated(scope, cell.activation, "state", total, before="sum")
        states.append(state)
    return _output(layer, states, [state], in_order)


def _slices(x: Any, count: int) -> list[Any]:
    """Equal parts of the last axis. Not a split: the converter leaves one in float now and then."""
    size = x.shape[-1] // count
    return [x[..., i * size : (i + 1) * size] for i in range(count)]


def _dropped(scope: Any, cell: Any, sequence: Any, rate: float) -> Any:
    """Dropout of the same entries at every step of time."""
    if not scope.training or not rate:
        return sequence
    shape = (ops.shape(sequence)[0], 1, sequence.shape[-1])
    return random.dropout(sequence, rate, noise_shape=shape, seed=cell.seed_generator)


def _recurrent_dropout(scope: Any, cell: Any, moved: Any) -> Any:
    """Function of the state."""
    if not scope.training or not cell.recurrent_dropout:
        return lambda state: state
    ones = ops.ones_like(moved[:, 0, : cell.units])
    factors = random.dropout(ones, cell.recurrent_dropout, seed=cell.seed_generator)
    return lambda state: state * factors


def _output(layer: Any, states: list[Any], last: list[Any], in_order: bool) -> Any:
    made = states[-1]
    if layer.return_sequences:
        made = ops.stack(states[::-1] if in_order and layer.go_backwards else states, axis=1)
    return [made, *last] if layer.return_state else made


def _times(layer: Any, sequence: Any) -> range:
    return range(sequence.shape[1] - 1, -1, -1) if layer.go_backwards else range(sequence.shape[1])


def _bidirectional(scope: Any, layer: Any, sequence: Any) -> Any:
    rules = {name: _cell_rule(getattr(layer, f"{name}_layer")) for name in ("forward", "backward")}
    made = []
    for name, rule in rules.items():
        assert rule.call is not None
        made.append(rule.call(scope.part(name), getattr(layer, f"{name}_layer"), sequence, in_order=True))
    if layer.merge_mode is None:
        return made
    if layer.merge_mode == "concat":
        return ops.concatenate(made, axis=-1)
    if layer.merge_mode == "ave":
        return scope.inner("merged", made[0] + made[1]) * 0.5
    return made[0] + made[1] if layer.merge_mode == "sum" else made[0] * made[1]


def _cell_rule(layer: Any) -> Rule:
    """The rule for a recurrent layer that is unrolled; `LOOP` for others."""
    if layer.stateful:
        return LOOP
    chosen = _CELLS.get(type(layer))
    rule = None if chosen is None else chosen(layer)
    return LOOP if rule is None else rule


def _lstm_rule(layer: Any) -> Rule | None:
    gates = [ranges_of(layer.recurrent_activation, f"{name}_gate") for name in ("input", "forget", "output")]
    inner = [*gates, *(ranges_of(layer.activation, name) for name in ("candidate", "activated"))]
    names = ("input", "recurrent", "gates", "added", "kept", "carry", "state")
    # Carries have another scale than states: as outputs each gets a range of its own.
    return _rule(_lstm, names, inner, "" if layer.return_state else "state")


def _gru_rule(layer: Any) -> Rule | None:
    names = ["input", "recurrent", "gates", "reset", "difference", "change", "state"]
    gates = [ranges_of(layer.recurrent_activation, f"{name}_gate") for name in ("update", "reset")]
    past = () if layer.reset_after else ("past",)
    return _rule(_gru, (*names, *past), [*gates, ranges_of(layer.activation, "new", "candidate")], "state")


def _simple_rule(layer: Any) -> Rule | None:
    inner = ranges_of(layer.activation, "state", "sum")
    if inner is None:
        return None
    limits = limits_of(layer.activation)
    names = ("input", "recurrent", *inner)
    if limits is not None:
        return Rule("fixed", limits=limits, call=_simple, inner=names, activates=True)
    return Rule(call=_simple, inner=names, keeps="state", activates=True)


def _rule(call: Any, names: tuple[str, ...], inner: list[tuple[str, ...] | None], keeps: str) -> Rule | None:
    known = [one for one in inner if one is not None]
    if len(known) < len(inner):
        return None
    return Rule(call=call, inner=(*names, *(name for one in known for name in one)), keeps=keeps, activates=True)


def _runs(step: Any) -> Rule:
    layer = step.operation
    if not _steps_known(layer) or step.kwargs.get("mask") is not None:
        return LOOP
    if not isinstance(layer, layers.Bidirectional):
        return _cell_rule(layer)
    parts = {name: getattr(layer, f"{name}_layer") for name in ("forward", "backward")}
    rules = {name: _cell_rule(part) for name, part in parts.items()}
    if LOOP in rules.values() or len(step.inputs) > 1 or any(part.return_state for part in parts.values()):
        return LOOP
    return _both(layer, rules)


def _both(layer: Any, rules: dict[str, Rule]) -> Rule:
    """Both directions. TFLite joins tensors of one scale: states that go out as they are share a range."""
    inner = tuple(f"{part}.{name}" for part, rule in rules.items() for name in rule.inner)
    forward, backward = rules.values()
    if layer.merge_mode not in ("concat", None):
        return Rule(call=_bidirectional, inner=(*inner, *(("merged",) if layer.merge_mode == "ave" else ())))
    if forward.limits is not None and forward.limits == backward.limits:
        return Rule("fixed", limits=forward.limits, call=_bidirectional, inner=inner)
    if forward.keeps and forward.keeps == backward.keeps:
        own = tuple(name for name in inner if name.rpartition(".")[2] != forward.keeps or name.count(".") > 1)
        return Rule(call=_bidirectional, inner=(*own, forward.keeps), keeps=forward.keeps)
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


_CELLS: dict[Any, Any] = {layers.LSTM: _lstm_rule, layers.GRU: _gru_rule, layers.SimpleRNN: _simple_rule}
register(layers.LSTM, layers.GRU, layers.SimpleRNN, layers.Bidirectional, choose=_runs)
register(layers.RNN, layers.ConvLSTM1D, layers.ConvLSTM2D, layers.ConvLSTM3D, rule=LOOP)
register(layers.TimeDistributed, choose=_is_dense)
