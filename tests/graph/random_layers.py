"""Moves of `keras.layers`."""

import keras
import numpy as np
from keras import layers as L
from random_graphs import Pool, is_float, move, read_by

ANY, SPATIAL = (2, 3, 4, 5), (3, 4, 5)


def layer(kind, name, x, *args, **kwargs):
    """The class of a rank: Conv -> Conv2D."""
    return getattr(L, f"{kind}{len(x.shape) - 2}D{name}")(*args, **kwargs)


@move(*ANY)
def dense(p, x):
    return L.Dense(p.number(1, 8), activation=p.activation(), use_bias=not p.maybe(4))(x)


@move(*ANY)
def einsum_dense(p, x):
    n, m = p.number(1, 5), p.number(1, 4)
    inside = "bcde"[: len(x.shape) - 2]
    first, *_ = inside or "z"
    equation, shape, bias = p.one_of(
        (f"a{inside}x,xy->a{inside}y", (*x.shape[1:-1], n), p.one_of(None, "y", *inside)),
        ("...x,xy->...y", (n,), "y"),
        (f"a{inside}x,xyz->a{inside}yz", (*x.shape[1:-1], n, m), p.one_of("y", "z", "yz")),
        (f"a{inside}x,x->a{inside}x", x.shape[1:], "x"),
        (f"a{inside}x,{inside}xy->ay", (n,), "y"),
        (f"a{inside}x,{first}y->a{inside}y", (*x.shape[1:-1], n), None),
        (f"a{inside}x,{first}xy->a{inside}y", (*x.shape[1:-1], n), "y"),
        (f"a{inside}x,{first}y->ay{inside.replace(first, '')}x", (n, *x.shape[2:]), "y"),
        (f"a{inside}x,xy->ay{inside}", (n, *x.shape[1:-1]), "y"),
    )
    return L.EinsumDense(equation, shape, bias_axes=bias, activation=p.activation())(x)


def _conv_arguments(p, x):
    """Sizes; then either strides or dilation."""
    first = len(x.shape) > 3 and p.maybe(4)
    strides, dilation = p.one_of((1, 1), (1, 1), (2, 1), (1, 2))
    made = {"padding": p.one_of("same", "valid"), "strides": strides, "dilation_rate": dilation}
    made |= {"activation": p.activation(), "use_bias": not p.maybe(4)}
    return {**made, "data_format": "channels_first" if first else "channels_last"}, x.shape[1 if first else -1]


@move(*SPATIAL)
def conv(p, x):
    kwargs, width = _conv_arguments(p, x)
    groups = p.one_of(1, 1, *[n for n in range(2, width + 1) if width % n == 0])
    return layer("Conv", "", x, groups * p.number(1, 3), p.number(1, 3), groups=groups, **kwargs)(x)


@move(3)
def causal(p, x):
    return L.Conv1D(p.number(1, 6), 2, padding="causal", dilation_rate=p.number(1, 2))(x)


@move(*SPATIAL)
def conv_transpose(p, x):
    kwargs, _ = _conv_arguments(p, x)
    return layer("Conv", "Transpose", x, p.number(1, 6), p.number(1, 3), **kwargs)(x)


@move(3, 4)
def depthwise(p, x):
    kwargs, _ = _conv_arguments(p, x)
    return layer("DepthwiseConv", "", x, p.number(1, 3), depth_multiplier=p.number(1, 3), **kwargs)(x)


@move(3, 4)
def separable(p, x):
    kwargs, _ = _conv_arguments(p, x)
    return layer("SeparableConv", "", x, p.number(1, 6), p.number(1, 3), depth_multiplier=p.number(1, 2), **kwargs)(x)


@move(3, 4, 5)
def pooling(p, x):
    kwargs = {"padding": p.one_of("same", "valid"), "data_format": p.one_of("channels_last", "channels_first")}
    return layer(p.one_of("MaxPooling", "AveragePooling"), "", x, p.number(1, 2), p.one_of(None, 1), **kwargs)(x)


@move(3, 4, 5)
def global_pooling(p, x):
    kwargs = {"keepdims": p.maybe(), "data_format": p.one_of("channels_last", "channels_last", "channels_first")}
    return layer(p.one_of("GlobalMaxPooling", "GlobalAveragePooling"), "", x, **kwargs)(x)


@move(3, 4, 5)
def borders(p, x):
    kwargs = {"data_format": p.one_of("channels_last", "channels_first")} if len(x.shape) > 3 else {}
    kind = p.one_of("ZeroPadding", "Cropping", "UpSampling")
    return layer(kind, "", x, p.one_of(1, 2 if kind == "UpSampling" else 1), **kwargs)(x)


@move(4)
def resizing(p, x):
    return p.one_of(L.Resizing(3, 4), L.Resizing(4, 4, "nearest"), L.CenterCrop(2, 2))(x)


@move(*ANY)
def activation(p, x):
    chosen = [p.one_of("relu", "sigmoid", "hard_silu", "softplus", "softmax", "log_softmax", "my"), "linear"]
    return L.Activation(keras.ops.tanh if chosen[0] == "my" else chosen[p.number(0, 1)])(x)


@move(*ANY)
def quiet(p, x):
    """Layers that act on numbers alone."""
    spatial = layer("SpatialDropout", "", x, 0.5) if len(x.shape) > 2 else L.Identity()
    dropouts = (L.Dropout(0.5), L.GaussianDropout(0.5), L.GaussianNoise(0.5), L.AlphaDropout(0.5), spatial)
    activations = (L.ReLU(), L.LeakyReLU(), L.ELU(), L.Softmax(axis=p.axis(x)))
    others = (L.Identity(), L.ActivityRegularization(0.1), L.Rescaling(0.5, 0.1), L.Rescaling(2.0))
    return p.one_of(*dropouts, *activations, *others)(x)


