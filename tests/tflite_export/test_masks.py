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


def by_hand_behind(x, seen):
    """(mask - 1) * 1e9, and a view between the sum and the softmax."""
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    scores = scores + (ops.expand_dims(seen, 1) - 1) * 1e9
    weights = ops.softmax(ops.reshape(scores, (-1, 2, LENGTH // 2, LENGTH)))
    return ops.matmul(ops.reshape(weights, (-1, LENGTH, LENGTH)), L.Dense(WIDTH)(x))


def by_subtraction(x, seen):
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    return ops.matmul(ops.softmax(scores - (1 - ops.expand_dims(seen, 1)) * 1e9), L.Dense(WIDTH)(x))


def by_one_mask_for_two(x, seen):
    """As in later BERTs: made once, added in each layer, whose scores have other ranges."""
    far = (1 - ops.expand_dims(seen, 1)) * -1e9
    for scale in (9, 1):
        scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) * scale / 8
        x = x + ops.matmul(ops.softmax(scores + far), L.Dense(WIDTH)(x)) / 4
    return x


def by_two_masks(x, seen):
    """What is behind, and what is padding."""
    far = np.triu(np.full((LENGTH, LENGTH), -1e9, "float32"), 1)
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    scores = L.Add()([scores + far, (1 - ops.expand_dims(seen, 1)) * -1e9])
    return ops.matmul(ops.softmax(scores), L.Dense(WIDTH)(x))


def by_constant(x, seen):
    mask = np.triu(np.full((LENGTH, LENGTH), -1e9, "float32"), 1)
    scores = ops.matmul(L.Dense(WIDTH)(x), ops.transpose(L.Dense(WIDTH)(x), (0, 2, 1))) / 4
    return ops.matmul(ops.softmax(scores + mask), L.Dense(WIDTH)(x)) * ops.max(seen)


@pytest.mark.parametrize(
    "attention", [by_layer, by_hand, by_hand_behind, by_subtraction, by_one_mask_for_two, by_two_masks]
)
def test_a_mask_that_calibration_never_saw(attention):
    keras.utils.set_random_seed(0)
    x, seen = keras.Input((LENGTH, WIDTH), name="x"), keras.Input((LENGTH,), name="seen")
    model = keras.Model([x, seen], L.Dense(5)(attention(x, seen)))
    data = {"x": np.random.default_rng(0).normal(0, 0.5, size=(128, LENGTH, WIDTH)), "seen": np.ones((128, LENGTH))}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8_float_io", data)
    masked = {**data, "seen": np.tile((np.arange(LENGTH) < 4).astype("float32"), (128, 1))}
    assert tflite_export.verify(model, file, masked).snr_db > 15


KINDS = [
    by_two_masks,
    by_layer,
    by_layer_causal,
    by_hand,
    by_hand_behind,
    by_subtraction,
    by_one_mask_for_two,
    by_constant,
]


@pytest.mark.parametrize("attention", KINDS)
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


@pytest.mark.parametrize("more", [False, True], ids=["alone", "below a known one"])
def test_a_mask_of_an_unknown_kind_is_told(more):
    keras.utils.set_random_seed(0)
    x, seen = keras.Input((LENGTH, WIDTH), name="x"), keras.Input((LENGTH, LENGTH), name="bias")
    scores = L.Dot(2)([L.Dense(WIDTH)(x), L.Dense(WIDTH)(x)])
    scores = L.Add(name="made" if more else "masked")([scores, seen])  # the app makes the mask
    if more:
        scores = L.Add(name="masked")([scores, np.triu(np.full((1, LENGTH, LENGTH), -1e9, "float32"), 1)])
    weights = L.Softmax()(scores)
    model = keras.Model([x, seen], L.Dot((2, 1))([weights, L.Dense(WIDTH)(x)]))
    random = np.random.default_rng(0)
    data = {"x": random.normal(size=(128, LENGTH, WIDTH)), "bias": -1e9 * (random.random((128, LENGTH, LENGTH)) < 0.3)}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8", data)
    assert any("scores masked in masked reach" in note for note in file.notes)


def test_the_largest_score_is_masked_beside_the_smallest():
    scores, seen = keras.Input((LENGTH,), name="scores"), keras.Input((LENGTH,), name="seen")
    model = keras.Model([scores, seen], L.Softmax()(scores + (1 - seen) * -1e9))
    random = np.random.default_rng(0)
    data = {"scores": random.uniform(0, 30, size=(256, LENGTH)), "seen": random.random((256, LENGTH)) < 0.6}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8", data)
    one = {"scores": np.float32([[30] * 9 + [0]]), "seen": np.float32([[0] * 9 + [1]])}
    np.testing.assert_allclose(file.predict(one), [[0] * 9 + [1]], atol=0.01)


def test_a_product_that_is_no_mask():
    scores, small = keras.Input((LENGTH,), name="scores"), keras.Input((LENGTH,), name="small")
    model = keras.Model([scores, small], L.Softmax()(scores + small * 2e4))
    random = np.random.default_rng(0)
    data = {"scores": random.uniform(size=(256, LENGTH)), "small": random.uniform(0, 2e-4, size=(256, LENGTH))}
    data = {name: values.astype("float32") for name, values in data.items()}
    assert tflite_export.verify(model, tflite_export.convert(model, "int8", data), data).snr_db > 20


@pytest.mark.parametrize("use", ["mask", "scores"])
def test_what_others_read_keeps_its_numbers(use):
    scores, seen = keras.Input((LENGTH,), name="scores"), keras.Input((LENGTH,), name="seen")
    far = (1 - seen) * -5e4
    masked = L.Add(name="put_on")([scores, far])
    depth = ops.abs(far if use == "mask" else masked) * 2e-5
    other = L.Dense(1, kernel_initializer="ones", name="other")(depth)
    model = keras.Model([scores, seen], [L.Softmax()(masked), other])
    random = np.random.default_rng(0)
    data = {"scores": random.normal(size=(256, LENGTH)), "seen": random.random((256, LENGTH)) < 0.6}
    data = {name: values.astype("float32") for name, values in data.items()}
    file = tflite_export.convert(model, "int8_float_io", data)
    assert any("scores masked in put_on reach" in note for note in file.notes)
    hidden = (1 - data["seen"]).sum(1, keepdims=True)
    np.testing.assert_allclose(file.predict(data)["other"], hidden, atol=0.1)
