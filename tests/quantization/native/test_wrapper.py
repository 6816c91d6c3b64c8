"""Single layers that train with rounding, in models of one's own."""

import keras
import numpy as np
import pytest
from int8_file import kernels_of, outputs_of
from keras import layers as L

import tflite_export
from kdopt.quantization import Quantized, quantize_aware
from kdopt.quantization.weight_grids import LearnedStep

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(48, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 4, 48)


def net(**options):
    keras.utils.set_random_seed(0)
    layers = [
        Quantized(L.Conv2D(6, 3, activation="relu"), inputs=True, **options),
        Quantized(L.DepthwiseConv2D(3), **options),
        L.MaxPooling2D(),
        L.Flatten(),
        Quantized(L.Dense(4, bias_initializer="random_normal"), **options),
    ]
    return keras.Sequential([keras.Input((8, 8, 2)), *layers])


def fitted(model):
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(X, Y, epochs=3, batch_size=16, verbose=0)
    return model


@pytest.mark.parametrize(
    "options", [pytest.param({}, marks=pytest.mark.slow), {"weights": LearnedStep(4), "observer": "lsq_plus"}]
)
def test_the_file_is_the_model(options, tmp_path):
    model = fitted(net(**options))
    file = tflite_export.convert(model, "int8")  # all ranges are in it
    ((got, step),) = outputs_of(file.content, X[:16])
    assert np.abs(got - model.predict(X[:16], verbose=0)).max() / step < 1.01
    ((integers, scales),) = kernels_of(file.content, "CONV_2D")
    kernel = np.moveaxis(np.asarray(model.layers[0].layer.kernel), -1, 0)
    if options:
        scales_trained = np.ravel(model.layers[0].steps.trainable_variables[0]) / 7
        np.testing.assert_allclose(scales, scales_trained, rtol=1e-5)
    np.testing.assert_array_equal(
        integers, np.clip(np.round(kernel / scales[:, None, None, None]), *((-7, 7) if options else (-127, 127)))
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


def test_it_rounds_as_the_equations_say():
    layer = Quantized(L.Dense(3), weights=4)
    x = RANDOM.normal(size=(20, 5)).astype("float32")
    layer(x, training=True)
    w = np.asarray(layer.layer.kernel)
    step = np.abs(w).max(axis=0) / 7
    exact = x @ (np.round(w / step) * step)
    low, high = min(exact.min(), 0), max(exact.max(), 0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    expected = (np.clip(np.round(exact / scale) + zero, 0, 255) - zero) * scale
    np.testing.assert_allclose(layer(x), expected, atol=scale * 1.01)
    assert np.mean(np.abs(np.asarray(layer(x)) - expected) > scale / 10) < 0.1


def test_the_plain_layer_comes_back():
    layer = Quantized(L.Dense(3))
    layer(X[:, 0, 0])
    plain = layer.to_plain()
    np.testing.assert_array_equal(plain.kernel, layer.layer.kernel)
    assert type(plain) is L.Dense


def test_layers_that_it_cannot_be_for():
    with pytest.raises(ValueError, match="'relu'.*has no kernel"):
        Quantized(L.ReLU(name="relu"))(X)
    with pytest.raises(TypeError, match="Expected a layer"):
        Quantized(keras.Sequential([L.Dense(2)]))
    with pytest.raises(ValueError, match=r"\[2, 8\]"):
        Quantized(L.Dense(2), weights=12)
    with pytest.raises(TypeError, match="quantized one by one"):
        quantize_aware(net(), "native")


def test_before_it_has_seen_data_it_computes_in_float_and_has_no_file():
    model = net()
    plain = keras.Sequential([layer.to_plain() if isinstance(layer, Quantized) else layer for layer in model.layers])
    np.testing.assert_allclose(model.predict(X, verbose=0), plain.predict(X, verbose=0), rtol=0.1, atol=0.02)
    with pytest.raises(ValueError, match="'quantized_conv2d.*' has no range yet. Train the model"):
        tflite_export.convert(model, "int8", X)
    rounded = fitted(model).predict(X, verbose=0)  # compiled once, it rounds now
    assert len(np.unique(rounded)) <= 256


@pytest.mark.parametrize("precision", ["float32", "int16x8", "weight_int8", "dynamic"])
def test_other_precisions_name_the_way_out(precision):
    model = net()
    model(X, training=True)  # sets the ranges
    with pytest.raises(ValueError, match="was quantized for 'int8'.*`to_plain"):
        tflite_export.convert(model, precision)
