"""Random graphs of Keras layers and `keras.ops`: a pool of tensors, and moves that make one more of them.

A move is a function `(pool, x) -> tensor or tensors`, listed under the ranks of `x` it is for. A move that Keras
refuses for a shape adds nothing; were a kind always refused, the coverage that the test counts would show it.
"""

from collections import defaultdict

import keras
import numpy as np
from keras import layers as L

from kdopt.graph.trace import nodes_of

MOVES = defaultdict(dict)  # rank -> name -> function; rank 0 stands for whole numbers, of any shape
MAKERS = {"dense", "einsum_dense", "conv", "conv_transpose", "separable", "depthwise", "recurrent", "bidirectional"}
MAKERS |= {"time_distributed", "multi_head_attention", "embedding", "again", "nested", "sequential"}
LARGEST = 900  # values of one sample in one tensor


def move(*ranks):
    """Decorator: lists a function as a move for tensors of some ranks."""

    def add(function):
        for rank in ranks:
            MOVES[rank][function.__name__] = function
        return function

    return add


class Draws:
    """The choices of one example, a byte each; what comes after the last byte is the first choice.

    One sequence of bytes is quick to draw and shrinks to fewer moves of simpler kinds.
    """

    def __init__(self, stream):
        self._bytes = iter(stream)

    def number(self, low, high):
        if high < low:
            raise ValueError("nothing to choose from")
        return low + next(self._bytes, 0) % (high - low + 1)

    def one_of(self, *choices):
        return choices[self.number(0, len(choices) - 1)]

    def maybe(self, share=2):
        """Once in `share` times."""
        return self.number(1, share) == share


class Pool:
    """The tensors made so far, and the draws of one example."""

    def __init__(self, draws, tensors, depth=0):
        self.draws, self.tensors, self.depth = draws, list(tensors), depth
        self.number, self.one_of, self.maybe = draws.number, draws.one_of, draws.maybe
        self.read = set()

    def activation(self):
        return self.one_of(None, None, "relu", "tanh", "gelu", keras.activations.silu, L.LeakyReLU(), "softmax")

    def axis(self, x, first=1):
        return self.number(first, len(x.shape) - 1) - self.one_of(0, len(x.shape))

    def use(self, tensor):
        self.read.add(id(tensor))
        return tensor

    def pick(self, accept=lambda tensor: True):
        """A tensor, rather a new one; `None` if there is none that fits."""
        fitting = [tensor for tensor in self.tensors if accept(tensor)]
        if not fitting:
            return None
        last = len(fitting) - 1
        return fitting[max(self.number(0, last), self.number(0, last))]

    def like(self, x):
        """Another tensor of the shape of `x`: one that there is, or a new one that is made from `x`."""
        found = self.pick(lambda t: t is not x and t.shape == x.shape and t.dtype == x.dtype)
        if found is not None and self.maybe():
            return self.use(found)
        return self.one_of(L.Dense(x.shape[-1]), L.Dense(x.shape[-1], activation="relu"), L.BatchNormalization())(x)

    def of_rank(self, rank, accept=lambda tensor: True):
        """A tensor of a rank, or `None`."""
        found = self.pick(lambda t: len(t.shape) == rank and is_float(t) and accept(t))
        return None if found is None else self.use(found)

    def step(self, x=None):
        """One move more; one in three is a layer with channels of its own."""
        x = self.pick() if x is None else x
        table = MOVES[len(x.shape) if is_float(x) else 0]
        table = table if self.number(1, 3) < 3 else sorted(MAKERS & set(table))
        name = self.one_of(*table)
        try:
            made = table[name](self, x)
        except (ValueError, TypeError, IndexError, AttributeError, ZeroDivisionError, NotImplementedError):
            return  # Keras has refused the shape
        made = [tensor for tensor in keras.tree.flatten(made) if isinstance(tensor, keras.KerasTensor)]
        if made and all(is_small(tensor) for tensor in made):
            self.use(x)
            self.tensors += made

    def ends(self):
        """The tensors that nothing has read."""
        return [tensor for tensor in self.tensors if id(tensor) not in self.read] or self.tensors[-1:]


def is_float(tensor):
    return "float" in str(tensor.dtype)


def is_small(tensor):
    sizes = tensor.shape[1:]
    return len(tensor.shape) in (2, 3, 4, 5) and 0 not in sizes and np.prod([s or 6 for s in sizes]) <= LARGEST


def random_input(pool, batch=None):
    kind = pool.one_of("sequence", "image", "sequence", "image", "image", "vector", "volume", "tokens")
    if kind == "tokens":
        return keras.Input((pool.one_of(4, 5, None),), dtype="int32", batch_size=batch)
    rank = {"vector": 0, "sequence": 1, "image": 2, "volume": 3}[kind]
    spatial = [None if pool.maybe(12) else pool.number(2, 6 if rank < 3 else 4) for _ in range(rank)]
    return keras.Input((*spatial, pool.number(1, 6)), batch_size=batch)


def first(pool, x):
    """Channels that may go, where those of an input must stay."""
    width = pool.number(3, 8)
    if not is_float(x):
        return L.Embedding(5, width, mask_zero=pool.maybe(4))(x)
    kinds = {3: L.Conv1D, 4: L.Conv2D, 5: L.Conv3D}
    activation = pool.one_of(None, "relu")
    if len(x.shape) in kinds and pool.maybe():
        return kinds[len(x.shape)](width, 2, padding="same", activation=activation)(x)
    return L.Dense(width, activation=activation)(x)


def head(pool, x):
    """What reads the channels of an end, or shows them."""
    kind = pool.one_of(*["dense"] * 5, "flat", "flat", "bare")
    if kind == "bare" or not is_float(x) or x.shape[-1] is None:
        return x
    if kind == "flat" and len(x.shape) > 2 and None not in x.shape[1:]:
        x = L.Flatten()(x)
    return L.Dense(pool.number(1, 3))(x)


def random_model(draws, most=16):
    """A model of up to `most` moves from one to three inputs."""
    keras.utils.set_random_seed(0)
    pool = Pool(draws, [])
    batch = 2 if pool.maybe(8) else None
    inputs = [random_input(pool, batch) for _ in range(pool.one_of(1, 1, 2, 3))]
    for one in inputs:
        pool.tensors.append(one if pool.maybe(4) else first(pool, one))
    for _ in range(pool.number(2, most)):
        pool.step()
    ends = [end for end in pool.ends() if not any(end is tensor for tensor in inputs)][-4:]
    ends = ends or [first(pool, one) for one in inputs]
    outputs = [head(pool, end) for end in ends]
    inputs = read_by(inputs, outputs)
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs)


def read_by(inputs, outputs):
    """The inputs that some output depends on."""
    nodes = list(nodes_of(keras.Function(inputs, outputs)))
    return [one for one in inputs if any(tensor is one for node in nodes for tensor in node.input_tensors)]
