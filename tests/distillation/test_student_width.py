"""A narrower student: widths, weights, and what stays."""

import random
import re

import keras
import numpy as np
import pytest
from distillation_oracles import data, mlp
from keras import layers as L

from kdopt.distillation import Distiller, SoftTargets, make_student
from kdopt.distillation.narrowing import kept_channels


def conv(h, width, size=3, strides=1, name=None):
    h = L.Conv2D(width, size, strides, padding="same", use_bias=False, name=name)(h)
    return L.BatchNormalization()(h)


def resnet():
    x = keras.Input((8, 8, 3))
    h = L.ReLU()(conv(x, 16, name="stem"))
    h = L.ReLU()(L.Add()([h, conv(L.ReLU()(conv(h, 16, name="inner")), 16)]))
    branch = conv(L.ReLU()(conv(h, 32, 3, 2)), 32)
    h = L.ReLU()(L.Add()([conv(h, 32, 1, 2), branch]))
    return keras.Model(x, L.Dense(5, name="classes")(L.GlobalAveragePooling2D()(h)), name="resnet")


def resnet_parameters(one, two):
    """Weights of the net above by hand: kernels, four numbers a channel of each BatchNormalization, the classifier."""
    stem = 3 * 3 * 3 * one + 4 * one
    first = 2 * (3 * 3 * one * one + 4 * one)
    second = (3 * 3 * one * two + 4 * two) + (3 * 3 * two * two + 4 * two) + (one * two + 4 * two)
    return stem + first + second + two * 5 + 5


def mobilenet():
    x = keras.Input((8, 8, 3))
    h = L.ReLU()(conv(x, 16))
    made = L.ReLU()(conv(h, 48, 1))
    made = L.ReLU()(L.BatchNormalization()(L.DepthwiseConv2D(3, padding="same", use_bias=False)(made)))
    gate = L.Dense(12, activation="relu")(L.GlobalAveragePooling2D(keepdims=True)(made))
    made = L.Multiply()([made, L.Dense(48, activation="sigmoid")(gate)])
    h = L.Add()([h, conv(made, 16, 1)])
    return keras.Model(x, L.Dense(5)(L.GlobalAveragePooling2D()(h)), name="mobilenet")


def mobilenet_parameters(narrow, wide, gate):
    expand = (3 * 3 * 3 * narrow + 4 * narrow) + (narrow * wide + 4 * wide)
    depthwise = 3 * 3 * wide + 4 * wide
    squeeze = (wide * gate + gate) + (gate * wide + wide)
    return expand + depthwise + squeeze + (wide * narrow + 4 * narrow) + narrow * 5 + 5


def transformer(width=32, heads=4):
    x = keras.Input((6,), dtype="int32")
    h = L.Embedding(20, width)(x)
    n = L.LayerNormalization()(h)
    h = L.Add()([h, L.MultiHeadAttention(heads, 8, name="attend")(n, n)])
    h = L.Add()([h, L.Dense(width)(L.Dense(64, activation="gelu")(L.LayerNormalization()(h)))])
    h = L.GlobalAveragePooling1D()(L.LayerNormalization()(h))
    return keras.Model(x, L.Dense(3)(h), name="transformer")


def transformer_parameters(width, heads, hidden):
    inner = 8 * heads  # the size of a head stays
    attention = 3 * (width * inner + inner) + inner * width + width
    dense = width * hidden + hidden + hidden * width + width
    return 20 * width + attention + dense + 3 * 2 * width + width * 3 + 3


def test_parameters_by_hand():
    assert resnet().count_params() == resnet_parameters(16, 32)
    assert make_student(resnet()).count_params() == resnet_parameters(8, 16)
    assert make_student(resnet(), 0.75, round_to=1).count_params() == resnet_parameters(12, 24)
    assert make_student(resnet(), 0.7).count_params() == resnet_parameters(8, 24)  # 11.2 and 22.4
    assert mobilenet().count_params() == mobilenet_parameters(16, 48, 12)
    assert make_student(mobilenet()).count_params() == mobilenet_parameters(8, 24, 8)
    assert make_student(mobilenet(), 0.25, round_to=2).count_params() == mobilenet_parameters(4, 12, 4)
    assert transformer().count_params() == transformer_parameters(32, 4, 64)
    assert make_student(transformer()).count_params() == transformer_parameters(16, 2, 32)
    assert make_student(transformer(), 0.75).count_params() == transformer_parameters(24, 3, 48)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((64, 0.5, 8), 32),
        ((24, 0.5, 8), 16),  # 12 is between 8 and 16: upwards
        ((40, 0.5, 8), 24),
        ((22, 0.5, 8), 8),  # 11
        ((100, 0.33, 1), 33),
        ((16, 0.1, 8), 8),  # never less than the multiple
        ((6, 0.5, 8), 6),  # all, where there are fewer
        ((10, 0.9, 8), 8),
        ((14, 0.9, 8), 14),  # 16 would be more than there are
        ((20, 1, 8), 20),
        ((64, 0.3, 8, 2), 16),  # 19.2
        ((60, 0.5, 8, 6), 24),  # multiples of 24; 30
        ((3, 0.01, 1), 1),
    ],
)
def test_how_many_channels_stay(arguments, expected):
    assert kept_channels(*arguments) == expected


