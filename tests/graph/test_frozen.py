"""What no rule can cut stays, and the reason says why; it comes through a new model unchanged."""

import keras
import numpy as np
import pytest
from channel_oracle import disturbed
from keras import layers as L
from keras import ops

from kdopt.graph import channel_groups, trace_channels, without


def quantized(h):
    layer = L.Dense(4, name="n")
    y = layer(h)
    layer.quantize("int8")
    return y


def with_lora(h):
    layer = L.Dense(4, name="n")
    y = layer(h)
    layer.enable_lora(2)
    return y


def average_by(h):
    return ops.average(h, axis=1, weights=ops.abs(h) + 1)


BOUNDS = np.linspace(0.1, 1, 6).astype("float32")
CASES = {
    "quantized": (quantized, "'n' (Dense) is quantized or has LoRA weights"),
    "LoRA": (with_lora, "'n' (Dense) is quantized or has LoRA weights"),
    "bounds": (lambda h: ops.clip(h, -1.0, BOUNDS), "'clip' has bounds of its own for each channel"),
    "weights": (average_by, "'average' takes weights"),
    "image": (L.Resizing(3, 6, name="n"), "'n' takes the batch for an axis of an image"),
    "image op": (lambda h: ops.image.resize(h, (3, 6)), "'resize' takes the batch for an axis of an image"),
    "places": (L.GroupNormalization(4, axis=1, name="n"), "'n' normalizes over it"),
    "model": (L.TimeDistributed(keras.Sequential([L.Dense(3)], name="n")), "'n' (Sequential) has no channel rule"),
    "backward": (
        L.Bidirectional(L.LSTM(3), backward_layer=L.RNN(L.LSTMCell(3), go_backwards=True), name="n"),
        "'n' (Bidirectional) has no channel rule; give it one",
    ),
    "bool": (lambda h: h[:, True], "'get_item' picks places"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_it_stays_and_comes_through(case):
    make, reason = case
    x = keras.Input((4, 5))
    model = disturbed(keras.Model(x, make(L.Dense(6, name="a")(L.Dense(7, name="b")(x)))))
    groups = {group.made_by: group for group in channel_groups(model)}
    assert groups[("a",)].frozen.startswith(reason)
    assert not groups[("b",)].frozen
    small = without(model, trace_channels(model), np.array([0, 1]))
    assert small.get_layer("b").units == 5
    assert small.output_shape == model.output_shape


def test_an_unknown_activation_freezes_all_axes():
    x = keras.Input((4, 6))
    h = L.Permute((2, 1))(L.Dense(5, name="a")(x))
    model = keras.Model(x, L.Dense(2)(L.Dense(3, activation=lambda t: ops.softmax(t, axis=1), name="n")(h)))
    groups = {group.made_by: group.frozen for group in channel_groups(model)}
    assert groups[("a",)] == "the activation <lambda> of 'n' is not known to act on every channel alone"
    assert without(model, trace_channels(model), np.empty(0, int)).get_layer("n").activation.__name__ == "<lambda>"


def test_a_diagonal_of_an_equation_stays():
    x = keras.Input((4, 3))
    h = L.Dense(4, name="a")(x)
    model = keras.Model(x, L.Dense(2)(L.EinsumDense("abb,bc->ac", (3,), name="n")(h)))
    assert channel_groups(model)[0].frozen == "'n' takes a diagonal"


def test_labels_beside_an_open_size_stay():
    one, other = keras.Input((3,)), keras.Input((None, 4))
    h = L.Reshape((6, 4))(L.Dense(24, name="a")(one))
    h = L.Permute((2, 1))(L.Dense(6, name="b")(L.Permute((2, 1))(h)))
    model = keras.Model([one, other], L.Concatenate(axis=1, name="n")([h, other]))
    groups = {group.made_by: group.frozen for group in channel_groups(model)}
    assert groups[("b",)] == "'n' puts it beside something of an open size"
