"""Options of training with rounding: BatchNormalization folded or frozen, auxiliary losses."""

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import quantize_aware
from kdopt.quantization.native.execution import Pass, Training

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (48, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 4, 48)


def net():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.DepthwiseConv2D(3, name="depthwise", bias_initializer="random_normal")(x)
    return keras.Model(inputs, L.Dense(4, name="head")(L.Flatten()(L.BatchNormalization()(x))))


def fitted(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)  # six batches: half the time
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0)
    return model


def folded_by_numpy(model, x, layer, norm):
    """Output of convolution and BatchNormalization with the kernel folded by the batch's statistics and rounded."""
    exact = keras.Model(model.net.inputs, model.net.get_layer(layer).output).predict(x, verbose=0).astype("float64")
    mean, variance = exact.mean(axis=(0, 1, 2)), exact.var(axis=(0, 1, 2))
    factor = np.asarray(norm.gamma) / np.sqrt(variance + norm.epsilon)
    kernel = np.asarray(model.net.get_layer(layer).kernel) * factor
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 127
    return np.round(kernel / step) * step, np.asarray(norm.beta) - mean * factor, mean, variance


def test_folding_is_that_of_the_paper():
    model = quantize_aware(net(), "native", calibration=X, folding=True, freeze_batch_norm=1)
    norm = model.net.get_layer("norm")
    norm.gamma.assign([0.5, 1, 2, 1, 1.5, 0.2])
    model.calibrate(X)
    low, high = model.range_of("image.input")
    step = (high - low) / 255
    x = ((np.round(X / step) + np.round(-low / step)) - np.round(-low / step)) * step
    kernel, offset, mean, variance = folded_by_numpy(model, x.astype("float32"), "conv", norm)
    seen = {}
    model.freeze_ranges()
    Pass(model._hidden.placement, model.ranges.pairs(), training=Training(folding=True), seen=seen)([X])
    steps = {step.name: step for step in model._hidden.placement.steps}
    got = np.asarray(seen[steps["conv"].outputs[0]])
    expected = np.asarray(ops.conv(x.astype("float32"), kernel.astype("float32"), padding="same")) + offset
    np.testing.assert_allclose(got, expected, atol=3e-3)
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, atol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, 0.99 + 0.01 * variance, rtol=1e-3)


@pytest.mark.parametrize("folding", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_frozen_statistics_stay_and_are_used(folding):
    model = quantize_aware(net(), "native", calibration=X, folding=folding, freeze_batch_norm=3)
    fitted(model)  # six steps
    norm = model.net.get_layer("norm")
    kept = np.array(norm.moving_mean)
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, kept)
    # Training and inference are then the same function, but for what rounding of biases does.
    np.testing.assert_allclose(model(X, training=True), model(X, training=False), atol=0.1)
    ((got, step),) = outputs_of(tflite_export.convert(model, "int8").content, X[:16])
    assert np.abs(got - model.predict(X[:16], verbose=0)).max() / step < 0.01


def test_auxiliary_losses_are_their_formulas():
    both = quantize_aware(
        net(), "native", calibration=X, losses={"mse": 2.0, "cross_entropy": 3.0}, freeze_batch_norm=0
    )
    both.freeze_ranges()
    outputs = both(X, training=True)
    by_mse, by_entropy = (float(loss) for loss in both.losses)
    exact = np.asarray(both.strip()(X, training=False), "float64")
    p = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
    q = np.asarray(outputs, "float64")
    logs = q - np.log(np.exp(q).sum(axis=1, keepdims=True))
    assert by_entropy == pytest.approx(-3.0 * (p * logs).sum(axis=1).mean(), rel=1e-4)
    # Rounding errors are uniform: step^2 / 12 for each tensor, less for what is clipped at 0.
    steps = [(high - low) / 255 for low, high in both.all_ranges().values()]
    assert 0.2 * 2 * sum(s**2 / 12 for s in steps) < by_mse < 1.3 * 2 * sum(s**2 / 12 for s in steps)


@pytest.mark.parametrize("losses", [{"mae": 1.0}, {"mse": -1.0}, ["mse"]])
def test_unknown_losses(losses):
    with pytest.raises((TypeError, ValueError), match="losses"):
        quantize_aware(net(), "native", losses=losses)
