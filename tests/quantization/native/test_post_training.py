"""int8 without training: the same function, ranges of NumPy, no mean error, and a net that plain int8 ruins."""

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L

import tflite_export
from kdopt.core.copying import copy_model
from kdopt.quantization import equalize, post_training, quantize_aware
from kdopt.quantization.post_training import correct_biases
from kdopt.quantization.ranges import Percentile

RANDOM = np.random.default_rng(3)
INPUT = "image.input"
X = RANDOM.normal(0.2, 1.0, (64, 8, 8, 2)).astype("float32")


def net(norm=True, spread=0.0):
    """Convolution, depthwise, convolution, dense; channels between them scaled by powers of ten."""
    keras.utils.set_random_seed(5)
    random = np.random.default_rng(3)

    def unit(x, layer):
        return L.ReLU()(L.BatchNormalization()(layer(x)) if norm else layer(x))

    inputs = keras.Input((8, 8, 2), name="image")
    x = unit(inputs, L.Conv2D(8, 3, name="a"))
    x = unit(x, L.DepthwiseConv2D(3, padding="same", name="b"))
    x = L.AveragePooling2D(2)(unit(x, L.Conv2D(8, 1, name="c")))
    x = L.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, L.Dense(4, name="d")(x))
    for weight in model.weights:
        if any(name in weight.path for name in ("bias", "beta", "moving_mean")):
            weight.assign(random.normal(0, 0.2, weight.shape))
        elif "moving_variance" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
    if spread:
        for layer, reader, axis in (("a", "b", 2), ("c", "d", 0)):
            scales = 10 ** random.uniform(-spread, spread, 8)
            norms = [one for one in model.layers if isinstance(one, L.BatchNormalization)]
            made = norms[0] if layer == "a" else norms[2]
            made.gamma.assign(made.gamma.numpy() / scales)
            made.beta.assign(made.beta.numpy() / scales)
            kernel = model.get_layer(reader).kernel
            shape = [8 if i == axis else 1 for i in range(len(kernel.shape))]
            kernel.assign(kernel.numpy() * scales.reshape(shape))
    return model


def magnitudes(kernel, axis, factor=1.0):
    kernel = np.abs(np.asarray(kernel))
    return kernel.max(tuple(i for i in range(kernel.ndim) if i != axis)) * np.abs(factor)


@pytest.mark.parametrize("norm", [True, False])
def test_equalized_layers_use_their_channels_alike_and_are_the_same_function(norm):
    source = net(norm, spread=1.0 if norm else 0.0)
    model = copy_model(source)
    pairs = equalize(model)
    assert [(pair.first, pair.second) for pair in pairs] == [("a", "b"), ("b", "c"), ("c", "d")]
    assert max(pair.largest for pair in pairs) > 1.5
    expected = source.predict(X, verbose=0)
    np.testing.assert_allclose(model.predict(X, verbose=0), expected, atol=2e-5 * np.abs(expected).max())
    factors = [1.0, 1.0, 1.0]
    if norm:
        norms = [one for one in model.layers if isinstance(one, L.BatchNormalization)]
        factors = [n.gamma.numpy() / np.sqrt(n.moving_variance.numpy() + n.epsilon) for n in norms]
    a, b, c, d = (model.get_layer(name).kernel for name in "abcd")
    np.testing.assert_allclose(magnitudes(a, 3, factors[0]), magnitudes(b, 2), rtol=0.02)
    np.testing.assert_allclose(magnitudes(c, 3, factors[2]), magnitudes(d, 0), rtol=0.02)


def test_layers_that_mix_or_share_channels_are_left_alone():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 2))
    x = L.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = L.Conv2D(4, 3, padding="same", activation="relu6", name="six")(x)
    z = L.Conv2D(4, 3, padding="same", activation="tanh", name="curved")(y)
    w = L.Conv2D(4, 1, groups=2, name="grouped")(L.Add()([x, z]))
    model = keras.Model(inputs, L.Dense(3, name="head")(L.Flatten()(w)))
    assert equalize(model) == ()


@pytest.mark.parametrize("norm", [True, False])
def test_corrected_biases_leave_no_mean_error(norm):
    model = quantize_aware(net(norm), engine="native", calibration=X)
    names = ["a", "b", "c", "d"]

    def mean_errors():
        plain = net(norm)
        exact, rounded = plain.predict(X, verbose=0), model.predict(X, verbose=0)
        return np.abs((exact - rounded).mean(0)).max()

    before = mean_errors()
    corrected = correct_biases(model, X)
    assert list(corrected) == names
    assert mean_errors() < 0.4 * before


def test_clipping_ranges_are_those_of_the_method():
    x = X.copy()
    x[0, 0, 0, 0] = 500.0
    wide = quantize_aware(net(), engine="native", calibration=x).range_of(INPUT)
    clipped = post_training(net(), x, ranges=Percentile(1e-3), equalize=False, bias_correction=False)
    assert wide[1] == 500.0
    assert clipped.range_of(INPUT)[1] < 10
    assert post_training(net(), X, ranges="min_max", equalize=False).range_of(INPUT) == pytest.approx(
        (X.min(), X.max())
    )


def test_a_net_that_plain_int8_ruins_comes_back():
    source = net(spread=1.6)
    exact = source.predict(X, verbose=0)

    def error(model):
        ((got, _),) = outputs_of(tflite_export.convert(model, "int8", *data).content, X[:32])
        return float(np.linalg.norm(got - exact[:32]) / np.linalg.norm(exact[:32] - exact[:32].mean(0)))

    data = (X,)
    plain = error(source)
    data = ()
    mended = error(post_training(source, X))
    assert plain > 0.2
    assert mended < 0.2 * plain
    assert np.array_equal(source.predict(X, verbose=0), exact)


def test_ranges_stay_in_training_and_the_file_is_the_model():
    model = post_training(net(), X)
    before = np.asarray(model.ranges.limits)
    model.compile("sgd", "mse")
    model.fit(3 * X, np.ones((64, 4)), verbose=0)
    np.testing.assert_array_equal(np.asarray(model.ranges.limits), before)
    ((got, step),) = outputs_of(tflite_export.convert(model, "int8").content, X[:16])
    assert (np.abs(got - model.predict(X[:16], verbose=0)) / step).max() < 1.01
    with pytest.raises(ValueError, match="mse"):
        post_training(net(), X, ranges="mes")
