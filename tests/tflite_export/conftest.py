import keras
import numpy as np
import pytest

import tflite_export


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
