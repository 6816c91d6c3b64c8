"""Parameters, non-zeros, bytes and multiply-accumulates against numbers worked out by hand and published ones."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core import macs as macs_module
from kdopt.core import measure
from kdopt.core.macs import UnknownMacs, call_macs, macs_rule


def on(layer, *shape, **call):
    """A model of one layer on an input of `shape` (without the batch)."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs, **call))


# Each right side is written out: output positions * window * channels in (per group) * channels out.
LAYERS = {
    "dense": (layers.Dense(5, activation="hard_silu"), (7,), 7 * 5),
    "dense on a sequence": (layers.Dense(5), (3, 7), 3 * 7 * 5),
    "conv1d causal": (layers.Conv1D(4, 3, padding="causal"), (10, 2), 10 * 3 * 2 * 4),
    "conv1d dilated": (layers.Conv1D(4, 3, dilation_rate=2), (10, 2), 6 * 3 * 2 * 4),
    "conv2d same, stride 2": (layers.Conv2D(8, (3, 5), strides=2, padding="same"), (9, 6, 4), 5 * 3 * 15 * 4 * 8),
    "conv2d groups": (layers.Conv2D(8, 3, groups=2), (6, 6, 4), 4 * 4 * 9 * 2 * 8),
    "conv2d first": (layers.Conv2D(8, 3, data_format="channels_first", padding="same"), (3, 6, 7), 42 * 9 * 3 * 8),
    "conv3d": (layers.Conv3D(2, 3), (5, 6, 7, 3), 3 * 4 * 5 * 27 * 3 * 2),
    "depthwise1d": (layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 5), 6 * 3 * 5 * 2),
    "depthwise2d": (layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=3), (8, 6, 4), 12 * 9 * 12),
    "separable1d": (layers.SeparableConv1D(7, 3, depth_multiplier=2), (8, 5), 6 * (3 * 10 + 10 * 7)),
    "separable2d": (layers.SeparableConv2D(7, 3, strides=2, padding="same"), (8, 8, 4), 16 * (9 * 4 + 4 * 7)),
    "transposed1d": (layers.Conv1DTranspose(4, 3, strides=2), (5, 2), 5 * 3 * 2 * 4),
    "transposed2d": (layers.Conv2DTranspose(4, 3, strides=2, padding="same"), (5, 6, 2), 30 * 9 * 2 * 4),
    "transposed3d": (layers.Conv3DTranspose(2, 2, strides=2), (3, 3, 3, 4), 27 * 8 * 4 * 2),
    "einsum dense": (layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (4, 5), 4 * 5 * 2 * 3),
    "einsum dense ellipsis": (layers.EinsumDense("...x,xy->...y", 3), (4, 6, 5), 4 * 6 * 5 * 3),
    "embedding": (layers.Embedding(50, 8), (6,), 0),
    "lstm": (layers.LSTM(6), (5, 3), 5 * 4 * (3 * 6 + 6 * 6)),
    "gru": (layers.GRU(6, return_sequences=True), (5, 3), 5 * 3 * (3 * 6 + 6 * 6)),
    "gru, no reset_after": (layers.GRU(6, reset_after=False), (5, 3), 5 * 3 * (3 * 6 + 6 * 6)),
    "simple rnn": (layers.SimpleRNN(6), (5, 3), 5 * (3 * 6 + 6 * 6)),
    "stacked cells": (
        layers.RNN([layers.LSTMCell(6), layers.GRUCell(2)]),
        (5, 3),
        5 * (4 * (3 * 6 + 6 * 6) + 3 * (6 * 2 + 2 * 2)),
    ),
    "conv lstm": (layers.ConvLSTM2D(2, 3, padding="same"), (4, 5, 6, 3), 4 * 30 * 4 * (9 * 3 * 2 + 9 * 2 * 2)),
    "bidirectional": (layers.Bidirectional(layers.LSTM(6)), (5, 3), 2 * 5 * 4 * (3 * 6 + 6 * 6)),
    "time distributed": (layers.TimeDistributed(layers.Conv2D(2, 3)), (4, 5, 5, 3), 4 * 9 * 9 * 3 * 2),
    "spectral normalization": (layers.SpectralNormalization(layers.Dense(5)), (7,), 35),
    "normalization": (layers.BatchNormalization(scale=False), (7, 4), 0),
    "layer normalization": (layers.LayerNormalization(), (7, 4), 0),
    "augmentation": (layers.RandomFlip(), (8, 8, 3), 0),
    "backend activation": (layers.Activation("hard_silu"), (8,), 0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_macs(name):
    layer, shape, expected = LAYERS[name]
    assert measure.macs(on(layer, *shape)) == expected


@pytest.mark.parametrize("wide", [4, 2])
def test_multi_head_attention(wide):
    """T = 5 queries of width 8, S = 7 values, 2 heads of 3 (values `wide`): projections, Q K^T, weights V, output."""
    query, value = keras.Input((5, 8)), keras.Input((7, 8))
    for dropout in (0.0, 0.1):  # two implementations in Keras
        layer = layers.MultiHeadAttention(2, key_dim=3, value_dim=wide, dropout=dropout)
        model = keras.Model([query, value], layer(query, value))
        projections = 5 * 8 * 2 * 3 + 7 * 8 * 2 * 3 + 7 * 8 * 2 * wide
        assert measure.macs(model) == projections + 2 * 5 * 7 * 3 + 2 * 5 * 7 * wide + 5 * 2 * wide * 8


def test_grouped_query_attention():
    """4 query heads over 2 key / value heads of 3; keys are repeated, so scores cost as with 4."""
    model = on(_self_attention(layers.GroupQueryAttention(3, 4, 2)), 5, 8)
    assert measure.macs(model) == 5 * 8 * (4 + 2 + 2) * 3 + 2 * (4 * 5 * 5 * 3) + 5 * 4 * 3 * 8


def _self_attention(layer):
    return lambda x: layer(x, x)


def test_attention():
    query, value = keras.Input((5, 8)), keras.Input((7, 8))
    dot = keras.Model([query, value], layers.Attention()([query, value]))
    additive = keras.Model([query, value], layers.AdditiveAttention()([query, value]))
    assert measure.macs(dot) == 2 * 5 * 7 * 8
    assert measure.macs(additive) == 2 * 5 * 7 * 8


def test_operations_in_the_graph():
    a, b = keras.Input((4, 5)), keras.Input((5, 6))
    ops = keras.ops
    counts = {
        4 * 5 * 6: ops.matmul(a, b),
        4 * 6 * 5: ops.einsum("bij,bjk->bik", a, b),
        4 * 4 * 5: layers.Dot(axes=-1)([a, layers.UpSampling1D(1)(a)]),
        0: ops.einsum("bij->bji", a) + 1.0,
    }
    for expected, output in counts.items():
        assert measure.macs(keras.Model([a, b], [output, b])) == expected


def test_nested_and_shared_layers_count_every_call():
    inputs = keras.Input((8, 8, 3))
    backbone = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv")], name="backbone")
    shared = layers.Dense(5, name="shared")
    first, second = backbone(inputs), backbone(layers.ReLU()(inputs))
    model = keras.Model(inputs, layers.Add()([shared(first), shared(second)]))
    conv, dense = 36 * 9 * 3 * 4, 36 * 4 * 5
    assert measure.macs(model) == 2 * (conv + dense)
    records = {record.path: record for record in measure.by_layer(model)}
    assert records["backbone/conv"].macs == 2 * conv
    assert records["backbone/conv"].calls == 2
    assert records["shared"].parameters == 4 * 5 + 5
    assert set(records) == {"backbone/conv", "shared"}
    assert sum(record.parameters for record in records.values()) == measure.parameters(model)


class Block(layers.Layer):
    """A user's layer: two sublayers and a plain product."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4)
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.mix = self.add_weight(shape=(4, 4), name="mix")
        self.inner.build(shape)
        self.norm.build((*shape[:-1], 4))

    def call(self, x):
        return keras.ops.matmul(self.norm(self.inner(x)), self.mix)


class Net(keras.Model):
    def __init__(self):
        super().__init__(name="net")
        self.block = Block(name="block")
        self.head = layers.Dense(2, name="head")

    def call(self, x):
        return self.head(layers.Flatten()(self.block(x)))


def test_user_layers_and_subclassed_models_are_traced_and_left_alone():
    model = Net()
    model(np.zeros((1, 3, 5), "float32"))
    nodes = len(model.block.inner._inbound_nodes)
    block, head = 3 * 5 * 4 + 3 * 4 * 4, 12 * 2
    assert measure.macs(model, (3, 5)) == block + head
    assert [(record.path, record.macs) for record in measure.by_layer(model, (3, 5))] == [
        ("block", block),
        ("head", head),
    ]
    assert len(model.block.inner._inbound_nodes) == nodes
    with pytest.raises(ValueError, match="pass input_shape"):
        measure.macs(model)
    for wrong in ("3,5", (None, 3, 5), (0, 5), [(3, None)]):
        with pytest.raises(ValueError, match="must be the shape of one sample in whole numbers, without the batch"):
            measure.macs(model, wrong)


class Opaque(layers.Layer):
    """A kernel used in a way that only the backend understands."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 3), name="kernel")

    def call(self, x):
        import tensorflow as tf

        return tf.linalg.matmul(x, self.kernel)

    def compute_output_shape(self, shape):
        return (*shape[:-1], 3)


def test_unknown_layer_is_refused_by_name_until_a_rule_says_how():
    model = keras.Sequential([keras.Input((4,)), Opaque(name="mystery"), layers.Dense(2)])
    with pytest.raises(UnknownMacs, match=r"'mystery'.*macs_rule\(Opaque\)"):
        measure.macs(model)
    assert [record.macs for record in measure.by_layer(model)] == [None, 6]
    try:
        macs_rule(Opaque)(lambda layer, inputs, outputs: inputs.shape[-1] * outputs.shape[-1])
        assert measure.macs(model) == 4 * 3 + 6
    finally:
        del macs_module._RULES[Opaque]


def test_foreign_code_in_a_layer_of_keras_is_not_taken_for_free():
    import tensorflow as tf

    for layer in (layers.Lambda(lambda x: tf.matmul(x, x)), layers.Activation(lambda x: tf.matmul(x, x))):
        with pytest.raises(UnknownMacs, match="cannot be traced"):
            measure.macs(on(layer, 4, 4))


def test_a_rule_does_not_hold_for_a_subclass_with_another_call():
    class Twice(layers.Dense):
        def call(self, x):
            return super().call(x) + keras.ops.matmul(x, self.kernel)

    assert measure.macs(on(Twice(3), 4)) == 2 * 4 * 3


def test_open_dimensions_need_a_shape():
    model = on(layers.Conv2D(4, 3, padding="same"), None, None, 3)
    with pytest.raises(ValueError, match=r"Pass input_shape=.*\(32, 32, 3\)"):
        measure.macs(model)
    with pytest.raises(ValueError, match="is \\(None, None, 3\\); got \\(8, 8, 4\\)"):
        measure.macs(model, (8, 8, 4))
    assert measure.macs(model, (8, 6, 3)) == 48 * 9 * 3 * 4


def test_several_inputs_by_name_or_order():
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 5), name="b")
    model = keras.Model({"b": b, "a": a}, [layers.Dense(2)(a), layers.Dense(4)(b)])
    assert measure.macs(model, {"a": (7, 3), "b": (2, 5)}) == 7 * 3 * 2 + 2 * 5 * 4
    with pytest.raises(ValueError, match="must name the inputs"):
        measure.macs(model, {"a": (7, 3)})


