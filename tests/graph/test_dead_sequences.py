"""Recurrent units, attention heads, embeddings and layers on each step that are constant go without loss."""

import itertools

import keras
import numpy as np
import pytest
from channel_oracle import disturbed
from dead_oracle import lossless, zero
from keras import layers as L


def test_a_unit_that_hears_only_other_units_is_alive():
    """A recurrent column that is not zero: the unit's kernel and bias say nothing."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    model = keras.Model(inputs, L.Dense(2)(L.SimpleRNN(5, name="rnn")(inputs)))
    cell = model.get_layer("rnn").cell
    cell.kernel.assign(cell.kernel * np.array([0, 0, 1, 1, 1]))
    recurrent = cell.recurrent_kernel.numpy()
    recurrent[:, 0] = 0
    cell.recurrent_kernel.assign(recurrent)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    small, plan = lossless(model, x)
    assert plan.removed == ((0, 1, (0,)),)
    assert small.get_layer("rnn").units == 4


def test_heads_whose_readers_cannot_take_a_constant_stay():
    inputs = keras.Input((7, 6))
    model = disturbed(keras.Model(inputs, L.Dense(2)(L.MultiHeadAttention(3, 2, name="heads")(inputs, inputs))))
    heads = model.get_layer("heads")
    for part in (heads._query_dense, heads._key_dense, heads._value_dense):
        part.kernel.assign(part.kernel * np.array([0.0, 1, 1])[:, None])
    x = np.random.default_rng(0).normal(size=(3, 7, 6)).astype("float32")
    assert lossless(model, x)[1].dead == 0  # biases make queries, keys and values


def silent(layer, unit=0):
    """The candidate for the unit's new state becomes zero; the other gates stay as they are."""
    at = unit + 2 * layer.units if not isinstance(layer, L.SimpleRNN) else unit
    for variable in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias):
        value = variable.numpy()
        value[..., at] = 0
        variable.assign(value)


SILENT = list(itertools.product((False, True), (False, True), (L.SimpleRNN, L.LSTM, L.GRU)))
FAST = [(False, False, L.SimpleRNN), (True, True, L.LSTM), (False, True, L.GRU)]


@pytest.mark.parametrize(
    ("sequences", "both", "kind"), [pytest.param(*one, marks=[pytest.mark.slow] * (one not in FAST)) for one in SILENT]
)
def test_a_unit_without_a_new_state_is_dead(kind, both, sequences):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    rnn = kind(5, return_sequences=sequences, name="rnn")
    rnn = L.Bidirectional(rnn, name="rnn") if both else rnn
    model = disturbed(keras.Model(inputs, L.Dense(2)(rnn(inputs))))
    for layer in (rnn.forward_layer, rnn.backward_layer) if both else (rnn,):
        silent(layer)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    assert lossless(model, x)[1].dead == 1
    if both:
        cell = rnn.backward_layer.cell
        cell.bias.assign(cell.bias + 0.5)
        assert lossless(model, x)[1].dead == 0


def test_a_silent_unit_that_begins_with_a_state_is_alive():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4))
    first = L.LSTM(5, return_state=True, return_sequences=True, name="first")(inputs)
    second = L.LSTM(5, name="second")
    model = disturbed(keras.Model(inputs, L.Dense(2)(second(first[0], initial_state=first[1:]))))
    silent(second)
    x = np.random.default_rng(0).normal(size=(3, 7, 4)).astype("float32")
    assert lossless(model, x)[1].dead == 0


@pytest.mark.parametrize("kind", ["heads", "widths", "groups of heads"])
def test_heads_and_widths_without_values_are_dead(kind):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 6))
    layer = L.GroupQueryAttention(2, 6, 3) if kind == "groups of heads" else L.MultiHeadAttention(3, 2)
    model = disturbed(keras.Model(inputs, L.Dense(2)(layer(inputs, inputs))))
    value = layer._value_dense
    mask = np.array([1.0, 1])[None] if kind == "widths" else np.array([0.0, 1, 1])[:, None]
    mask = np.array([[0.0, 1]]) if kind == "widths" else mask
    value.kernel.assign(value.kernel * mask)
    value.bias.assign(value.bias * mask)
    x = np.random.default_rng(0).normal(size=(3, 7, 6)).astype("float32")
    small, plan = lossless(model, x)
    assert plan.dead == 1
    found = small.layers[1]
    assert found.value_dim == 1 if kind == "widths" else found._value_dense.kernel.shape[1] == 2


def test_embeddings_and_layers_on_each_step():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7,), dtype="int32")
    h = L.TimeDistributed(L.Dense(6, activation="tanh", name="maker"))(L.Embedding(9, 5, name="words")(inputs))
    model = disturbed(keras.Model(inputs, L.TimeDistributed(L.Dense(2))(h)))
    words = model.get_layer("words").embeddings
    words.assign(words * np.array([0.0, 1, 1, 0, 1]))
    zero(next(layer for layer in model._flatten_layers() if layer.name == "maker"), 3)
    small, plan = lossless(model, np.array([[1, 2, 3, 4, 5, 6, 7], [8, 8, 0, 0, 1, 2, 3]], "int32"))
    assert plan.dead == 2 + 3
    assert small.get_layer("words").output_dim == 3


def test_a_recurrent_activation_that_is_not_zero_at_zero():
    i = keras.Input((7, 4))
    model = disturbed(keras.Model(i, L.Dense(2)(L.SimpleRNN(5, activation="sigmoid", name="rnn")(i))))
    silent(model.get_layer("rnn"))
    assert lossless(model, np.random.default_rng(0).normal(size=(2, 7, 4)).astype("float32"))[1].dead == 0
