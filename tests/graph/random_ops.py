"""Moves of `keras.ops`."""

import numpy as np
from keras import layers as L
from keras import ops
from random_graphs import move
from random_layers import ANY, SPATIAL, factors

UNARY = "relu sigmoid tanh silu gelu elu softplus leaky_relu hard_swish square sin cos abs negative relu6 log_sigmoid"
REDUCTIONS = "mean sum max min std var amax prod"


@move(*ANY)
def unary(p, x):
    return getattr(ops, p.one_of(*UNARY.split()))(x)


@move(*ANY)
def arithmetic(p, x):
    """With a number, an array, or another tensor."""
    name = p.one_of("add", "subtract", "multiply", "maximum", "minimum")
    array = np.linspace(0.5, 1, x.shape[-1]).astype("float32")
    other = p.one_of(0.5, array, p.like(x), p.like(x))
    return getattr(ops, name)(*((x, other) if p.maybe() else (other, x)))


@move(*ANY)
def where(p, x):
    return ops.where(x > p.one_of(0.0, p.like(x)), x, p.one_of(0.0, p.like(x)))


@move(*ANY)
def clip(p, x):
    return p.one_of(
        ops.clip(x, -1.0, 1.0),
        ops.stop_gradient(x),
        ops.cast(x, "float32"),
        x / 2,
        1 - x,
    )


@move(*ANY)
def broadcast(p, x):
    """Two tensors of ranks that may differ."""
    other = p.of_rank(p.one_of(2, len(x.shape)), lambda t: t.shape[-1] in (1, x.shape[-1]))
    if len(other.shape) < len(x.shape):
        other = ops.reshape(other, (-1, *[1] * (len(x.shape) - 2), other.shape[-1]))
    return x * ops.sigmoid(other)


@move(*SPATIAL)
def reduce(p, x):
    axis = p.one_of(p.axis(x), p.number(1, len(x.shape) - 2), [-1, 1], [1])
    return getattr(ops, p.one_of(*REDUCTIONS.split()))(x, axis=axis, keepdims=p.maybe())


@move(*ANY)
def reduce_keeping(p, x):
    return getattr(ops, p.one_of(*REDUCTIONS.split()))(x, axis=p.axis(x), keepdims=True)


@move(*ANY)
def op_reshape(p, x):
    if p.maybe():
        axis = p.number(1, len(x.shape) - 1)
        target = [*x.shape[1:axis], *factors(p, x.shape[axis], 2), *x.shape[axis + 1 :]]
    else:
        target = factors(p, int(np.prod(x.shape[1:])), p.number(1, 4))
    if None in target:
        raise ValueError("Keras cannot run it")
    return ops.reshape(x, (-1, *target))


