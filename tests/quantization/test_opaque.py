"""Layers that stay Keras 3 code inside the tf_keras net: they train, save, load and strip like the others."""

import keras
import numpy as np
from keras import layers, ops

from kdopt.quantization import quantize_aware

RANDOM = np.random.default_rng(5)


@keras.saving.register_keras_serializable("kdopt_test")
class Gated(layers.Layer):
    """A layer of layers whose config lacks its name: loaded, it is called otherwise."""

    def __init__(self):
        super().__init__()
        self.value, self.gate = layers.Dense(4), layers.Dense(4)

    def build(self, input_shape):
        self.value.build(input_shape)
        self.gate.build(input_shape)

    def call(self, inputs):
        return self.value(inputs) * ops.sigmoid(self.gate(inputs))

    def get_config(self):
        return {}


@keras.saving.register_keras_serializable("kdopt_test")
class Moved(layers.Layer):
    def build(self, input_shape):
        self.by = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="by")

    def call(self, inputs):
        return inputs + self.by


def opaque():
    """Custom layers in nested models called twice, `keras.ops` nodes with constants."""
    deep = keras.Sequential([keras.Input((4,)), Gated(), Moved(name="moved")])
    inputs = keras.Input((3, 4))
    x = ops.transpose(inputs, (0, 2, 1))[:, :, 1] * 2.0
    x = deep(ops.where(x > 0, x, 0.1 * ops.sin(x)))
    return keras.Model(inputs, layers.Dense(2)(deep(x) + ops.concatenate([x[:, 2:], x[:, :2]], axis=-1)))


def test_opaque_layers_save_load_and_strip(tmp_path):
    x = RANDOM.normal(size=(32, 3, 4)).astype("float32")
    model = quantize_aware(opaque(), calibration=x)
    model.compile(keras.optimizers.Adam(0.02), "mse", run_eagerly=True)
    model.fit(x, np.ones((32, 2)), batch_size=16, epochs=2, verbose=0)
    wanted = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras").predict(x, verbose=0), wanted)
    # Built again, its layers have other names: `dense_5` for `dense_2`.
    model.save_weights(tmp_path / "model.weights.h5")
    other = quantize_aware(opaque())
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(other.predict(x, verbose=0), wanted)
    stripped = model.strip()
    assert np.abs(stripped.predict(x, verbose=0) - wanted).mean() < 0.02 * np.abs(wanted).max()
    trained = {v.numpy().tobytes() for layer in model.layers for name, v in layer.by_name.items() if v.trainable}
    assert {v.numpy().tobytes() for v in stripped.trainable_variables} == trained
