"""Which blocks of a net can go, and the net without them."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

from kdopt.core.copying import copy_model
from kdopt.graph.blocks import Block, Stage, find_stages, repetition, spread
from kdopt.graph.inline import trace
from kdopt.graph.shorten import without_blocks


def conv(h, width, size=3, strides=1, name=None):
    h = L.Conv2D(width, size, strides, padding="same", use_bias=False, name=name and f"{name}_conv")(h)
    return L.BatchNormalization(name=name and f"{name}_bn")(h)


def residual(h, width, strides=1, name=None, add=None):
    """He et al. 2016; a projection where the shape changes."""
    shortcut = h if strides == 1 and h.shape[-1] == width else conv(h, width, 1, strides)
    branch = conv(L.ReLU()(conv(h, width, 3, strides)), width, 3, name=name)
    made = add([shortcut, branch]) if add else L.Add(name=name)([shortcut, branch])
    return L.ReLU()(made)


def found(model):
    return [(stage.led, [block.name for block in stage.blocks]) for stage in find_stages(model)]


def random_inputs(model, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(3, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]


def disturbed(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            drawn = rng.normal(size=weight.shape)
            weight.assign(np.abs(drawn) + 0.2 if "variance" in weight.name else drawn)
    return model


def test_a_stage_begins_with_a_projection_or_keeps_its_first_block():
    x = keras.Input((8, 8, 3))
    h = conv(x, 4)
    for width, strides, name in ((4, 1, "a1"), (4, 1, "a2"), (6, 2, "b1"), (6, 1, "b2"), (6, 1, "b3"), (9, 2, "c1")):
        h = residual(h, width, strides, name)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(h)))
    assert found(model) == [(False, ["a1", "a2"]), (True, ["b2", "b3"])]
    (first, second) = find_stages(model)
    assert [block.name for block in first.removable] == ["a2"]
    assert [block.name for block in second.removable] == ["b2", "b3"]
    assert (first.count, second.count) == (2, 3)


def test_a_linear_bottleneck_of_another_shape_leads_those_like_it():
    """Sandler et al. 2018: the first block of a resolution has no shortcut."""

    def bottleneck(h, width, strides, name):
        made = L.ReLU()(conv(h, 12, 1))
        made = L.DepthwiseConv2D(3, strides, padding="same", use_bias=False)(made)
        made = conv(L.ReLU()(L.BatchNormalization()(made)), width, 1)
        return L.Add(name=name)([h, made]) if strides == 1 and h.shape[-1] == width else made

    x = keras.Input((8, 8, 3))
    h = conv(x, 4)
    for number, (width, strides) in enumerate(((4, 1), (6, 2), (6, 1), (6, 1))):
        h = bottleneck(h, width, strides, f"block{number}")
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(h)))
    assert found(model) == [(True, ["block2", "block3"])]  # block0 is alone with its shape


@pytest.mark.parametrize("post", [False, True])
def test_attention_and_dense_layers_are_one_block(post):
    x = keras.Input((5,), dtype="int32")
    h = L.Embedding(9, 8)(x) + L.Embedding(5, 8)(ops.arange(5))
    h = L.LayerNormalization()(h) if post else h
    for number in range(3):
        for kind in ("attend", "dense"):
            read = h if post else L.LayerNormalization()(h)
            if kind == "attend":
                made = L.MultiHeadAttention(2, 4)(read, read)
            else:
                made = L.Dense(8)(L.Dense(16, activation="gelu")(read))
            h = L.Add(name=f"{kind}{number}")([h, made])
            h = L.LayerNormalization(name=f"norm_{kind}{number}")(h) if post else h
    h = h if post else L.LayerNormalization()(h)
    model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(h)))
    assert found(model) == [(False, ["attend0 + dense0", "attend1 + dense1", "attend2 + dense2"])]
    short = without_blocks(copy_model(model), [])
    assert len(short.layers) == len(model.layers)
    copied = copy_model(model)
    short = without_blocks(copied, [find_stages(copied)[0].blocks[1]])
    names = {layer.name for layer in short.layers}
    assert {"attend0", "dense2"} <= names
    assert not {"attend1", "dense1", "norm_attend1", "norm_dense1"} & names
    assert sum(isinstance(layer, L.LayerNormalization) for layer in short.layers) == 5


def test_what_cannot_go():
    x = keras.Input((8, 8, 4))
    one = residual(x, 4, name="first")
    inner = L.Conv2D(4, 3, padding="same", name="read_elsewhere")(one)
    two = L.Add(name="leaks")([one, L.Conv2D(4, 3, padding="same")(inner)])
    three = L.Add(name="weightless")([two, L.AveragePooling2D(3, 1, padding="same")(two)])
    four = L.Add(name="twice")([three, three])
    five = L.Add(name="fifth")([four, L.Conv2D(4, 3, padding="same")(four)])
    last = L.Add(name="output")([five, L.Conv2D(4, 3, padding="same")(five)])
    model = keras.Model(x, [last, L.GlobalAveragePooling2D()(inner)])
    assert found(model) == []  # "first" and "fifth" are alone, no other can go
    six = L.Add(name="sixth")([last, L.Conv2D(4, 3, padding="same")(last)])
    model = keras.Model(x, [six, L.GlobalAveragePooling2D()(inner)])
    assert found(model) == [(False, ["fifth", "output"])]


def test_the_inner_blocks_of_nested_ones():
    """Zhang et al. 2018 (RCAN): a long shortcut around blocks with short ones."""
    x = keras.Input((8, 8, 4))
    h = x
    for number in range(2):
        h = residual(h, 4, name=f"inner{number}")
    h = L.Add(name="outer")([x, conv(h, 4)])
    model = keras.Model(x, L.GlobalAveragePooling2D()(h))
    assert found(model) == [(False, ["inner0", "inner1"])]


def test_plain_nets():
    vgg = keras.Sequential([keras.Input((8, 8, 3))])
    for number, width in enumerate((4, 4, 6, 6, 6)):
        vgg.add(L.Conv2D(width, 3, padding="same", name=f"conv{number}"))
        vgg.add(L.BatchNormalization())
        vgg.add(L.ReLU())
        if number in (1, 3):
            vgg.add(L.MaxPooling2D())
    vgg.add(L.Flatten())
    vgg.add(L.Dense(2))
    assert found(vgg) == [(True, ["conv1"]), (True, ["conv3"])]  # conv4 is alone behind the pooling

    x = keras.Input((8, 8, 3))
    h = conv(x, 4, name="stem")
    for number, (width, strides) in enumerate(((6, 2), (6, 1), (6, 1))):
        h = L.DepthwiseConv2D(3, strides, padding="same", name=f"dw{number}")(h)
        h = L.Conv2D(width, 1, activation="relu", name=f"pw{number}")(L.ReLU()(h))
    mobile = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(h)))
    assert found(mobile) == [(True, ["dw1 + pw1", "dw2 + pw2"])]


def test_a_dropout_goes_with_a_layer_if_those_before_it_have_one():
    layers = [L.Dense(4, activation="relu", name=f"d{i}") for i in range(4)]
    last = keras.Sequential([keras.Input((3,)), *layers, L.Dropout(0.5, name="drop"), L.Dense(2)])
    assert found(last) == [(True, ["d1", "d2", "d3"])]
    (stage,) = find_stages(last)
    assert [layer.name for layer in without_blocks(last, [stage.blocks[2]]).layers[:4]] == ["d0", "d1", "d2", "drop"]
    model = keras.Sequential([keras.Input((3,))])
    for i in range(4):
        model.add(L.Dense(4, name=f"e{i}"))
        model.add(L.Dropout(0.5, name=f"drop{i}"))
    model.add(L.Dense(2, name="last"))
    (stage,) = find_stages(model)
    short = without_blocks(model, [stage.blocks[2]])
    assert [layer.name for layer in short.layers[4:]] == ["e2", "drop2", "last"]


def test_of_open_sizes_only_layers_without_strides_keep_the_shape():
    x = keras.Input((None, None, 3))
    h = L.Conv2D(4, 3, padding="same", name="a")(x)
    h = L.Conv2D(4, 3, padding="same", name="b")(h)
    h = L.Conv2D(4, 3, 2, padding="same", name="strides")(h)
    h = L.Conv2D(4, 3, name="valid")(h)
    h = L.Conv2D(4, 3, padding="same", name="c")(L.MaxPooling2D()(h))
    h = L.Conv2D(4, 3, padding="same", name="d")(L.UpSampling2D()(h))
    model = keras.Model(x, L.GlobalAveragePooling2D()(h))
    assert found(model) == [(True, ["b"])]


def test_a_masked_tensor_does_not_take_the_place_of_one_without_a_mask():
    x = keras.Input((5,), dtype="int32")
    masked = L.Embedding(9, 4, mask_zero=True)(x)
    for add in (L.Add(), lambda pair: ops.add(*pair)):
        h = masked
        for _ in range(3):
            h = add([h, L.Dense(4)(h)]) if not isinstance(add, L.Add) else L.Add()([h, L.Dense(4)(h)])
        model = keras.Model(x, L.Dense(2)(L.GlobalAveragePooling1D()(h)))
        (stage,) = find_stages(model)
        assert len(stage.blocks) == (3 if isinstance(add, L.Add) else 2)  # `ops.add` loses the mask


def nested_blocks():
    def block(name):
        y = keras.Input((8, 8, 4))
        return keras.Model(y, residual(y, 4, name="add"), name=name)

    x = keras.Input((8, 8, 3))
    body = keras.Sequential([keras.Input((8, 8, 4)), block("one"), block("two"), block("three")], name="body")
    return disturbed(keras.Model(x, L.Dense(2)(L.GlobalAveragePooling2D()(body(conv(x, 4))))))


def test_nested_models_are_seen_through_and_stay():
    model = nested_blocks()
    assert found(model) == [(False, ["body.one.add", "body.two.add", "body.three.add"])]
    copied = copy_model(model)
    short = without_blocks(copied, [find_stages(copied)[0].blocks[1]])
    body = short.get_layer("body")
    assert isinstance(body, keras.Sequential)
    assert [layer.name for layer in body.layers] == ["one", "three"]
    oracle = copy_model(model)
    for weight in oracle.get_layer("body").get_layer("two").get_layer("add_bn").weights[:2]:
        weight.assign(weight * 0)
    inputs = random_inputs(model)
    np.testing.assert_array_equal(short(inputs[0]), oracle(inputs[0]))
    assert np.abs(short(inputs[0]) - model(inputs[0])).max() > 0.1


def test_a_nested_model_of_which_nothing_is_left_goes():
    def block(name):
        return keras.Sequential([keras.Input((4,)), L.Dense(4, activation="relu")], name=name)

    x = keras.Input((4,))
    h = x
    for name in ("one", "two", "three"):
        h = block(name)(h)
    model = disturbed(keras.Model(x, L.Dense(2, name="last")(h)))
    assert [len(blocks) for _, blocks in found(model)] == [3]
    copied = copy_model(model)
    short = without_blocks(copied, [find_stages(copied)[0].blocks[1]])
    assert [layer.name for layer in short.layers[1:]] == ["one", "three", "last"]
    inputs = random_inputs(model)[0]
    expected = model.get_layer("last")(model.get_layer("three")(model.get_layer("one")(inputs)))
    np.testing.assert_array_equal(short(inputs), expected)


def test_a_nested_model_that_is_called_twice_stays():
    y = keras.Input((8, 8, 4))
    shared = keras.Model(y, residual(residual(y, 4, name="a"), 4, name="b"))
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, L.GlobalAveragePooling2D()(shared(shared(x))))
    assert found(model) == []


@pytest.mark.filterwarnings("ignore:Layer 'nested'")
def test_a_masked_nested_model_is_traced():
    y = keras.Input((5, 4))
    nested = keras.Model(y, L.LSTM(3)(y), name="nested")
    x = keras.Input((5,), dtype="int32")
    model = keras.Model(x, nested(L.Embedding(9, 4, mask_zero=True)(x)))
    assert trace(model).calls[-1].name == "nested.lstm"


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ("abab", (0, 2, 2)),
        ("pabab", (1, 2, 2)),
        ("ababz", (0, 2, 2)),
        ("aaaa", (0, 1, 4)),
        ("abc", (0, 3, 1)),
        ("a", (0, 1, 1)),
        ("abcabcabc", (0, 3, 3)),
        ("aabab", (1, 2, 2)),
    ],
)
def test_repetition(kinds, expected):
    assert repetition(kinds) == expected


def test_the_deepest_of_each_stage_go_in_proportion():
    def stage(name, count):
        return Stage(tuple(Block(f"{name}{i}", ()) for i in range(2, count + 1)), led=True)

    resnet50 = [stage("a", 3), stage("b", 4), stage("c", 6), stage("d", 3)]
    order = [block.name for block in spread(resnet50, 12)]
    # Shares that would be left, by hand: 2/3, 3/4, 5/6, 2/3 -> c; 4/6 -> b; then ties at 2/3, the deepest first.
    assert order == ["c6", "b4", "d3", "c5", "a3", "c4", "b3", "d2", "c3", "a2", "b2", "c2"]
    assert spread(resnet50, 0) == []
    assert [block.name for block in spread([Stage(stage("a", 3).blocks, led=False)], 1)] == ["a3"]
