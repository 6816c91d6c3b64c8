"""Moves of recurrent and attention layers, of wrappers, and of models within models."""

import keras
from keras import layers as L
from random_graphs import Pool, is_float, move, read_by
from random_layers import ANY, SPATIAL, dense

RECURRENT = (L.SimpleRNN, L.LSTM, L.GRU)


def _recurrent(p, **more):
    kind, kwargs = p.one_of(*RECURRENT), {"use_bias": not p.maybe(4), "return_sequences": p.maybe(), **more}
    if kind is L.GRU:
        kwargs["reset_after"] = p.maybe()
    return kind(p.number(1, 4), activation=p.one_of("tanh", "tanh", "relu", "softmax"), **kwargs)


@move(3)
def recurrent(p, x):
    made = _recurrent(p, go_backwards=p.maybe(4), return_state=p.maybe(4), unroll=p.maybe(8))
    states = [p.of_rank(2) for _ in keras.tree.flatten(made.cell.state_size)]
    if not p.maybe(3) or None in states:
        return made(x)
    states = [s if s.shape[-1] == made.units else L.Dense(made.units)(s) for s in states]
    return made(x, initial_state=states if len(states) > 1 else states[0])


@move(3)
def stacked(p, x):
    return _recurrent(p)(_recurrent(p, return_sequences=True)(x))


@move(3)
def bidirectional(p, x):
    mode = p.one_of("concat", "concat", "sum", "mul", "ave", None)
    one = _recurrent(p, return_state=p.maybe(6))
    back = None
    if p.maybe(3):
        back = p.one_of(*RECURRENT)(one.units, go_backwards=True, return_sequences=one.return_sequences)
    return L.Bidirectional(one, merge_mode=mode, backward_layer=back)(x)


@move(3)
def other_recurrent(p, x):
    """Layers that nobody has a rule for."""
    cells = L.RNN([L.GRUCell(3), L.LSTMCell(2)], return_sequences=True)
    return p.one_of(cells, L.SpectralNormalization(L.Conv1D(3, 1)), L.SpectralNormalization(L.Dense(4)))(x)


@move(0)
def tied(p, x):
    """One table that is read in both directions."""
    layer = L.ReversibleEmbedding(5, p.number(2, 4), reverse_dtype="float32")
    return layer(L.Dense(layer.output_dim)(layer(x)), reverse=True)


@move(*SPATIAL)
def time_distributed(p, x):
    choices = [L.Dense(p.number(1, 5), activation=p.activation()), L.LayerNormalization(), L.BatchNormalization()]
    if len(x.shape) > 3:
        choices += [L.Flatten(), keras.Sequential([L.Flatten(), L.Dense(4)])]
        choices += [_recurrent(p), L.Conv1D(4, 1), L.Bidirectional(_recurrent(p))] if len(x.shape) == 4 else []
        choices += [L.Conv2D(3, 2), L.DepthwiseConv2D(1), L.GlobalMaxPooling2D()] if len(x.shape) == 5 else []
    return L.TimeDistributed(p.one_of(*choices))(x)


@move(3, 4)
def multi_head_attention(p, x):
    same = p.maybe()
    value = x if same else p.of_rank(len(x.shape))
    key = p.like(value) if p.maybe(3) else None
    kwargs = {
        "value_dim": p.one_of(None, 1, 3),
        "output_shape": p.one_of(None, None, 3, (2, 2)),
        "use_bias": not p.maybe(4),
    }
    kwargs["attention_axes"] = p.one_of(None, 1, 2) if len(x.shape) == 4 else None
    made = L.MultiHeadAttention(p.number(1, 4), p.number(1, 3), use_gate=p.maybe(6), **kwargs)
    scores = len(x.shape) == 3 and p.maybe(4)  # Keras gives a wrong shape for those of a larger rank
    return made(x, value, key, return_attention_scores=scores, use_causal_mask=same and key is None and p.maybe(3))


@move(3)
def group_query_attention(p, x):
    groups = p.number(1, 3)
    value = p.like(x) if p.maybe() else x
    made = L.GroupQueryAttention(p.number(1, 4), groups * p.number(1, 2), groups, use_gate=p.maybe(4))
    key = p.like(value) if p.maybe(3) else None
    mask = keras.ops.matmul(x, keras.ops.swapaxes(value, 1, 2)) > 0.1 if p.maybe(6) else None
    return made(x, value, key, attention_mask=mask, return_attention_scores=p.maybe(4))


@move(3)
def attention(p, x):
    value = p.of_rank(3, lambda t: t.shape[-1] == x.shape[-1])
    key = [p.like(value)] if p.maybe(3) else []
    kind = p.one_of(L.Attention(score_mode=p.one_of("dot", "concat")), L.Attention(True), L.AdditiveAttention())
    return kind([x, value, *key], return_attention_scores=p.maybe(4))


@move(*ANY)
def again(p, x):
    """A layer that has been called before, called on something else of the same shape."""

    def fits(t):
        history = t._keras_history
        given = history.operation._inbound_nodes[history.node_index].input_tensors
        return isinstance(history.operation, L.Layer) and len(given) == 1

    made = p.pick(lambda t: fits(t) and is_float(t))
    history = made._keras_history
    (before,) = history.operation._inbound_nodes[history.node_index].input_tensors
    return history.operation(x if x.shape == before.shape else p.like(before))


@move(*ANY)
def nested(p, x):
    """A model as a layer, called once or on two tensors."""
    if p.depth > 1:
        return dense(p, x)
    inside = Pool(p.draws, [keras.Input(x.shape[1:])], p.depth + 1)
    first = inside.tensors[0]
    if p.maybe():
        inside.tensors.append(keras.Input(x.shape[1:]))
    inputs = list(inside.tensors)
    for _ in range(p.number(1, 4)):
        inside.step()
    ends = [t for t in inside.ends() if all(t is not one for one in inputs)] or [L.Dense(3)(first)]
    inputs = read_by(inputs, ends)
    named = p.maybe(3)
    wrap = (lambda given: {f"z{len(given) - i}": t for i, t in enumerate(given)}) if named else list
    model = keras.Model(*((wrap(made) if len(made) > 1 else made[0]) for made in (inputs, ends)))
    calls = [[p.like(x) if p.maybe() else x for _ in inputs] for _ in range(p.number(1, 2))]
    return [model(wrap(given) if len(given) > 1 else given[0]) for given in calls]


@move(*ANY)
def sequential(p, x):
    inside = [L.Dense(p.number(1, 6), activation="relu"), L.BatchNormalization(), L.Dense(3)]
    return keras.Sequential([*inside, keras.Sequential([L.Dense(2)]) if p.maybe() else L.ReLU(), L.Dense(2)])(x)
