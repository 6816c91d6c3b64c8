"""The oldest runtime of a file, against what TensorFlow's converter writes into it."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.tflite import flatbuffer, op_versions

layers = keras.layers


def nets():
    image = keras.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, activation="relu")(image)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.UpSampling2D(interpolation="bilinear")(layers.Activation("hard_swish")(x))
    x = layers.Conv2DTranspose(3, 3)(x)
    yield keras.Model(image, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x)))
    tokens = keras.Input((6,), dtype="int32")
    y = layers.Embedding(7, 8)(tokens)
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(2, 4)(y, y))
    yield keras.Model(tokens, layers.Dense(3, activation="gelu")(y))
    series = keras.Input((5, 3))
    z = layers.LSTM(4, return_sequences=True)(series)
    yield keras.Model(series, layers.Bidirectional(layers.GRU(3, unroll=True))(z))


@pytest.mark.parametrize("precision", ["float32", pytest.param("float16", marks=pytest.mark.slow), "dynamic"])
def test_it_is_what_the_converter_says(precision):
    for net in nets():
        content = tflite_export.convert(net, precision).content
        written = flatbuffer.metadata(content)["min_runtime_version"].rstrip(b"\0").decode()
        assert op_versions.number(op_versions.min_runtime(content)) == op_versions.number(written), op_versions.needed(
            content
        )


def test_of_hybrid_dense_layers(dense):
    """Known from devices: "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'"."""
    assert op_versions.runtime_of("FULLY_CONNECTED", 12) == "2.17"
    data = np.ones((8, 12), "float32")
    files = {name: tflite_export.convert(dense, name, data).content for name in ("float32", "int8")}
    assert [op_versions.min_runtime(content) for content in files.values()] == ["1.5", "1.14"]
    assert op_versions.needed(files["int8"]) == (op_versions.Needed("FULLY_CONNECTED", 4, "1.14"),)


def test_numbers():
    assert op_versions.number("2.9") < op_versions.number("2.17") < op_versions.number("2.17.1")
    assert op_versions.number("2.17.0") == op_versions.number("2.17")
    assert op_versions.runtime_of("ADD", 99) is None is op_versions.runtime_of("NO_SUCH", 1)
    for wrong in ("two", "2.x", "", 2.17, "2.17-rc0"):
        with pytest.raises(ValueError, match=r"release such as '2\.9'"):
            op_versions.number(wrong)


def test_of_kernels_that_are_put_into_a_file():
    """What TensorFlow's own tools write for these types (op_version.cc)."""
    net = keras.Sequential([keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(16)])
    x = np.random.default_rng(0).normal(size=(20, 64)).astype("float32")
    wanted = {"weight_int8": ("DEQUANTIZE", 5, "2.7"), "int4": ("FULLY_CONNECTED", 12, "2.17")}
    wanted["int8_int4"] = ("FULLY_CONNECTED", 10, "2.11")
    for precision, newest in wanted.items():
        content = tflite_export.convert(net, precision, x).content
        assert op_versions.needed(content)[0] == op_versions.Needed(*newest), precision
        assert flatbuffer.metadata(content)["min_runtime_version"].rstrip(b"\0").decode() == f"{newest[2]}.0"
