"""BatchNormalization in training: what the layer of Keras makes of it, by TensorFlow's single operation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as L
from keras.src import backend

import kdopt.quantization.native.folding as folding
from kdopt.quantization import quantize_aware
from kdopt.quantization.native.execution import Pass, Training

RANDOM = np.random.default_rng(3)


def pair(shape, **options):
    """Two equal layers."""
    made = [L.BatchNormalization(**options) for _ in range(2)]
    for layer in made:
        layer.build(shape)
    weights = [RANDOM.uniform(0.5, 1.5, weight.shape) for weight in made[0].get_weights()]
    for layer in made:
        layer.set_weights(weights)
    return made


def run():
    made = Pass.__new__(Pass)
    made.training, made.how = True, Training()
    return made


def results(layer, function, x):
    """Output, gradients of the input and of the weights, statistics."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
        loss = tf.reduce_sum(tf.cast(y, "float32") * tf.sin(tf.cast(x, "float32")))
    gradients = tape.gradient(loss, [x, *(variable.value for variable in layer.trainable_variables)])
    return [np.asarray(value, "float32") for value in (y, *gradients, *layer.get_weights())]


@pytest.mark.parametrize("options", [{}, {"scale": False, "momentum": 0.5}, {"center": False, "epsilon": 2e-5}])
@pytest.mark.parametrize("shape", [(7, 5, 4, 3), (9, 3), (4, 6, 3), (2, 3, 4, 5, 3)])
def test_it_is_the_layer(shape, options):
    layer, other = pair(shape, **options)
    x = tf.constant(RANDOM.normal(1, 2, shape).astype("float32"))
    assert folding._is_plain(layer, x)
    expected = results(layer, lambda x: layer(x, training=True), x)
    for got, wanted in zip(results(other, lambda x: folding.normalized(other, x, run()), x), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_in_half_precision_it_computes_in_single():
    layer, other = pair((8, 4, 4, 3), dtype="mixed_float16")
    x = tf.cast(RANDOM.normal(1, 2, (8, 4, 4, 3)), "float16")
    y = folding.normalized(other, x, run())
    assert y.dtype == "float16"
    np.testing.assert_allclose(y, layer(x, training=True), atol=4e-3)
    np.testing.assert_allclose(other.moving_variance, layer.moving_variance, rtol=1e-4)


@pytest.mark.parametrize("options", [{"renorm": True}, {"epsilon": 1e-7}, {"synchronized": True}])
def test_other_options_are_left_to_the_layer(options):
    layer, other = pair((8, 4, 4, 3), **options)
    x = tf.constant(RANDOM.normal(1, 2, (8, 4, 4, 3)).astype("float32"))
    np.testing.assert_array_equal(folding.normalized(other, x, run()), layer(x, training=True))


def test_masked_places_do_not_count():
    layer, other = pair((4, 6, 3))
    x = tf.constant(RANDOM.normal(1, 2, (4, 6, 3)).astype("float32"))
    backend.set_keras_mask(x, tf.constant(RANDOM.integers(0, 2, (4, 6)).astype(bool)))
    np.testing.assert_array_equal(folding.normalized(other, x, run()), layer(x, training=True))
    np.testing.assert_array_equal(other.moving_mean, layer.moving_mean)


@pytest.mark.parametrize("options", [{"folding": True}, {"freeze_batch_norm": 2}])
def test_renorm_is_refused_where_it_would_be_ignored(options):
    inputs = keras.Input((8, 8, 2))
    x = L.BatchNormalization(renorm=True, name="norm")(L.Conv2D(3, 3)(inputs))
    model = quantize_aware(keras.Model(inputs, L.Dense(2)(L.Flatten()(x))), "native", **options)
    model.compile("adam", "mse")
    data = RANDOM.normal(size=(8, 8, 8, 2))
    with pytest.raises(ValueError, match="'norm' has renorm=True"):
        model.fit(data, np.zeros((8, 2)), verbose=0)
