"""A shallower student: which blocks go, and that the rest computes what it did."""

import re

import keras
import numpy as np
import pytest
from keras import layers as L
from keras.src.applications import resnet

from kdopt.core.copying import copy_model
from kdopt.distillation import make_student


def disturbed(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name in ("moving_mean", "beta", "bias"):
            weight.assign(rng.normal(size=weight.shape) * 0.1)
        if weight.name in ("moving_variance", "gamma"):
            weight.assign(rng.uniform(0.5, 2, size=weight.shape))
    return model


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def with_empty_branches(model, norms):
    """The oracle: the last BatchNormalization of a branch gives zeros, so the sum is the shortcut."""
    oracle = copy_model(model)
    for name in norms:
        norm = oracle.get_layer(name)
        norm.gamma.assign(norm.gamma * 0)
        norm.beta.assign(norm.beta * 0)
    return oracle


@pytest.mark.slow
def test_mobilenet_v2_without_its_deepest_blocks():
    teacher = disturbed(keras.applications.MobileNetV2((32, 32, 3), weights=None, classes=7))
    # Blocks with a shortcut in stages of 2, 3, 4, 3, 3 (Sandler et al. 2018, table 2); 10 of 15 stay.
    student = make_student(teacher, 1, 10 / 15, initialize="teacher")
    gone = ["block_5", "block_8", "block_9", "block_12", "block_15"]
    left = {layer.name for layer in teacher.layers} - {layer.name for layer in student.layers}
    assert {name.rsplit("_", 1)[0] for name in left if name.endswith("add")} == set(gone)
    assert all(name.startswith(tuple(f"{block}_" for block in gone)) for name in left)
    x = images(4, 32, 32, 3)
    oracle = with_empty_branches(teacher, [f"{name}_project_BN" for name in gone])
    expected = oracle.predict(x, verbose=0)
    np.testing.assert_allclose(student.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-7)
    assert np.abs(teacher.predict(x, verbose=0) - expected).max() > 1e-4
    # A block of n channels has n * 6n, 9 * 6n, 6n * n weights, and 4 for each channel of three normalizations.
    block = {n: 2 * 6 * n * n + 9 * 6 * n + 4 * (6 * n + 6 * n + n) for n in (32, 64, 96, 160)}
    assert teacher.count_params() - student.count_params() == block[32] + 2 * block[64] + block[96] + block[160]


@pytest.mark.slow
def test_narrower_and_shallower():
    teacher = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=7)
    student = make_student(teacher, 0.5, 10 / 15)
    assert student.get_layer("block_13_expand").filters == 6 * 32 / 2
    assert student.get_layer("block_14_expand").filters == 6 * 56 / 2
    assert "block_15_expand" not in {layer.name for layer in student.layers}
    x = images(2, 32, 32, 3)
    assert np.isfinite(student(x)).all()
    np.testing.assert_array_equal(student(x), make_student(teacher, 0.5, 10 / 15)(x))


@pytest.mark.slow
def test_resnet50_is_the_resnet_of_fewer_blocks():
    """Half of 3 + 4 + 6 + 3 blocks, built by Keras itself and given the weights of the same names."""
    teacher = disturbed(keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=5))
    student = make_student(teacher, 1, 0.5, initialize="teacher")
    left = {layer.name[:12] for layer in student.layers if "_block" in layer.name}  # with the ReLUs behind the sums
    blocks = [sum(name.startswith(f"conv{stage}_") for name in left) for stage in (2, 3, 4, 5)]
    assert sum(blocks) == 8
    assert max(n - k for n, k in zip((3, 4, 6, 3), blocks, strict=True)) == 3  # 6 -> 3; in proportion

    def stack_fn(x):
        for stage, (width, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=2):
            x = resnet.stack_residual_blocks_v1(x, width, count, stride1=1 if stage == 2 else 2, name=f"conv{stage}")
        return x

    made = resnet.ResNet(stack_fn, False, True, weights=None, input_shape=(64, 64, 3), classes=5)
    for layer in (layer for layer in made.layers if layer.weights):
        layer.set_weights(teacher.get_layer(layer.name).get_weights())
    x = images(3, 64, 64, 3)
    np.testing.assert_allclose(student.predict(x, verbose=0), made.predict(x, verbose=0), rtol=1e-4, atol=1e-6)
    narrow = make_student(teacher, 0.5, 0.5)
    assert narrow.get_layer("conv5_block1_3_conv").filters == 1024
    assert 0.25 < narrow.count_params() / student.count_params() < 0.27


def transformer(blocks, post=False, width=16):
    x = keras.Input((6,), dtype="int32")
    h = L.Embedding(20, width, name="embed")(x)
    h = L.LayerNormalization(name="start")(h) if post else h
    for number in range(blocks):
        for kind in ("attend", "dense"):
            read = h if post else L.LayerNormalization(name=f"{kind}_norm{number}")(h)
            if kind == "attend":
                made = L.MultiHeadAttention(2, 8, name=f"attend{number}")(read, read)
            else:
                made = L.Dense(32, activation="gelu", name=f"wide{number}")(read)
                made = L.Dense(width, name=f"narrow{number}")(made)
            h = L.Add(name=f"{kind}_add{number}")([h, made])
            h = L.LayerNormalization(name=f"{kind}_norm{number}")(h) if post else h
    h = L.LayerNormalization(name="end")(h) if not post else h
    model = keras.Model(x, L.Dense(3, name="classes")(L.GlobalAveragePooling1D()(h)), name="transformer")
    rng = np.random.default_rng(blocks)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    return model


