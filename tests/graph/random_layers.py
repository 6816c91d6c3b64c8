"""Moves of `keras.layers`."""

import keras
import numpy as np
from keras import layers as L
from random_graphs import move
from this_cpu import convolves_channels_first

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
    first = len(x.shape) > 3 and p.maybe(4) and convolves_channels_first()
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


@move(3, 4)
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
    return L.GroupNormalization(p.one_of(-1, 1, 2, 3, x.shape[axis]), axis=axis, scale=p.maybe())(x)


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
