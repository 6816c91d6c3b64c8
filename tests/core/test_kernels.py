import re

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels, select
from kdopt.criteria import CRITERIA


def views(model):
    kernels, skipped = find_kernels(model)
    return {view.name: (tuple(view.variable.shape), view.channel_axis) for view in kernels}, skipped


def sequential(shape, *stack):
    return keras.Sequential([keras.Input(shape), *stack])


@pytest.mark.parametrize(
    ("shape", "layer", "expected"),
    [
        ((5,), layers.Dense(3, name="a"), {"a": ((5, 3), -1)}),
        ((4, 5), layers.EinsumDense("abc,cd->abd", (None, 3), name="a"), {"a": ((5, 3), -1)}),
        ((8, 2), layers.Conv1D(3, 3, name="a"), {"a": ((3, 2, 3), -1)}),
        ((8, 8, 2), layers.Conv2D(3, 3, name="a"), {"a": ((3, 3, 2, 3), -1)}),
        ((4, 4, 4, 2), layers.Conv3D(3, 2, name="a"), {"a": ((2, 2, 2, 2, 3), -1)}),
        ((8, 2), layers.Conv1DTranspose(3, 3, name="a"), {"a": ((3, 3, 2), -2)}),
        ((8, 8, 2), layers.Conv2DTranspose(3, 3, name="a"), {"a": ((3, 3, 3, 2), -2)}),
        ((8, 8, 2), layers.DepthwiseConv2D(3, depth_multiplier=2, name="a"), {"a": ((3, 3, 2, 2), -2)}),
        (
            (8, 8, 2),
            layers.SeparableConv2D(5, 3, name="a"),
            {"a/depthwise_kernel": ((3, 3, 2, 1), -2), "a/pointwise_kernel": ((1, 1, 2, 5), -1)},
        ),
        ((), layers.Embedding(10, 4, name="a"), {"a": ((10, 4), -1)}),
        (
            (6, 3),
            layers.LSTM(4, name="a"),
            {"lstm_cell/kernel": ((3, 16), -1), "lstm_cell/recurrent_kernel": ((4, 16), -1)},
        ),
        ((6, 3), layers.TimeDistributed(layers.Dense(2, name="inner"), name="a"), {"inner": ((3, 2), -1)}),
        (
            (6, 3),
            layers.Bidirectional(layers.GRU(4, name="gru"), name="a"),
            {
                f"{direction}_gru/gru_cell/{kernel}": (shape, -1)
                for direction in ("forward", "backward")
                for kernel, shape in (("kernel", (3, 12)), ("recurrent_kernel", (4, 12)))
            },
        ),
    ],
)
def test_layer_kinds(shape, layer, expected):
    found, skipped = views(sequential(shape, layer))
    assert found == expected
    assert skipped == []


def test_normalization_and_activations_have_none():
    stack = [layers.BatchNormalization(), layers.LayerNormalization(), layers.PReLU(), layers.Dense(2, name="a")]
    found, skipped = views(sequential((3, 4), *stack))
    assert (list(found), skipped) == (["a"], [])


def test_attention_and_nested_names_are_as_short_as_unique():
    x = keras.Input((4, 6))
    inner = sequential((4, 6), layers.Dense(6, name="dense"), layers.Dense(6, name="only"))
    inner.name = "block"
    h = layers.MultiHeadAttention(2, 3, name="mha")(x, x)
    model = keras.Model(x, layers.Dense(6, name="dense")(inner(h)))
    found, _ = views(model)
    assert list(found) == ["query", "key", "value", "attention_output", "block/dense", "only", "dense"]


def test_shared_frozen_and_tied():
    shared, frozen = layers.Dense(4, name="shared"), layers.Dense(4, name="frozen", trainable=False)
    x = keras.Input((4,))
    found, skipped = views(keras.Model(x, frozen(shared(shared(x)))))
    assert list(found) == ["shared"]
    assert [(skip.name, skip.reason, skip.known) for skip in skipped] == [("frozen", "not trained by this fit", True)]


class Scale(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 2), name="table")

    def call(self, x):
        return x @ self.table


class PrunableScale(Scale):
    def get_prunable_weights(self):
        return [self.table]


class Subclassed(keras.Model):
    def __init__(self, layer):
        super().__init__()
        self.first, self.second = layers.Dense(3, name="first"), layer

    def call(self, x):
        return self.second(self.first(x))