@pytest.mark.parametrize("post", [False, True])
def test_a_transformer_of_fewer_layers(post):
    """Vaswani et al. 2017; normalized before the branches or after the sums."""
    teacher = transformer(4, post)
    student = make_student(teacher, 1, 0.5, initialize="teacher")
    expected = transformer(2, post)
    for layer in (layer for layer in expected.layers if layer.weights):
        layer.set_weights(teacher.get_layer(layer.name).get_weights())
    tokens = np.random.default_rng(0).integers(0, 20, (5, 6))
    np.testing.assert_array_equal(student(tokens), expected(tokens))
    assert [layer.name for layer in student.layers if layer.weights] == [
        layer.name for layer in expected.layers if layer.weights
    ]


def test_a_transformer_narrower_and_shallower():
    teacher = transformer(4)
    student = make_student(teacher, 0.5, 0.5)
    assert [layer.name for layer in student.layers if layer.name.startswith("attend_add")] == [
        "attend_add0",
        "attend_add1",
    ]
    assert (student.get_layer("wide0").units, student.get_layer("narrow1").units) == (16, 8)
    tokens = np.random.default_rng(0).integers(0, 20, (5, 6))
    np.testing.assert_array_equal(student(tokens), make_student(teacher, 0.5, 0.5)(tokens))


def test_a_plain_net_without_some_of_its_layers():
    widths = (16, 16, 16, 16, 8, 8, 3)
    layers = [L.Dense(width, activation="tanh", name=f"d{i}") for i, width in enumerate(widths[:-1])]
    teacher = disturbed(keras.Sequential([keras.Input((5,)), *layers, L.Dense(3, name="classes")], name="plain"))
    # d0 leads d1, d2, d3, and d4 leads d5: six layers. Three of six go: d3, then d2, then d5 where more is left.
    student = make_student(teacher, 1, 0.5, initialize="teacher")
    assert isinstance(student, keras.Sequential)
    assert [layer.name for layer in student.layers] == ["d0", "d1", "d4", "classes"]
    h = x = images(4, 5)
    for name in ("d0", "d1", "d4", "classes"):
        kernel, bias = teacher.get_layer(name).get_weights()
        h = h @ kernel + bias
        h = h if name == "classes" else np.tanh(h)
    np.testing.assert_allclose(student(x), h, atol=1e-6)


@pytest.mark.slow
def test_dropped_blocks_of_a_nested_backbone():
    backbone = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, include_top=False, pooling="avg")
    x = keras.Input((32, 32, 3))
    teacher = disturbed(keras.Model(x, L.Dense(3, name="classes")(backbone(x)), name="outer"))
    student = make_student(teacher, 1, 14 / 15, initialize="teacher")
    inner = student.get_layer(backbone.name)
    kinds = [
        "expand",
        "expand_BN",
        "expand_relu",
        "depthwise",
        "depthwise_BN",
        "depthwise_relu",
        "project",
        "project_BN",
        "add",
    ]
    gone = {layer.name for layer in backbone.layers} - {layer.name for layer in inner.layers}
    assert gone == {f"block_9_{kind}" for kind in kinds}
    oracle = copy_model(teacher)
    norm = oracle.get_layer(backbone.name).get_layer("block_9_project_BN")
    norm.gamma.assign(norm.gamma * 0)
    norm.beta.assign(norm.beta * 0)
    values = images(3, 32, 32, 3)
    np.testing.assert_allclose(student(values), oracle(values), rtol=1e-5, atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.first, self.last = L.Dense(8, name="first"), L.Dense(3, name="last")
        self.blocks = [L.Dense(8, activation="tanh", name=f"block{i}") for i in range(4)]

    def call(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


def test_a_subclassed_model():
    teacher = Subclassed()
    x = images(3, 5)
    teacher(x)
    calls = [len(layer._inbound_nodes) for layer in teacher._flatten_layers()]
    student = make_student(teacher, 1, 0.5, initialize="teacher")
    h = teacher.first(x)
    for block in teacher.blocks[:2]:
        h = h + block(h)
    np.testing.assert_allclose(student(x), teacher.last(h), rtol=1e-5, atol=1e-6)
    assert [len(layer._inbound_nodes) for layer in teacher._flatten_layers()] == calls


def test_a_depth_that_keeps_all():
    teacher = transformer(2)
    tokens = np.random.default_rng(0).integers(0, 20, (5, 6))
    np.testing.assert_array_equal(make_student(teacher, 1, 0.8, initialize="teacher")(tokens), teacher(tokens))


def test_more_blocks_than_can_go():
    layers = [L.Dense(width) for width in (16, 16, 16, 16, 8, 8)]
    names = [layer.name for layer in layers]
    teacher = keras.Sequential([keras.Input((5,)), *layers, L.Dense(3)], name="plain")
    able = ", ".join(names[i] for i in (1, 2, 3, 5))
    message = f"depth=0.2 takes 5 of the 6 blocks of 'plain', but 4 can go ({able}): `depth` down to 0.3333."
    with pytest.raises(ValueError, match=re.escape(message)):
        make_student(teacher, 1, 0.2)
    assert len(make_student(teacher, 1, 1 / 3).layers) == 3
    with pytest.raises(ValueError, match="depth=0.5: 'small' has no block that repeats and could go. A block is"):
        make_student(keras.Sequential([keras.Input((5,)), L.Dense(16), L.Dense(3)], name="small"), 1, 0.5)