def test_the_teachers_weights_are_those_of_the_largest_kernels():
    teacher = keras.Sequential(
        [keras.Input((20,)), L.Dense(32, activation="tanh"), L.Dense(24, activation="relu"), L.Dense(3)], name="net"
    )
    rng = np.random.default_rng(0)
    for weight in teacher.weights:
        weight.assign(rng.normal(size=weight.shape))
    student = make_student(teacher, 0.5, round_to=4, initialize="teacher")
    (w1, b1), (w2, b2), (w3, b3) = (layer.get_weights() for layer in teacher.layers)
    one = np.sort(np.argsort(np.abs(w1).sum(axis=0))[-16:])
    two = np.sort(np.argsort(np.abs(w2).sum(axis=0))[-12:])  # of the whole kernel, not of what is left of it
    x = rng.normal(size=(7, 20))
    h = np.maximum(np.tanh(x @ w1[:, one] + b1[one]) @ w2[np.ix_(one, two)] + b2[two], 0)
    np.testing.assert_allclose(student(x.astype("float32")), h @ w3[two] + b3, atol=1e-5)
    assert isinstance(student, keras.Sequential)
    assert student.name == "net_student"
    assert [layer.name for layer in student.layers] == [layer.name for layer in teacher.layers]


def test_channels_that_layers_share_are_judged_by_all_kernels_that_make_them():
    teacher = resnet()
    stem, inner = teacher.get_layer("stem"), teacher.get_layer("inner")
    other = [layer for layer in teacher.layers if isinstance(layer, L.Conv2D)][2]
    for layer in (stem, inner, other):
        layer.set_weights([np.full(layer.kernel.shape, 0.01)])
    kernel = stem.kernel.numpy()
    kernel[..., 8:] = 1
    stem.set_weights([kernel])
    kernel = other.kernel.numpy()
    kernel[..., :4] = -1  # 144 weights of 1 are more than the 27 of the stem
    other.set_weights([kernel])
    student = make_student(teacher, initialize="teacher")
    np.testing.assert_array_equal(student.get_layer("stem").kernel[0, 0, 0], np.float32([0.01] * 4 + [1] * 4))


@pytest.mark.parametrize("make", [resnet, pytest.param(mobilenet, marks=pytest.mark.slow), transformer, lambda: mlp(0)])
def test_a_student_of_full_width_and_depth_is_the_teacher(make):
    teacher = make()
    rng = np.random.default_rng(1)
    for weight in teacher.weights:
        weight.assign(rng.uniform(0.1, 1, weight.shape))
    student = make_student(teacher, 1, 1, initialize="teacher")
    shape = (4, *teacher.inputs[0].shape[1:])
    x = rng.integers(0, 20, shape) if "int" in str(teacher.inputs[0].dtype) else rng.normal(size=shape)
    np.testing.assert_array_equal(student.predict(x, verbose=0), teacher.predict(x, verbose=0))
    assert not {id(weight) for weight in student.weights} & {id(weight) for weight in teacher.weights}


def test_random_weights_are_those_a_new_net_of_this_size_has():
    teacher = resnet()
    for weight in teacher.weights:
        weight.assign(np.full(weight.shape, 9.0))
    student = make_student(teacher, seed=3)
    names = [weight.name for weight in student.weights]
    assert {"gamma", "beta", "moving_mean", "moving_variance", "bias"} < set(names)
    for weight in student.weights:
        if weight.name in ("gamma", "moving_variance"):
            np.testing.assert_array_equal(weight, 1)
        elif weight.name != "kernel":
            np.testing.assert_array_equal(weight, 0)
    inner = student.get_layer("inner").kernel.numpy()
    limit = np.sqrt(6 / (9 * 8 + 9 * 8))  # Glorot & Bengio 2010, of 8 channels and not of 16
    assert 0.97 * limit < np.abs(inner).max() <= limit
    assert inner.std() == pytest.approx(limit / np.sqrt(3), rel=0.05)


def test_the_seed_decides_and_the_generators_stay_as_they_are():
    teacher = resnet()

    def drawn():
        return random.random(), np.random.rand(), keras.random.normal((2,)).numpy().tolist()

    keras.utils.set_random_seed(5)
    expected = [drawn() for _ in range(2)]
    keras.utils.set_random_seed(5)
    first = drawn()
    students = [make_student(teacher, 0.5, seed=seed) for seed in (1, 1, 2)]
    assert [first, drawn()] == expected
    weights = [np.concatenate([weight.ravel() for weight in student.get_weights()]) for student in students]
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.mean(weights[0] != weights[2]) > 0.8
    kernels = [layer.kernel.numpy() for layer in students[0].layers if isinstance(layer, L.Conv2D)]
    same = [kernel for kernel in kernels if kernel.shape == (3, 3, 8, 8)]
    assert len(same) == 2
    assert not np.array_equal(*same)