def test_a_users_layer_is_named_or_joins():
    model = Subclassed(Scale(name="scale"))
    model(np.ones((1, 4), "float32"))
    found, skipped = views(model)
    assert list(found) == ["first"]
    assert [(skip.name, skip.known) for skip in skipped] == [("scale", False)]
    assert "Scale has no rule; give it a method get_prunable_weights()" in skipped[0].reason
    model = Subclassed(PrunableScale(name="scale"))
    model(np.ones((1, 4), "float32"))
    assert views(model)[0] == {"first": ((4, 3), -1), "scale/table": ((3, 2), -1)}


def test_get_prunable_weights_must_return_variables():
    class Wrong(Scale):
        def get_prunable_weights(self):
            return ["kernel"]

    with pytest.raises(TypeError, match="Wrong.get_prunable_weights.. must return keras.Variables"):
        find_kernels(sequential((4,), Wrong()))


def test_select():
    block = sequential((4,), layers.Dense(4, name="one"), layers.Dense(4, name="two"))
    block.name = "block"
    x = keras.Input((4,))
    last = layers.Dense(2, name="last")
    model = keras.Model(x, last(layers.BatchNormalization(name="norm")(block(x))))
    kernels, skipped = find_kernels(model)

    def names(chosen):
        return [view.name for view in select(kernels, chosen, skipped)]

    assert names(None) == ["one", "two", "last"]
    assert [view.index for view in select(kernels, ["last"], skipped)] == [2]
    assert names(["last", "one"]) == ["one", "last"]
    assert names([block]) == names(["block"]) == ["one", "two"]
    assert names([last]) == ["last"]
    assert names(lambda view: view.variable.shape[-1] == 4) == ["one", "two"]
    assert names([re.compile("block/.*o"), re.compile("^la")]) == ["one", "two", "last"]
    assert names([keras.Sequential]) == ["one", "two"]
    assert names([layers.Dense]) == ["one", "two", "last"]
    with pytest.raises(ValueError, match=r"re.compile\('lost'\) in `layers` selects none of the kernels block/one, "):
        names([re.compile("lost")])
    with pytest.raises(ValueError, match="Conv2D'> in `layers` selects none"):
        names([layers.Conv2D])
    with pytest.raises(ValueError, match="3 in `layers` selects none"):
        names([3])
    with pytest.raises(ValueError, match="`layers` must be a list"):
        names(layers.Dense)
    with pytest.raises(ValueError, match="no layer 'norm' with a prunable kernel. Prunable here: one, two, last."):
        names(["norm"])
    with pytest.raises(ValueError, match=r"`layers` must be a list, e.g. \['last'\]"):
        names("last")
    with pytest.raises(ValueError, match="`layers` selects none of the kernels one, two, last"):
        names(lambda view: False)


def test_axes_of_transposed_kernels():
    def only(layer, shape):
        return find_kernels(sequential(shape, layer))[0][0]

    for kind, shape in ((layers.Conv2DTranspose, (8, 8, 2)), (layers.Conv3DTranspose, (4, 4, 4, 2))):
        view = only(kind(3, 2), shape)
        assert (view.variable.shape[view.channel_axis], view.variable.shape[view.input_axes[0]]) == (3, 2)


def test_a_norm_that_is_not_alone_is_none():
    x = keras.Input((6,))
    norm, shared, twice = layers.BatchNormalization(), layers.BatchNormalization(), layers.Dense(3, name="twice")
    h = layers.Dense(3, name="also_output")(x)
    both = [shared(layers.Dense(3, name=name)(x)) for name in ("one", "two")]
    model = keras.Model(x, [layers.BatchNormalization()(h), h, *both, norm(twice(x)), twice(2 * x)])
    assert {view.name: view.norm for view in find_kernels(model)[0]} == dict.fromkeys(
        ["also_output", "one", "two", "twice"]
    )


@pytest.mark.skipif(not hasattr(layers, "ReversibleEmbedding"), reason="not in this Keras")
def test_a_reversible_embedding():
    for tied, names in ((True, ["a"]), (False, ["a/embeddings", "a/reverse_embeddings"])):
        x = keras.Input((4,), dtype="int32")
        layer = layers.ReversibleEmbedding(10, 5, tie_weights=tied, name="a")
        model = keras.Model(x, layer(layers.Dense(5, name="d")(layer(x)), reverse=True))
        found = [view for view in find_kernels(model)[0] if view.name != "d"]
        assert len(found) == len(names)
        assert all(view.layer is layer for view in found)
        with pytest.raises(ValueError, match="does not know how the kernel 'a"):
            CRITERIA.get("wanda").scores(model, found, np.ones((8, 4), "int32"))