@pytest.mark.parametrize(
    ("build", "published_millions"),
    [("MobileNet", 569), ("MobileNetV2", 300)],
)
def test_published_figures(build, published_millions):
    """Howard et al. 2017, table 8; Sandler et al. 2018, table 4; both with the 1000-class layer; within 0.3 %."""
    model = getattr(keras.applications, build)(weights=None, input_shape=(224, 224, 3))
    exact = {"MobileNet": 568_740_352, "MobileNetV2": 300_774_272}[build]
    assert measure.macs(model) == exact
    assert exact / 1e6 == pytest.approx(published_millions, rel=0.003)


def test_parameters_nonzero_and_bytes(tmp_path):
    inputs = keras.Input((4,))
    x = layers.Dense(3, name="dense")(inputs)
    model = keras.Model(inputs, layers.BatchNormalization()(x))
    kernel = np.arange(12, dtype="float32").reshape(4, 3)
    kernel[1:] = 0
    model.get_layer("dense").set_weights([kernel, np.zeros(3, "float32")])
    assert measure.parameters(model) == 12 + 3 + 4 * 3
    # Two of the kernel (its first is 0), gamma and moving variance.
    assert measure.nonzero(model) == 2 + 3 + 3
    assert measure.size_bytes(model) == 27 * 4
    (tmp_path / "file").write_bytes(b"12345")
    assert measure.size_bytes(tmp_path / "file") == measure.size_bytes(b"12345") == 5
    with pytest.raises(ValueError, match="no weights yet"):
        measure.parameters(keras.Sequential([layers.Dense(3)]))


def test_call_macs_of_one_layer():
    layer = layers.Dense(3)
    layer.build((1, 4))
    assert call_macs(layer, keras.KerasTensor((1, 4))) == 12


def test_a_layer_behind_attention_is_counted():
    x = keras.Input((7, 16))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.MultiHeadAttention(4, 2)(x, x)))
    projections, products = 4 * 7 * 16 * 8, 2 * 7 * 7 * 8
    assert measure.macs(model) == projections + products + 7 * 16 * 3
