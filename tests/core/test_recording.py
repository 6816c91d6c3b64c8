"""Inner tensors caught in one forward pass, against models cut at the layer."""

import threading

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.recording import is_recording, note, operations_of, recording


def nested():
    keras.utils.set_random_seed(0)
    inner = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="a"), layers.ReLU(name="b")], name="inner")
    inputs = keras.Input((5,))
    x = inner(inputs)
    shared = layers.Dense(4, name="shared")
    x = keras.ops.add(shared(x), shared(shared(x)))
    return keras.Model(inputs, layers.Dense(2, name="head")(x), name="outer")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(4, name="first"), layers.Dense(3, name="second")

    def call(self, x):
        return self.second(keras.ops.relu(self.first(x)))


def batch(seed=0):
    return np.random.default_rng(seed).normal(size=(3, 5)).astype("float32")


def test_paths_and_values_of_a_nested_model():
    model, x = nested(), batch()
    operations = operations_of(model)
    assert {"inner", "inner/a", "inner/b", "shared", "head"} <= set(operations)
    with recording(operations.values()) as seen:
        outputs = model(x)
    inner = model.get_layer("inner")
    a = keras.Model(inner.inputs, inner.get_layer("a").output)(x)
    np.testing.assert_array_equal(seen.of(operations["inner/a"])[0].output, a)
    np.testing.assert_array_equal(seen.of(operations["inner"])[0].output, inner(x))
    np.testing.assert_array_equal(seen.of(operations["head"])[0].output, outputs)
    kernel, bias = map(np.asarray, model.get_layer("shared").weights)
    once = np.asarray(inner(x)) @ kernel + bias
    for call, expected in zip(seen.of(operations["shared"]), [once, once, once @ kernel + bias], strict=True):
        np.testing.assert_allclose(call.output, expected, rtol=1e-5)


def test_a_subclassed_model_and_a_compiled_function():
    model, x = Subclassed(), batch()
    model(x)
    held = {}

    @tf.function
    def run(x):
        with recording([model.first]) as seen:
            y = model(x)
        held["calls"] = len(seen.calls)
        return y, seen.of(model.first)[0].output

    for _ in range(2):
        outputs, inner = run(x)
    kernel, bias = map(np.asarray, model.first.weights)
    np.testing.assert_allclose(inner, x @ kernel + bias, rtol=1e-5)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-5)
    assert held["calls"] == 1


def test_nothing_is_left_on_the_layers_even_after_an_error():
    model = nested()
    operations = operations_of(model)
    with pytest.raises(ValueError, match="incompatible"), recording(operations.values()), recording([model.layers[-1]]):
        model(np.zeros((3, 7), "float32"))
    assert not any("call" in vars(operation) for operation in operations.values())
    assert not is_recording()


def test_only_what_is_wanted_is_kept_and_recordings_nest():
    model, x = nested(), batch()
    operations = operations_of(model)
    with recording([operations["head"]]) as outer:
        with recording([operations["inner"]]) as inner:
            model(x)
        model(x)
    assert [call.operation.name for call in inner.calls] == ["inner"]
    assert [call.operation.name for call in outer.calls] == ["head", "head"]


def test_each_thread_records_its_own_calls_of_a_shared_layer():
    layer = layers.Dense(2)
    layer.build((None, 5))
    ready, found = threading.Barrier(2), {}

    def work(place):
        with recording([layer]) as seen:
            ready.wait()
            layer(batch(place))
            ready.wait()
        found[place] = seen.calls

    threads = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, calls in found.items():
        assert len(calls) == 1
        np.testing.assert_array_equal(calls[0].output, layer(batch(place)))
    assert "call" not in vars(layer)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["multi_head", "grouped"])
def test_attention_shows_what_it_compares(kind, causal):
    keras.utils.set_random_seed(0)
    if kind == "multi_head":
        layer = layers.MultiHeadAttention(2, 4)
    else:
        layer = layers.GroupQueryAttention(4, 4, 2)
    x = np.random.default_rng(0).normal(size=(2, 6, 8)).astype("float32")
    mask = np.ones((2, 6, 6), bool)
    mask[0, :, 4:] = False
    layer(x, x)
    with recording([layer]) as seen:
        layer(x, x, attention_mask=mask, use_causal_mask=causal)
    found = seen.calls[0].attention
    query = layer._query_dense(x)
    np.testing.assert_array_equal(found.query, query)
    assert found.query.shape == found.value.shape  # grouped keys are repeated by the layer
    expected = mask & np.tri(6, dtype=bool) if causal else mask
    np.testing.assert_array_equal(np.broadcast_to(found.mask, expected.shape), expected)
    assert not found.causal  # it is in the mask
    with recording([layer]) as seen:
        layer(x, x, use_causal_mask=True)
    assert seen.calls[0].attention.causal or np.array_equal(seen.calls[0].attention.mask[0], np.tri(6, dtype=bool))


def test_what_a_model_says_itself_takes_the_place_of_the_call():
    layer = layers.Dense(2)
    layer.build((None, 5))
    with recording([layer]) as seen:
        layer(batch())
        note(layer, "rounded")
        note(layer, "activated", again=True)
        note(layer, "second")
        note(layers.Dense(1), "of another layer")
    assert [call.output for call in seen.calls] == ["activated", "second"]


def test_what_runs_in_a_loop_over_time_is_left_out():
    inputs = keras.Input((4, 5))
    x = layers.LSTM(3, return_sequences=True, name="lstm")(inputs)
    x = layers.TimeDistributed(layers.Dense(2, name="inside"), name="each")(x)
    names = set(operations_of(keras.Model(inputs, x)))
    assert names == {"lstm", "each"}
