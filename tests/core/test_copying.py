"""Second models with the same weights."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.core.copying import copy_model

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
FACTOR = 3.0


def nested():
    keras.utils.set_random_seed(1)
    inside = keras.Sequential(
        [keras.Input((4,)), L.Dense(3), L.Lambda(lambda x, y: keras.ops.relu(x) * FACTOR + y, arguments={"y": 2.0})]
    )
    inputs = keras.Input((4,))
    return keras.Model(inputs, L.Dense(2)(inside(inputs)))


def test_functions_of_lambdas_are_the_same_ones():
    model = nested()
    copied = copy_model(model)
    np.testing.assert_array_equal(copied(X), model(X))
    assert {id(weight) for weight in copied.weights}.isdisjoint({id(weight) for weight in model.weights})


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.scaled = L.Lambda(lambda x: x * FACTOR, name="scaled")

    def call(self, inputs):
        return self.scaled(inputs)

    def get_config(self):
        return {"scaled": keras.saving.serialize_keras_object(self.scaled)}


def test_the_error_names_lambdas():
    model = Subclassed()
    model(X)
    with pytest.raises(ValueError, match="It has 'scaled': what the function of a Lambda refers to"):
        copy_model(model)


def test_what_a_normalization_has_adapted_to_is_copied():
    norm = L.Normalization()
    norm.adapt(3 + 2 * np.random.default_rng(0).normal(size=(100, 4)))
    copied = copy_model(keras.Sequential([keras.Input((4,)), norm]))
    expected = (X - norm.mean.numpy()) / np.sqrt(norm.variance.numpy())
    np.testing.assert_allclose(copied(X), expected, rtol=1e-5)
    assert np.abs(expected - X).max() > 1