def test_what_adapt_learned_stays():
    norm = L.Normalization(name="norm")
    norm.adapt(np.random.default_rng(0).normal(3, 2, size=(100, 4)))
    teacher = keras.Sequential([keras.Input((4,)), norm, L.Dense(16), L.Dense(2)])
    student = make_student(teacher)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(student.get_layer("norm")(x), norm(x))


def test_the_teacher_is_left_alone_and_the_student_trains():
    teacher = resnet()
    teacher.compile("adam", "mse")
    teacher.get_layer("inner").trainable = False
    before = teacher.get_weights()
    calls = [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in teacher.layers]
    student = make_student(teacher)
    assert [(len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in teacher.layers] == calls
    assert not teacher.get_layer("inner").trainable
    assert student.get_layer("inner").trainable
    assert not student.compiled
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    teacher.trainable = False
    assert len(make_student(teacher).trainable_weights) == 20
    start = student.get_weights()
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[SoftTargets()])
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype("float32")
    distiller.fit(x, np.arange(8) % 5, verbose=0)
    moved = [np.abs(one - other).max() > 0 for one, other in zip(start, student.get_weights(), strict=True)]
    assert all(moved)


def test_a_student_is_saved_and_loaded(tmp_path):
    student = make_student(mobilenet(), name="small")
    assert student.name == "small"
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(x), student(x))
    again = make_student(student, 0.5, round_to=1)
    assert again.name == "small_student"
    assert again.count_params() < student.count_params()


def widths(model):
    return {layer.name: layer.filters for layer in model.layers if isinstance(layer, L.Conv2D)}


def test_a_width_for_each_layer():
    teacher = resnet()
    assert widths(make_student(teacher, {"inner": 0.5}))["inner"] == 8
    assert widths(make_student(teacher, {"inner": 0.5}))["stem"] == 16
    shares = {"inner": 0.25, "stem": 0.5}
    found = widths(make_student(teacher, lambda path: shares.get(path, 0.75), round_to=1))
    assert found["inner"] == 4
    assert found["stem"] == 12  # of what is added, the largest share counts
    x = keras.Input((8, 8, 3))
    outer = keras.Model(x, L.Dense(2)(resnet()(x)))
    student = make_student(outer, {"resnet": 0.5, "resnet/inner": 1.0})
    assert widths(student.get_layer("resnet"))["inner"] == 16
    assert widths(student.get_layer("resnet"))["stem"] == 8


def test_excluded_layers_keep_their_channels():
    teacher = resnet()
    for exclude in (["inner"], [teacher.get_layer("inner")], [re.compile("^inn")]):
        found = widths(make_student(teacher, exclude=exclude))
        assert (found.pop("inner"), found.pop("stem")) == (16, 8)
    with pytest.raises(ValueError, match=r"width=0.5 takes no channel.*`exclude` names 'stem'"):
        make_student(teacher, exclude=[L.Conv2D])


def test_one_head_loses_size_and_groups_stay_whole():
    x = keras.Input((6, 16))
    h = L.MultiHeadAttention(1, 32, name="attend")(x, x)
    h = L.GroupNormalization(groups=8, name="groups")(L.Dense(32, name="wide")(h))
    teacher = keras.Model(x, L.Dense(3)(L.GlobalAveragePooling1D()(h)))
    student = make_student(teacher, 0.5)
    config = student.get_layer("attend").get_config()
    assert (config["num_heads"], config["key_dim"], config["value_dim"]) == (1, 16, 16)
    assert student.get_layer("wide").units == 16
    assert student.get_layer("groups").groups == 4  # as large as they were


def test_recurrent_layers():
    x = keras.Input((6, 5))
    h = L.Bidirectional(L.LSTM(16, return_sequences=True))(x)
    teacher = keras.Model(x, L.Dense(3)(L.GRU(24)(h)))
    student = make_student(teacher)
    lstm = 2 * 4 * (5 * 8 + 8 * 8 + 8)
    gru = 3 * (16 * 16 + 16 * 16 + 2 * 16)  # 24 * 0.5 = 12, upwards
    assert student.count_params() == lstm + gru + 16 * 3 + 3
    np.testing.assert_array_equal(
        make_student(teacher, 1, initialize="teacher")(np.ones((2, 6, 5))), teacher(np.ones((2, 6, 5)))
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.one, self.two, self.three = L.Dense(16), L.Dense(16), L.Dense(3)

    def call(self, x):
        h = keras.ops.relu(self.one(x))
        return self.three(h + self.two(h))


def test_a_subclassed_model_comes_out_as_a_functional_one():
    teacher = Subclassed()
    x = data()[0]
    expected = teacher(x)
    student = make_student(teacher, 1, initialize="teacher")
    np.testing.assert_array_equal(student(x), expected)
    assert make_student(teacher).count_params() == 6 * 8 + 8 + 8 * 8 + 8 + 8 * 3 + 3
