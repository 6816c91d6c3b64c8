"""Names, order, shapes and batch of inputs and outputs."""

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import tflite_export
from tflite_export.tflite import flatbuffer

layers = keras.layers


@pytest.fixture(scope="module")
def mixed():
    """Inputs and outputs of equal shape whose alphabetical order is not the model's; one input of integers."""
    keras.utils.set_random_seed(5)
    zeta, alpha = keras.Input((4,), name="zeta"), keras.Input((4,), name="alpha")
    token = keras.Input((3,), name="mid", dtype="int32")
    embedded = layers.Flatten()(layers.Embedding(10, 2)(token))
    x = layers.Concatenate()([zeta, layers.Rescaling(3.0)(alpha), embedded])
    return keras.Model([zeta, alpha, token], [layers.Dense(3, name="yak")(x), layers.Dense(3, name="bee")(x)])


@pytest.fixture(scope="module")
def inputs():
    generator = np.random.default_rng(0)
    return [
        generator.normal(size=(10, 4)).astype("float32"),
        generator.normal(size=(10, 4)).astype("float32"),
        generator.integers(0, 10, size=(10, 3)).astype("int32"),
    ]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_order_and_names_are_the_models(mixed, inputs, precision):
    file = tflite_export.convert(mixed, precision, inputs)
    assert [info.name for info in file.inputs] == ["zeta", "alpha", "mid"]
    assert [info.name for info in file.outputs] == ["yak", "bee"]
    assert file.inputs[2].dtype == "int32"
    expected = mixed.predict(inputs, verbose=0)
    found = file.predict(dict(zip(("mid", "alpha", "zeta"), reversed(inputs), strict=True)))
    limit = {"float32": 1e-5, "int8": 0.1}[precision]
    for name, value in zip(("yak", "bee"), expected, strict=True):
        np.testing.assert_allclose(found[name], value, atol=limit)
    assert np.abs(expected[0] - expected[1]).max() > 0.5  # a swap would show


def test_readers_by_position_and_by_signature_agree(mixed, inputs):
    file = tflite_export.convert(mixed, "float32")
    interpreter = Interpreter(model_content=file.content)
    interpreter.allocate_tensors()
    for detail, value in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(detail["index"], value[:1])
    interpreter.invoke()
    by_position = [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]
    runner = interpreter.get_signature_runner()
    by_name = runner(zeta=inputs[0][:1], alpha=inputs[1][:1], mid=inputs[2][:1])
    expected = mixed([value[:1] for value in inputs])
    for position, (name, value) in enumerate(zip(("yak", "bee"), expected, strict=True)):
        np.testing.assert_allclose(by_position[position], value, atol=1e-5)
        np.testing.assert_allclose(by_name[name], value, atol=1e-5)


def test_a_swapped_file_does_not_verify(mixed, inputs):
    file = tflite_export.convert(mixed, "float32")
    swapped = bytearray(file.content)
    signature = flatbuffer.read(swapped).SignatureDefs(0)
    first, second = signature.Outputs(0), signature.Outputs(1)
    for entry, number in ((first, second.TensorIndex()), (second, first.TensorIndex())):
        place = entry._tab.Pos + entry._tab.Offset(6)
        swapped[place : place + 4] = int(number).to_bytes(4, "little")
    assert tflite_export.verify(mixed, file, inputs).passed
    result = tflite_export.verify(mixed, bytes(swapped), inputs)
    assert not result.passed
    assert "rmse" in result.why


def test_dict_outputs_keep_their_names():
    x = keras.Input((5,), name="x")
    first, second = layers.Dense(3)(x), layers.Dense(3)(x)
    model = keras.Model({"x": x}, {"b": first, "a": second})
    data = np.random.default_rng(0).normal(size=(7, 5)).astype("float32")
    found, expected = tflite_export.convert(model, "float32").predict(data), model.predict({"x": data}, verbose=0)
    for name in ("a", "b"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_names_a_signature_cannot_hold():
    model = keras.Sequential([keras.Input((3,), name="my in:put"), layers.Dense(2, name="out-put")])
    file = tflite_export.convert(model, "float32", {"my in:put": np.ones((2, 3))})
    assert [info.name for info in (*file.inputs, *file.outputs)] == ["my_in_put", "out_put"]


@pytest.mark.parametrize("batch", [1, 4, None])
def test_batch_and_any_number_of_samples(dense, batch):
    file = tflite_export.convert(dense, "float32", batch=batch)
    assert file.inputs[0].shape == (batch, 12)
    x = np.random.default_rng(0).normal(size=(6, 12)).astype("float32")
    np.testing.assert_allclose(file.predict(x), dense.predict(x, verbose=0), atol=1e-5)


def test_batch_built_into_the_model():
    model = keras.Sequential([keras.Input(batch_shape=(4, 5)), layers.Dense(2)])
    with pytest.raises(ValueError, match="pass `batch=4`; got 1"):
        tflite_export.convert(model, "float32")
    assert tflite_export.convert(model, "float32", batch=4).inputs[0].shape == (4, 5)


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_bad_batch(dense, batch):
    with pytest.raises(ValueError, match="`batch` must be an integer >= 1 or None"):
        tflite_export.convert(dense, "float32", batch=batch)


def test_open_image_size():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3), layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match=r"has open sizes \(None, None, 3\).*shapes=\{'.*': \(32, 32, 3\)\}.*\"open\""):
        tflite_export.convert(model, "float32")
    file = tflite_export.convert(model, "float32", shapes="open")
    for size in (9, 14):
        x = np.random.default_rng(size).normal(size=(3, size, size, 3)).astype("float32")
        np.testing.assert_allclose(file.predict(x), model.predict(x, verbose=0), atol=1e-5)


def test_names_that_become_alike_do_not_depend_on_the_order_of_a_dict():
    from tflite_export.sources.protocol import safe_names

    assert safe_names(["x_1", "x.1"]) == safe_names(["x.1", "x_1"])[::-1] == ("x_1_1", "x_1")
    assert safe_names(["a", "a", ""]) == ("a", "a_1", "tensor")
