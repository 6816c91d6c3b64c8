import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import tflite_export

# Nets are shared by tests; importlib mode puts no test folder on the path.
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / folder) for folder in ("tflite_export", "graph", "quantization")]


@pytest.fixture(scope="session")
def images():
    """96 images (16, 16, 3), skewed so that zero points are not 0."""
    return np.random.default_rng(3).gamma(2.0, 0.5, size=(96, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="session")
def convnet():
    """Residual, concat, depthwise, nested block and two outputs, not in alphabetical order."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inner_in = keras.Input((16, 16, 8))
    inner_out = layers.Add()([inner_in, layers.DepthwiseConv2D(3, padding="same", name="dw")(inner_in)])
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    x = keras.Model(inner_in, inner_out, name="block")(x)
    x = layers.Concatenate(name="join")([x, layers.MaxPooling2D(3, 1, padding="same", name="pool")(x)])
    x = layers.GlobalAveragePooling2D(name="gap")(x)
    outputs = [layers.Dense(4, name="zebra")(x), layers.Dense(4, activation="softmax", name="ant")(x)]
    return keras.Model(image, outputs, name="convnet")


@pytest.fixture(scope="session")
def int8_file(convnet, images):
    return tflite_export.convert(convnet, "int8", images)


@pytest.fixture(scope="session")
def dense():
    """One Dense layer, whose int8 file NumPy can compute."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((12,), name="x"), keras.layers.Dense(5, name="d")], name="dense")
    model.layers[-1].bias.assign(np.linspace(-1, 1, 5))
    return model


@pytest.fixture(scope="session")
def classifiers():
    """Precision -> file of a net for 5 classes of images (8, 8, 3), of pixels in [0, 1]."""
    keras.utils.set_random_seed(2)
    stack = [keras.Input((8, 8, 3), name="image"), keras.layers.Flatten()]
    model = keras.Sequential([*stack, keras.layers.Dense(5, activation="softmax", name="probability")])
    pixels = (np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)) / 255).astype("float32")
    return {name: tflite_export.convert(model, name, pixels) for name in ("float32", "float16", "uint8", "int8")}


@pytest.fixture(scope="session")
def two_by_two():
    """A file of two inputs and two outputs, not in alphabetical order."""
    zeta, alpha = keras.Input((4, 4, 3), name="zeta"), keras.Input((6,), name="alpha")
    x = keras.layers.Concatenate()([keras.layers.Flatten()(zeta), alpha])
    outputs = [keras.layers.Dense(3, name="yak")(x), keras.layers.Dense(2, name="bee")(x)]
    return tflite_export.convert(keras.Model([zeta, alpha], outputs), "float32")
