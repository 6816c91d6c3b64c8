"""Everything `convert` takes as a source, against the source's own outputs."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.sources import resolve

layers = keras.layers


@keras.saving.register_keras_serializable("tests")
class Pair(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = layers.Dense(3, name="first"), layers.Dense(2, name="second")

    def call(self, inputs, training=False):
        return self.first(inputs["zz"]), self.second(inputs["aa"])


class TwoArguments(keras.Model):
    def __init__(self):
        super().__init__(name="two_arguments")
        self.dense = layers.Dense(3)

    def call(self, left, right):
        return self.dense(left) + right


def _near(source, precision="float32", **data):
    """Converts and compares with `source`'s own calling."""
    file = tflite_export.convert(source, precision, data)
    result = tflite_export.verify(source, file, data)
    assert result.passed, result.why
    return file


def test_subclassed_model(images):
    model = Pair(name="pair")
    with pytest.raises(ValueError, match="'pair' is a subclassed model that was never called.*Call it once"):
        tflite_export.convert(model, "float32")
    generator = np.random.default_rng(0)
    zz, aa = generator.normal(size=(9, 5)).astype("float32"), generator.normal(size=(9, 6)).astype("float32")
    first, second = model({"zz": zz, "aa": aa})
    found = _near(model, zz=zz, aa=aa).predict({"zz": zz, "aa": aa})
    np.testing.assert_allclose(found["output_0"], first, atol=1e-5)
    np.testing.assert_allclose(found["output_1"], second, atol=1e-5)


def test_subclassed_model_whose_inputs_keras_did_not_record():
    model = TwoArguments()
    model(np.ones((2, 4)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"takes the arguments \['left', 'right'\].*keras.Model\(inputs"):
        tflite_export.convert(model, "float32")


def test_keras_file_and_saved_model(convnet, images, tmp_path):
    path = tmp_path / "net.keras"
    convnet.save(path)
    convnet.export(tmp_path / "saved", verbose=False)
    expected = convnet.predict(images, verbose=0)
    for source in (path, str(path), tmp_path / "saved"):
        found = tflite_export.convert(source, "float32").predict(images)
        assert len(found) == 2
        for values in expected:  # a SavedModel has names of its own
            assert min(np.abs(values - other).max() for other in found.values()) < 1e-5


def test_tf_keras_model():
    import tf_keras

    assert resolve._family(tf_keras.Sequential()) == "tf_keras"
    image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.Conv2D(4, 3, name="conv2d_7")(image)
    x = tf_keras.layers.BatchNormalization()(x)
    x = tf_keras.layers.Flatten()(tf_keras.layers.ReLU()(x))
    model = tf_keras.Model(image, {"q": tf_keras.layers.Dense(3)(x), "p": tf_keras.layers.Dense(2)(x)})
    data = np.random.default_rng(0).normal(size=(20, 8, 8, 3)).astype("float32")
    expected = model.predict(data, verbose=0)
    for precision, limit in (("float32", 1e-5), ("int8", 0.1)):
        found = _near(model, precision, image=data).predict(data)
        assert set(found) == {"p", "q"}
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, atol=limit)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: 3, TypeError, "`source` must be a Keras 3 model.*got builtins.int"),
        (lambda path: keras.Model, TypeError, "`source` must be a Keras 3 model"),
        (lambda path: keras.Sequential([keras.layers.Dense(2)]), ValueError, "is not built.*keras.Input"),
        (lambda path: path / "none.keras", FileNotFoundError, "No such model: .*none.keras"),
        (lambda path: path, ValueError, "a folder without saved_model.pb"),
        (lambda path: path / "bad.keras", ValueError, "Keras cannot load"),
        (lambda path: path / "other.onnx", ValueError, "got the file .*other.onnx"),
    ],
)
def test_bad_sources(tmp_path, make, error, message):
    for name in ("bad.keras", "other.onnx"):
        (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(error, match=message):
        tflite_export.convert(make(tmp_path), "float32")


def test_names_tensorflow_refuses():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a b")], name="my model")
    with pytest.raises(ValueError, match="cannot put into a graph: 'a b', 'my model'. Expected letters"):
        tflite_export.convert(model, "float32")
    plain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    assert tflite_export.convert(plain, "float32").size_bytes > 0  # Keras' name scope is as it was


def test_another_backend(dense, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match=r"'jax'.*os.environ\[\"KERAS_BACKEND\"\] = \"tensorflow\""):
        tflite_export.convert(dense, "float32")


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_model_trained_in_mixed_precision(images, policy):
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((16, 16, 3), name="image")
        x = layers.BatchNormalization()(layers.Conv2D(4, 3, name="conv")(image))
        x = layers.MultiHeadAttention(2, 4, name="attend")(*[layers.Reshape((-1, 4))(x)] * 2)
        model = keras.Model(image, layers.Dense(3, dtype="float32", name="head")(layers.Flatten()(x)))
    finally:
        keras.config.set_dtype_policy("float32")
    twin = keras.models.clone_model(model, clone_function=_in_float32)
    twin.set_weights(model.get_weights())
    file = _near(model, "float32", image=images)
    np.testing.assert_allclose(file.predict(images), twin.predict(images, verbose=0), atol=1e-5)
    assert {layer.compute_dtype for layer in model.layers} == {policy.removeprefix("mixed_"), "float32"}


def _in_float32(layer):
    config = layer.get_config()
    config["dtype"] = "float32"
    return type(layer).from_config(config)


def test_a_file_with_code_in_it(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "m.keras")
    with pytest.raises(ValueError, match=r"holds a Lambda layer, which is code.*safe_mode=False"):
        tflite_export.convert(tmp_path / "m.keras", "float32")
