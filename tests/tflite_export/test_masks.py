"""Masked attention on integers: scores keep their steps beside the mask."""

import keras
import numpy as np
import pytest
from keras import layers as L
from keras import ops

import tflite_export

LENGTH, WIDTH = 10, 16


def by_layer(x, seen, **options):
    return L.MultiHeadAttention(2, 8)(x, x, attention_mask=ops.expand_dims(seen > 0.5, 1), **options)


def by_layer_causal(x, seen):
    return by_layer(x, seen, use_causal_mask=True)


def by_hand(x, seen):
    """-1e9 added where nothing is to be seen, as in BERT's first code."""
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    return ops.matmul(ops.softmax(scores + (1 - ops.expand_dims(seen, 1)) * -1e9), L.Dense(WIDTH)(x))


def by_constant(x, seen):
    mask = np.triu(np.full((LENGTH, LENGTH), -1e9, "float32"), 1)
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    return ops.matmul(ops.softmax(scores + mask), L.Dense(WIDTH)(x)) * ops.max(seen)


def test_a_mask_that_calibration_never_saw():
    keras.utils.set_random_seed(0)
    x, seen = keras.Input((LENGTH, WIDTH), name="x"), keras.Input((LENGTH,), name="seen")
    model = keras.Model([x, seen], L.Dense(5)(by_layer(x, seen)))
    data = {"x": np.random.default_rng(0).normal(0, 0.5, size=(128, LENGTH, WIDTH)), "seen": np.ones((128, LENGTH))}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8_float_io", data)
    masked = {**data, "seen": np.tile((np.arange(LENGTH) < 4).astype("float32"), (128, 1))}
    assert tflite_export.verify(model, file, masked).snr_db > 15


@pytest.mark.parametrize("attention", [by_layer, by_layer_causal, by_hand, by_constant])
def test_attention_is_as_the_scores_say_and_blind_to_what_is_masked(attention):
    keras.utils.set_random_seed(0)
    x, seen = keras.Input((LENGTH, WIDTH), name="x"), keras.Input((LENGTH,), name="seen")
    model = keras.Model([x, seen], L.Dense(5)(attention(x, seen)))
    random = np.random.default_rng(0)
    ends = random.integers(3, LENGTH, 128)
    data = {"x": random.normal(0, 2, size=(128, LENGTH, WIDTH)), "seen": np.arange(LENGTH) < ends[:, None]}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8", data)
    assert tflite_export.verify(model, file, data).snr_db > 20
    other = np.where(data["seen"][..., None] > 0.5, data["x"], -data["x"])
    if attention is by_constant:  # the first position sees itself alone
        other = np.where(np.arange(LENGTH)[:, None] < 1, data["x"], -data["x"])
    places = np.arange(LENGTH) < (1 if attention is by_constant else ends[:, None])
    before, after = (file.predict({**data, "x": values}) for values in (data["x"], other.astype("float32")))
    before, after = (np.where(places[..., None], answers, 0) for answers in (before, after))
    np.testing.assert_allclose(before, after, atol=0.02 * np.ptp(before))
