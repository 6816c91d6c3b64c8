"""Nothing is lost with dead channels: the oracle is the model itself, before and after."""

import keras
import numpy as np
from channel_oracle import disturbed
from keras import layers as L

from kdopt.core import measure
from kdopt.pruning.structural import prune_channels

X = np.random.default_rng(0).normal(size=(3, 9, 9, 3)).astype("float32")
ZEROS = 3  # of the 6 channels of "maker"


def image_net(middle, reader, bias=True):
    """conv -> middle -> reader, then something that reads all."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((9, 9, 3))
    h = middle(L.Conv2D(6, 3, name="maker", use_bias=bias)(inputs))
    h = reader(h)
    h = h if len(h.shape) == 2 else L.GlobalAveragePooling2D()(h)
    model = disturbed(keras.Model(inputs, L.Dense(4, name="out")(h)))
    zero(model.get_layer("maker"), ZEROS)
    return model


def zero(layer, count, axis=-1):
    """The first channels of a kernel."""
    value = np.moveaxis(layer.kernel.numpy(), axis, 0)
    value[:count] = 0
    layer.kernel.assign(np.moveaxis(value, 0, axis))


def lossless(model, x, **arguments):
    """Shrinks what is zero or dead; returns (smaller model, plan)."""
    before = [weight.numpy() for weight in model.weights]
    expected = keras.tree.flatten(model(x, training=False))
    small, plan = prune_channels(model, criterion="mask", **arguments)
    for one, other in zip(expected, keras.tree.flatten(small(x, training=False)), strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6 * np.abs(one).max())
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert plan.parameters == (measure.parameters(model), measure.parameters(small))
    return small, plan