@move(*ANY)
def rescaling(p, x):
    return L.Rescaling(np.linspace(0.5, 1, x.shape[-1]).tolist(), offset=0.1)(x)


@move(*ANY)
def prelu(p, x):
    shared = [axis for axis in range(1, len(x.shape)) if x.shape[axis] is None or p.maybe()]
    return L.PReLU(alpha_initializer="ones", shared_axes=shared)(x)


@move(*ANY)
def batch_normalization(p, x):
    return L.BatchNormalization(axis=p.one_of(-1, p.axis(x)), center=not p.maybe(3), scale=not p.maybe(3))(x)


@move(*ANY)
def normalization(p, x):
    axis = p.one_of(-1, p.axis(x))
    kind = p.one_of(L.LayerNormalization, L.RMSNormalization, L.UnitNormalization)
    several = kind is L.LayerNormalization and len(x.shape) > 3 and p.maybe(3)
    return kind(axis=(-2, -1) if several else -1 if kind is L.RMSNormalization else axis)(x)


@move(*SPATIAL)
def group_normalization(p, x):
    axis = p.one_of(-1, p.axis(x))
    return L.GroupNormalization(p.one_of(-1, 1, 2, x.shape[axis]), axis=axis, scale=p.maybe())(x)


@move(*ANY)
def unit_wise(p, x):
    return L.Normalization(axis=-1, mean=0.1, variance=2.0)(x)


MERGES = (L.Add, L.Subtract, L.Multiply, L.Average, L.Maximum, L.Minimum)


@move(*ANY)
def merge(p, x):
    kind = p.one_of(*MERGES)
    several = [p.like(x)] if kind is not L.Subtract and p.maybe(3) else []
    return kind()([x, p.like(x), *several])


@move(*ANY)
def residual(p, x):
    return L.Add()([L.Dense(x.shape[-1])(dense(p, x)), x])


@move(*ANY)
def gate(p, x):
    """A tensor with some axes of size 1, spread over `x`."""
    h = p.like(x)
    for axis in range(1, len(x.shape)):
        if p.maybe():
            h = keras.ops.mean(h, axis, keepdims=True)
    return p.one_of(*MERGES)()([x, h] if p.maybe() else [h, x])


@move(4)
def squeeze_and_excite(p, x):
    h = L.Dense(p.number(1, 3), activation="relu")(L.GlobalAveragePooling2D()(x))
    return L.Multiply()([x, L.Reshape((1, 1, x.shape[-1]))(L.Dense(x.shape[-1], activation="sigmoid")(h))])


@move(*ANY)
def ranks(p, x):
    """Of a smaller rank, broadcast as NumPy does (the batch may meet an axis of the same size only by chance)."""
    other = p.of_rank(len(x.shape), lambda t: t.shape[-1] in (1, x.shape[-1]))
    return p.one_of(*MERGES)()([x, other])


@move(*ANY)
def concatenate(p, x):
    axis = p.one_of(-1, p.axis(x))

    def fits(t):
        return all(a == b for i, (a, b) in enumerate(zip(t.shape, x.shape, strict=True)) if i != axis % len(x.shape))

    return L.Concatenate(axis=axis)([x, p.of_rank(len(x.shape), fits), *([p.like(x)] if p.maybe() else [])])


@move(2, 3)
def dot(p, x):
    return L.Dot(axes=p.number(1, len(x.shape) - 1), normalize=p.maybe())([x, p.like(x)])


@move(3, 4, 5)
def flatten(p, x):
    return L.Flatten(data_format=p.one_of("channels_last", "channels_first"))(x)


def factors(p, size, count):
    """`count` numbers with the product `size`."""
    made = []
    for _ in range(count - 1):
        made.append(p.one_of(*[n for n in range(1, size + 1) if size % n == 0]))
        size //= made[-1]
    return [*made, size]


@move(*ANY)
def reshape(p, x):
    """Any shape, or one axis taken apart."""
    if p.maybe():
        axis = p.number(1, len(x.shape) - 1)
        target = [*x.shape[1:axis], *factors(p, x.shape[axis], 2), *x.shape[axis + 1 :]]
    else:
        target = factors(p, int(np.prod(x.shape[1:])), p.number(1, 4))
    if p.maybe(3):
        target[p.number(0, len(target) - 1)] = -1
    return L.Reshape(target)(x)


@move(*SPATIAL)
def permute(p, x):
    rest, dims = list(range(1, len(x.shape))), []
    while rest:
        dims.append(rest.pop(p.number(0, len(rest) - 1)))
    return L.Permute(dims)(x)


@move(2)
def repeat_vector(p, x):
    return L.RepeatVector(p.number(1, 4))(x)


@move(0)
def embedding(p, x):
    return L.Embedding(5, p.number(2, 6), mask_zero=p.maybe(4))(x)


@move(3)
def masking(p, x):
    return L.Masking()(x)


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
    kwargs = {"value_dim": p.one_of(None, 1, 3), "output_shape": p.one_of(None, None, 3, (2, 2)), "use_bias": not p.maybe(4)}
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
    value = p.of_rank(3, lambda t: t.shape[-1] == x.shape[-1]) or x
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
    return keras.Sequential([L.Dense(p.number(1, 6), activation="relu"), L.BatchNormalization(), L.Dense(3)])(x)
