"""Branches that vanish where it is not obvious what must stay: axes, names, masks, sums that spread."""

import keras
import numpy as np
import pytest
from channel_oracle import disturbed
from dead_oracle import lossless
from keras import layers as L

X = np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")


def names_of(model):
    return {layer.name for layer in model._flatten_layers()}


def silence(model, *names):
    for name in names:
        kernel = model.get_layer(name).kernel
        kernel.assign(kernel * 0)


STEPS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def test_channels_along_another_axis():
    i = keras.Input((5, 8))
    x = L.Dense(6)(i)
    h = L.Dense(6)(L.Dense(4, name="a", activation="relu")(x))
    y = L.Add()([L.Permute((2, 1))(x), L.Permute((2, 1))(h)])
    model = disturbed(keras.Model(i, L.Dense(2)(L.Flatten()(y))))
    silence(model, "a")
    lossless(model, STEPS, minimum=0)


def test_a_sum_that_spreads_what_is_left_keeps_its_branch():
    i = keras.Input((5, 8))
    x, h = L.Reshape((1, 6))(L.Dense(6)(L.GlobalAveragePooling1D()(i))), L.Dense(6)(L.Dense(4, name="a")(i))
    model = disturbed(keras.Model(i, L.Dense(2)(L.Flatten()(L.Add()([x, h])))))
    silence(model, "a")
    assert lossless(model, STEPS, minimum=0)[0].get_layer("a").units == 1


def test_of_two_dead_summands_one_stays():
    i = keras.Input((5, 8))
    y = L.Add()([L.Dense(6)(L.Dense(4, name=name)(i)) for name in "ab"])
    model = disturbed(keras.Model(i, L.Dense(2)(L.Flatten()(y))))
    silence(model, "a", "b")
    lossless(model, STEPS, minimum=0)


def test_constants_are_folded_inside_a_branch_that_vanishes():
    i = keras.Input((5, 8))
    x = L.Dense(6)(i)
    model = keras.Model(i, L.Dense(2)(L.Add()([x, L.Dense(6)(L.Dense(4, name="a", activation="relu")(x))])))
    disturbed(model)
    silence(model, "a")
    model.get_layer("a").bias.assign(np.ones(4))
    small, _ = lossless(model, STEPS, minimum=0)
    assert "a" not in names_of(small)


def test_a_fold_that_a_border_would_meet_keeps_the_branch():
    x = inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(8, 3, padding="same")(x)
    h = L.Conv2D(8, 1, name="b")(L.Conv2D(6, 1, activation="relu", name="a")(x))
    h = L.DepthwiseConv2D(3, padding="same", use_bias=False)(h)
    model = disturbed(keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(L.Add()([x, h])))))
    silence(model, "a")
    model.get_layer("a").bias.assign(np.ones(6))
    model.get_layer("b").bias.assign(np.zeros(8))
    lossless(model, X, minimum=0)


def test_outputs_of_a_nested_model_that_nobody_reads_any_more_are_counted():
    a = keras.Input((8,))
    inner = keras.Model(a, [L.Dense(6)(a), L.Dense(6)(L.Dense(4)(a))])
    i = keras.Input((8,))
    u, v = inner(i)
    model = disturbed(keras.Model(i, L.Dense(2)(L.Add()([u, L.Dense(6)(L.Dense(3, name="a")(v))]))))
    silence(model, "a")
    lossless(model, STEPS[:, 0], minimum=0)


def test_a_shared_sum_and_names_that_are_taken():
    x = inputs = keras.Input((8, 8, 3))
    x, add = L.Conv2D(8, 3, padding="same")(x), L.Add()
    for n in range(3):
        x = add([x, L.Conv2D(8, 1)(L.Conv2D(6, 1, name=f"b{n}")(x))])
    model = disturbed(keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x))))
    silence(model, "b0", "b1")
    small, _ = lossless(model, X, minimum=0)
    assert "b2" in names_of(small)
    assert not {"b0", "b1"} & names_of(small)


def test_a_mask_that_the_sum_dropped_does_not_come_back():
    i = keras.Input((9,), dtype="int32")
    x = L.Embedding(6, 8, mask_zero=True)(i)
    h = L.Conv1D(8, 1)(L.Conv1D(6, 1, activation="relu", name="a")(x))
    model = disturbed(keras.Model(i, L.Dense(4)(L.GlobalAveragePooling1D()(L.Add()([x, h])))))
    silence(model, "a")
    lossless(model, np.array([[1, 2, 0, 0, 3, 4, 0, 5, 0]], "int32"), minimum=0)


def test_an_output_keeps_its_name():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    h = L.Conv2D(4, 1, use_bias=False)(L.Conv2D(6, 1, use_bias=False, name="a")(x))
    model = disturbed(keras.Model(inputs, L.Add(name="out")([x, h])))
    silence(model, "a")
    small, _ = lossless(model, X, minimum=0)
    assert small.output_names == model.output_names == ["out"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_model_called_twice_keeps_what_one_call_needs(order):
    """What it reads is a constant once: its branch adds a constant then, but not the other time."""
    keras.utils.set_random_seed(0)
    x, i = keras.Input((8,)), keras.Input((5,))
    nested = keras.Model(x, L.Add()([L.Dense(8)(x), L.Activation("tanh")(x)]))
    calls = [nested(L.Dense(8, name=name)(i)) for name in ("a", "b")[::order]]
    model = disturbed(keras.Model(i, L.Dense(3)(L.Concatenate()(calls))))
    silence(model, "a")
    lossless(model, STEPS[:, 0, :5], minimum=0)


def test_a_model_with_two_outputs_keeps_the_one_that_only_adds():
    x, i = keras.Input((8,)), keras.Input((5,))
    nested = keras.Model(x, [L.Dense(6, name="a")(x), L.Dense(6)(x)])
    one, other = nested(L.Dense(8)(i))
    model = disturbed(keras.Model(i, [L.Dense(3)(L.Add()([L.Dense(6)(i), one])), L.Dense(2)(other)]))
    silence(nested, "a")
    lossless(model, STEPS[:, 0, :5], minimum=0)


def test_a_model_keeps_an_input_that_only_adds():
    x, h, i = keras.Input((8,)), keras.Input((8,)), keras.Input((5,))
    nested = keras.Model([x, h], L.Dense(3)(L.ReLU()(L.Add()([x, h]))))
    model = disturbed(keras.Model(i, nested([L.Dense(8)(i), L.Dense(8, name="a")(i)])))
    silence(model, "a")
    lossless(model, STEPS[:, 0, :5], minimum=0)


def test_a_summand_of_one_call_of_a_nested_model_stays():
    """Inside it the sum could do without, but not the other time."""
    x, h, i = keras.Input((8,)), keras.Input((8,)), keras.Input((5,))
    nested = keras.Model([x, h], L.Dense(3)(L.ReLU()(L.Add()([x, h]))))
    empty = L.Dense(8)(L.Dense(4, name="a")(i))
    calls = [nested([L.Dense(8)(i), L.Dense(8)(i)]), nested([L.Dense(8)(i), empty])]
    model = disturbed(keras.Model(i, L.Dense(2)(L.Concatenate()(calls))))
    silence(model, "a")
    assert lossless(model, STEPS[:, 0, :5], minimum=0)[0].get_layer("a").units == 1