@move(*ANY)
def into_the_batch(p, x):
    """And back, or into halves of what there was."""
    if None in x.shape[1:]:
        raise ValueError("more than one open size")
    target = p.one_of(x.shape[-1:], (x.shape[1] // 2, *x.shape[2:]), x.shape[2:], (x.shape[-1] // 2,))
    if x.shape[1] * int(np.prod(x.shape[2:])) % int(np.prod(target)):
        raise ValueError("not for every batch")
    h = L.Dense(p.number(2, 6), activation="relu")(ops.reshape(x, (-1, *target)))
    back = ops.reshape(h, (-1, int(np.prod(x.shape[1:])) // int(np.prod(target)), *target[:-1], h.shape[-1]))
    return ops.reshape(back, (-1, *x.shape[1:-1], h.shape[-1])) if target[-1] == x.shape[-1] else back


@move(*SPATIAL)
def op_transpose(p, x):
    one, other = p.number(1, len(x.shape) - 1), p.number(1, len(x.shape) - 1)
    order = list(range(len(x.shape)))
    order[one], order[other] = order[other], order[one]
    return p.one_of(ops.transpose(x, order), ops.swapaxes(x, one, other), ops.moveaxis(x, one, other))


@move(2, 3, 4)
def expand(p, x):
    return ops.expand_dims(x, p.one_of(1, -1, 2))


@move(*SPATIAL)
def squeeze(p, x):
    return ops.squeeze(ops.mean(x, axis=1, keepdims=True), axis=1)


@move(*ANY)
def op_concatenate(p, x):
    return ops.concatenate([x, p.like(x), x] if p.maybe() else [p.like(x), x], axis=p.one_of(-1, p.axis(x)))


@move(2, 3, 4)
def stack(p, x):
    return ops.stack([x, p.like(x)], axis=p.one_of(1, -1))


@move(*ANY)
def split(p, x):
    axis = p.one_of(-1, p.axis(x))
    size = x.shape[axis]
    return ops.split(x, p.one_of([p.number(1, size - 1)], 2, size, [1, 1 + p.number(1, size - 2)]), axis=axis)


@move(*ANY)
def shuffle(p, x):
    """Halves of the channels in another order, some of them worked on."""
    one, other = ops.split(x, [p.number(1, x.shape[-1] - 1)], axis=-1)
    return ops.concatenate([ops.relu(other), one], axis=-1)


@move(*ANY)
def get_item(p, x):
    size = x.shape[-1]
    keys = [np.s_[..., : p.number(1, size)], np.s_[:, None], np.s_[..., ::-1], np.s_[:, 0], np.s_[:, -1:], np.s_[...]]
    keys += [np.s_[:, 0:1], np.s_[..., None], np.s_[:, ::2], np.s_[..., p.number(0, size - 1)], np.s_[..., 1:]]
    first, step = p.number(-size, size), p.number(1, 3)
    keys += [np.s_[..., first::step], np.s_[..., :first], np.s_[..., first::-step], np.s_[:, 1:-1, ..., -first:-1:2]]
    keys += [np.s_[..., :-first:step], np.s_[..., first % size : -1], np.s_[..., -1 - first % size]]
    return x[p.one_of(*keys)]


@move(*ANY)
def pad(p, x):
    widths = [(0, 0), *[(p.number(0, 1), p.number(0, 1)) for _ in x.shape[2:]], p.one_of((0, 0), (0, 0), (1, 0))]
    mode = p.one_of("constant", "constant", "reflect" if 1 not in x.shape else "symmetric")
    return ops.pad(x, widths, mode=mode, constant_values=p.one_of(None, 0.5) if mode == "constant" else None)


@move(*SPATIAL)
def matmul(p, x):
    other = p.one_of(ops.swapaxes(p.like(x), -1, -2), np.ones((x.shape[-1], 2), "float32"))
    return ops.matmul(x, other) if p.maybe() else ops.matmul(ops.swapaxes(x, -1, -2), p.like(x))


@move(3)
def einsum(p, x):
    return p.one_of(ops.einsum("abc,abd->acd", x, p.like(x)), ops.einsum("abc,adc->abd", x, p.like(x)))


@move(*ANY)
def op_softmax(p, x):
    return p.one_of(ops.softmax, ops.log_softmax)(x, axis=p.axis(x))


@move(3, 4, 5)
def op_pool(p, x):
    kwargs = {"padding": p.one_of("same", "valid"), "data_format": p.one_of("channels_last", "channels_first")}
    return p.one_of(ops.max_pool, ops.average_pool)(x, p.number(1, 2), **kwargs)


@move(3, 4)
def resize(p, x):
    return ops.image.resize(x, (3, 4), data_format=p.one_of("channels_last", "channels_first"))


@move(*ANY)
def flip(p, x):
    return ops.flip(x, p.one_of(p.axis(x), -1, (1, -1) if len(x.shape) > 2 else 1))


@move(*ANY)
def without_a_rule(p, x):
    """What nobody may guess."""
    axis = p.axis(x)
    name = p.one_of("roll", "repeat", "take", "cumsum", "sort", "tile", "normalize", "outer", "arg", "unstack")
    return {
        "roll": lambda: ops.roll(x, 1, axis=axis),
        "repeat": lambda: ops.repeat(x, 2, axis=axis),
        "take": lambda: ops.take(x, [0, 0], axis=axis),
        "cumsum": lambda: ops.cumsum(x, axis=axis),
        "sort": lambda: ops.sort(x, axis=axis),
        "tile": lambda: ops.tile(x, [1] * (len(x.shape) - 1) + [2]),
        "normalize": lambda: ops.normalize(x, axis=axis),
        "outer": lambda: ops.tensordot(x, np.ones((x.shape[-1], 2), "float32"), axes=1),
        "arg": lambda: ops.cast(ops.argmax(x, axis=-1, keepdims=True), "float32"),
        "unstack": lambda: ops.unstack(x, axis=1),
    }[name]()
