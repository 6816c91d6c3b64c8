"""Processing folded into a file, against the same steps by NumPy around the model."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers as L

import tflite_export
from tflite_export.sources.protocol import InputSpec
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import records

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3)).astype("uint8")
SCALE, OFFSET = np.array([1 / 58.4, 1 / 57.1, 1 / 57.4], "float32"), np.array([-2.1, -2.0, -1.8], "float32")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    image = keras.Input((12, 12, 3), name="image")
    x = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, name="conv")(image)))
    x = L.Add()([x, L.DepthwiseConv2D(3, padding="same")(x)])
    return keras.Model(image, L.Dense(7, name="logits", kernel_initializer="he_normal")(L.Flatten()(x)))


@pytest.fixture(scope="module")
def logits(model):
    return model.predict(PIXELS * SCALE + OFFSET, verbose=0)


def softmax(values):
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("precision", ["float32", "dynamic", "int8", "uint8", "int8_float_io"])
def test_bytes_in_ranks_out(model, logits, precision):
    source = tflite_export.fold_processing(
        model, rescale=(SCALE, OFFSET), uint8_input=True, output=["softmax", "top_k"], k=3
    )
    file = tflite_export.convert(source, precision, PIXELS)
    assert file.inputs[0].dtype == "uint8"
    assert [info.name for info in file.outputs] == ["logits_scores", "logits_classes"]
    found = file.predict(PIXELS)
    tolerance = 1e-5 if precision == "float32" else 0.05
    np.testing.assert_allclose(found["logits_scores"], -np.sort(-softmax(logits), axis=-1)[:, :3], atol=tolerance)
    assert np.mean(found["logits_classes"][:, 0] == logits.argmax(-1)) >= (1.0 if precision == "float32" else 0.9)
    assert tflite_export.verify(source, file, PIXELS).passed
    if precision in ("int8", "uint8", "int8_float_io"):
        assert file.inputs[0].scale == 1
        assert file.inputs[0].zero_point == 0
        assert records.precision_of(file.content) == precision
        assert [op.name for op in records.ops(file.content) if op.is_float] == []
        assert "CAST" not in {op.name for op in records.ops(file.content)}


def test_argmax_and_sigmoid(model, logits):
    source = tflite_export.fold_processing(model, rescale=(SCALE, OFFSET), output="argmax")
    file = tflite_export.convert(source, "float32")
    assert file.inputs[0].dtype == "float32"
    np.testing.assert_array_equal(file.predict(PIXELS.astype("float32")), logits.argmax(-1))
    assert file.outputs[0].dtype == "int32"
    plain = tflite_export.fold_processing(model, output="sigmoid")
    given = PIXELS * SCALE + OFFSET
    np.testing.assert_allclose(
        tflite_export.convert(plain, "float32").predict(given), 1 / (1 + np.exp(-logits)), atol=1e-5
    )


def test_several_inputs_and_outputs_by_name():
    zeta, alpha = keras.Input((4,), name="zeta"), keras.Input((4,), name="alpha")
    x = L.Concatenate()([zeta, alpha])
    model = keras.Model([zeta, alpha], [L.Dense(3, name="yak")(x), L.Dense(2, name="bee")(x)])
    source = tflite_export.fold_processing(
        model, rescale={"alpha": (0.5, 1.0)}, uint8_input=True, output={"bee": "argmax"}
    )
    assert source.inputs == {"zeta": InputSpec((None, 4), "float32"), "alpha": InputSpec((None, 4), "uint8")}
    bytes_in = np.random.default_rng(0).integers(0, 9, (8, 4)).astype("uint8")
    floats = np.random.default_rng(1).normal(size=(8, 4)).astype("float32")
    found = tflite_export.convert(source, "float32").predict({"zeta": floats, "alpha": bytes_in})
    yak, bee = model.predict([floats, bytes_in * 0.5 + 1.0], verbose=0)
    np.testing.assert_allclose(found["yak"], yak, atol=1e-5)
    np.testing.assert_array_equal(found["bee"], bee.argmax(-1))


def test_more_ranks_than_classes(model, logits):
    every = tflite_export.fold_processing(model, output="top_k", k=logits.shape[1])
    found = tflite_export.convert(every, "float32").predict(PIXELS * SCALE + OFFSET)
    np.testing.assert_array_equal(found["logits_classes"], np.argsort(-logits, axis=-1))
    source = tflite_export.fold_processing(model, output="top_k", k=99)
    with pytest.raises(tflite_export.ConversionError, match=r"`k` must be at most \d+, the classes of '\w+'; got 99"):
        tflite_export.convert(source, "float32")


def test_a_wrong_class_is_found(model):
    source = tflite_export.fold_processing(model, output="argmax")
    other = keras.models.clone_model(model)
    file = tflite_export.convert(tflite_export.fold_processing(other, output="argmax"), "float32")
    result = tflite_export.verify(source, file, PIXELS.astype("float32"))
    assert not result.passed
    assert result.outputs[0].differing > 0.1
    assert "of the integers differ, > 0.00%" in result.why


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Nothing to fold in: pass `rescale`, `uint8_input` or `output`"),
        ({"rescale": 1 / 255}, r"must be \(scale, offset\).*got 0.0039"),
        ({"rescale": (0, 1)}, "the scale not 0"),
        ({"rescale": ([1, 2], 0)}, r"one float for each of 3 channels"),
        ({"rescale": {"picture": (1, 0)}}, r"names \['picture'\].*inputs \['image'\]"),
        ({"output": "soft"}, "a step is one of 'softmax', 'sigmoid', 'argmax', 'top_k'; got 'soft'"),
        ({"output": ["argmax", "softmax"]}, "'argmax' and 'top_k' come last"),
        ({"output": {"head": "argmax"}}, r"names \['head'\].*outputs \['logits'\]"),
        ({"output": "top_k", "k": 0}, "`k` must be an integer >= 1; got 0"),
    ],
)
def test_bad_arguments(model, options, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.fold_processing(model, **options)


def test_what_cannot_be():
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    model = keras.Model(tokens, L.Embedding(9, 4)(tokens))
    with pytest.raises(ValueError, match="input 'tokens' takes int32; only floats are"):
        tflite_export.fold_processing(model, rescale=(1, 0))


def test_16_bits_take_no_bytes(model):
    source = tflite_export.fold_processing(model, uint8_input=True)
    with pytest.raises(ValueError, match="input 'image' takes uint8, which files of 16-bit activations do not"):
        tflite_export.convert(source, "int16x8", PIXELS)


def test_ranks_are_told_as_ranks(model, logits):
    source = tflite_export.fold_processing(model, output="top_k", k=3)
    given = PIXELS * SCALE + OFFSET
    file = tflite_export.convert(source, "int8", given)
    result = tflite_export.verify(source, file, given)
    classes = next(check for check in result.outputs if check.name == "logits_classes")
    first = file.predict(given)["logits_classes"][:, 0]
    assert classes.differing == pytest.approx(np.mean(first != logits.argmax(-1)))
    assert classes.ranks == 3
    assert result.top1_agreement is None  # of scores by rank the first is the largest in any file
    assert "of the first classes (of 3) differ" in str(result)
    assert "snr" in str(result)
    alone = tflite_export.fold_processing(model, output="argmax")
    only = tflite_export.verify(alone, tflite_export.convert(alone, "float32"), given)
    assert "snr" not in str(only)


def test_a_step_that_is_nearly_right(model):
    with pytest.raises(ValueError, match="got 'topk'. Did you mean 'top_k'?"):
        tflite_export.fold_processing(model, output="topk")


@pytest.mark.parametrize("bytes_in", [False, True])
def test_what_a_source_brings_along_is_folded_too(model, bytes_in):
    inner = replace(
        resolve(model),
        calibration={"image": PIXELS * SCALE + OFFSET},
        reference=lambda image: model(image, training=False) + 1,
    )
    source = tflite_export.fold_processing(inner, rescale=(SCALE, OFFSET), uint8_input=bytes_in)
    assert source.calibration["image"].dtype == ("uint8" if bytes_in else "float32")
    np.testing.assert_allclose(source.calibration["image"], PIXELS, atol=1e-3)
    given = PIXELS if bytes_in else PIXELS.astype("float32")
    expected = model.predict(PIXELS * SCALE + OFFSET, verbose=0) + 1
    np.testing.assert_allclose(source.predict({"image": given})["logits"], expected, atol=1e-4)


def test_bytes_for_an_integer_head_and_a_float_one():
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 3), name="image", dtype="uint8")
    pixels = L.Flatten()(keras.ops.cast(image, "float32"))
    model = keras.Model(image, [L.Dense(3, name="a")(pixels), L.Dense(2, name="b")(pixels)])
    given = PIXELS[:, :6, :6]
    found = tflite_export.convert(model, "int8", given, layers={"b": "float32"}).predict(given)
    for name, expected in zip("ab", model.predict(given, verbose=0), strict=True):
        np.testing.assert_allclose(found[name], expected, atol=0.02 * np.abs(expected).max())
