"""Errors by layer, beside NumPy on the tensors of the model and of its rounded self."""

import keras
import numpy as np
import pytest
from keras import layers as L

from kdopt.quantization import quantization_error, quantize_aware

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(0.2, 1.0, (32, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 4, 32)


def net(activation=None, wide=1.0):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.ReLU(name="relu")(L.BatchNormalization()(L.Conv2D(6, 3, name="conv")(inputs)))
    x = L.Flatten()(L.AveragePooling2D(2, name="pool")(x))
    model = keras.Model(inputs, L.Dense(4, activation=activation, name="head")(x))
    kernel = model.get_layer("conv").kernel
    kernel.assign(kernel * np.array([wide, 1, 1, 1, 1, 1]))
    return model


def test_the_numbers_are_those_of_the_two_nets():
    source = net()
    model = quantize_aware(source, engine="native", calibration=X)
    errors = quantization_error(model, X, Y, verbose=0)
    exact, rounded = source.predict(X, verbose=0), model.predict(X, verbose=0)
    mse = np.mean((exact - rounded) ** 2)
    assert errors.output.mse == pytest.approx(mse, rel=1e-3)
    assert errors.output.snr_db == pytest.approx(10 * np.log10(np.mean(exact**2) / mse), abs=0.01)
    cosine = np.sum(exact * rounded) / np.linalg.norm(exact) / np.linalg.norm(rounded)
    assert errors.output.cosine == pytest.approx(cosine, abs=1e-5)

    def entropy(logits):
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(32), Y])

    assert errors.cross_entropy == pytest.approx((entropy(exact), entropy(rounded)), rel=1e-4)
    assert {row.layer for row in errors.layers} == {"image", "conv + relu", "pool", "head"}
    assert [row.output_mse for row in errors.layers] == sorted((row.output_mse for row in errors.layers), reverse=True)
    text = str(errors)
    assert all(row.layer in text for row in errors.layers)
    assert "cross-entropy" in text


def test_a_layer_alone_is_the_net_with_that_layer_alone_rounded():
    source = net()
    errors = quantization_error(source, X, verbose=0)
    row = next(row for row in errors.layers if row.layer == "head")
    hidden = keras.Model(source.inputs, source.get_layer("pool").output)
    x = hidden.predict(X, verbose=0).reshape(32, -1).astype("float64")
    kernel, bias = (np.asarray(w, "float64") for w in source.get_layer("head").weights)
    step = np.abs(kernel).max(0) / 127
    y = x @ (np.round(kernel / step) * step) + bias
    exact = x @ kernel + bias
    low, high = min(exact.min(), 0), max(exact.max(), 0)
    scale = (high - low) / 255
    zero = np.round(-low / scale)
    q = (np.clip(np.round(y / scale) + zero, 0, 255) - zero) * scale
    assert row.output_mse == pytest.approx(np.mean((q - exact) ** 2), rel=0.02)


def test_the_layer_that_ruins_is_first():
    errors = quantization_error(net(wide=300.0), X, verbose=0)
    assert errors.layers[0].layer in ("conv + relu", "pool")
    assert errors.output.snr_db < quantization_error(net(), X, verbose=0).output.snr_db - 5
    figure = errors.figure()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels[0] == errors.layers[0].layer


def test_probabilities_and_bad_targets():
    errors = quantization_error(net("softmax"), X, Y, verbose=0)
    assert errors.cross_entropy[0] == pytest.approx(errors.cross_entropy[1], rel=0.1)
    with pytest.raises(ValueError, match=r"`targets` must be integer classes \(n,\).*got int64 of the shape \(5,\)"):
        quantization_error(net(), X, Y[:5], verbose=0)
    with pytest.raises(ValueError, match="`targets` must be integer classes"):
        quantization_error(net(), X, np.eye(4)[Y], verbose=0)
    with pytest.raises(ValueError, match="must have the shape"):
        quantization_error(net(), X[..., :1], verbose=0)
