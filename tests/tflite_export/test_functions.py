"""TensorFlow functions and files of Keras 2 as sources."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_export

X = np.random.default_rng(0).normal(size=(6, 12)).astype("float32")


def test_a_concrete_function_keeps_its_variables(dense):
    """`TFLiteConverter.from_concrete_functions` drops those of Keras 3: NaN."""
    traced = tf.function(lambda x: {"b": dense(x), "a": 2 * dense(x)})
    function = traced.get_concrete_function(tf.TensorSpec([None, 12], name="features"))
    file = tflite_export.convert(function, "float32")
    assert [info.name for info in file.inputs] == ["features"]
    found, expected = file.predict(X), X @ dense.layers[0].kernel + dense.layers[0].bias
    np.testing.assert_allclose(found["b"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["a"], 2 * expected, rtol=1e-5, atol=1e-5)
    assert tflite_export.verify(function, file, X).passed


def test_a_function_with_an_input_signature(dense):
    weight = tf.Variable([[2.0], [3.0]])

    @tf.function(input_signature=[tf.TensorSpec([4, 2]), tf.TensorSpec([4, 1])])
    def joined(left, right, scale=None):
        return left @ weight, right if scale is None else scale * right

    with pytest.raises(ValueError, match="built with batch size 4: pass `batch=4`"):
        tflite_export.convert(joined, "float32")
    file = tflite_export.convert(joined, "float32", batch=4)
    left, right = np.ones((4, 2), "float32"), np.arange(4.0, dtype="float32")[:, None]
    found = file.predict({"left": left, "right": right})
    np.testing.assert_allclose(found["output_0"], np.full((4, 1), 5.0))
    np.testing.assert_allclose(found["output_1"], right)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (tf.function(lambda x: x), r"has no input signature.*function.get_concrete_function\(tf.TensorSpec"),
        (tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec([])]), "is a scalar; every input needs a batch"),
        (tf.function(lambda x: x + 1, input_signature=[tf.TensorSpec(None)]), "expected tensors of known rank only"),
        (tf.function(lambda x: None, input_signature=[tf.TensorSpec([1])]), "must return tensors; it returns None"),
    ],
)
def test_functions_that_are_refused(function, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.convert(function, "float32")


def test_a_file_that_only_keras_2_reads(tmp_path):
    import tf_keras

    image = tf_keras.Input((8, 8, 3), name="image")
    x = tf_keras.layers.DepthwiseConv2D(3)(image)
    model = tf_keras.Model(image, tf_keras.layers.Dense(2)(tf_keras.layers.Flatten()(x)))
    path = tmp_path / "old.h5"
    model.save(path)
    with pytest.raises(TypeError, match="groups"):
        keras.models.load_model(path, compile=False)
    images = np.random.default_rng(0).normal(size=(5, 8, 8, 3)).astype("float32")
    found = tflite_export.convert(path, "float32").predict(images)
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-5)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="Keras cannot load"):
        tflite_export.convert(path, "float32")
