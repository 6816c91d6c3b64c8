"""Adaptive rounding, beside all roundings of a small layer, terms of the loss by hand, and the file's integers."""

import itertools

import keras
import numpy as np
import pytest
from int8_file import kernels_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import post_training, quantize_aware, round_adaptively, rounding
from kdopt.quantization.adaround import KernelGrid, adapt, beta_at, rectified_sigmoid, undecided
from kdopt.quantization.native.folding import factor_and_offset

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(0.2, 1.0, (48, 8, 8, 2)).astype("float32")


def settle(model, negative=()):
    """Weights as of a trained net, some factors of BatchNormalization below zero."""
    random = np.random.default_rng(7)
    for weight in model.weights:
        if any(name in weight.path for name in ("bias", "beta", "moving_mean")):
            weight.assign(random.normal(0, 0.2, weight.shape))
        elif "moving_variance" in weight.path or "gamma" in weight.path:
            weight.assign(random.uniform(0.5, 2, weight.shape))
    for name in negative:
        model.get_layer(name).gamma.assign(-model.get_layer(name).gamma.numpy())
    return model


def net():
    """Convolution, BatchNormalization that turns signs, ReLU; depthwise, separable, dense."""
    keras.utils.set_random_seed(5)
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(8, 3, name="conv")(inputs)))
    x = L.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = L.Flatten()(L.SeparableConv2D(6, 3, name="separable")(x))
    return settle(keras.Model(inputs, L.Dense(4, name="dense")(x)), negative=["norm"])


def steps_of(kernel, axes):
    axes = {axis % kernel.ndim for axis in axes}
    return np.abs(kernel).max(tuple(i for i in range(kernel.ndim) if i not in axes), keepdims=True) / np.float32(127)


def test_terms_are_those_of_the_paper():
    # 1.2 * sigmoid(v) - 0.1, clipped; sigmoid(ln 11) = 11 / 12, sigmoid(ln 3) = 3 / 4.
    v = np.array([-5.0, -np.log(11), 0.0, np.log(3), np.log(11), 5.0], "float32")
    np.testing.assert_allclose(rectified_sigmoid(v), [0, 0, 0.5, 0.8, 1, 1], atol=1e-6)
    h = np.array([0.0, 0.25, 0.5, 0.9, 1.0], "float32")
    np.testing.assert_allclose(undecided(h, 2.0), [0, 0.75, 1, 0.36, 0], atol=1e-6)
    np.testing.assert_allclose(undecided(h, 20.0), [0, 1 - 0.5**20, 1, 1 - 0.8**20, 0], atol=1e-6)
    assert [beta_at(share) for share in (0.0, 0.2, 0.6, 1.0)] == pytest.approx([20, 20, 11, 2])


@pytest.mark.parametrize(("seed", "relu"), [(1, True), (10, False), (11, True), (15, True), (20, False)])
def test_of_all_roundings_of_eight_weights_the_best_is_found(seed, relu):
    """Where nearest is not the best. It is a local search: of seeds 0 - 23 it finds the best for 20, nearest for 11."""
    random = np.random.default_rng(seed)
    x = np.maximum(random.normal(0.5, 1.0, (128, 8)), 0).astype("float32")
    kernel = random.normal(0, 0.5, (8, 1)).astype("float32")
    behind = (lambda y: np.maximum(y, 0)) if relu else (lambda y: y)
    target = behind(x @ kernel)
    step = np.abs(kernel).max() / 3  # three bits
    both = [sorted({int(np.floor(w / step + 1e-6)), int(np.ceil(w / step - 1e-6))}) for w in kernel[:, 0]]
    everything = np.array(list(itertools.product(*both))) * step
    best = np.min(np.mean((behind(x @ everything.T) - target) ** 2, axis=0))

    def output(w, inputs):
        return ops.relu(ops.matmul(inputs, w)) if relu else ops.matmul(inputs, w)

    grid = KernelGrid(np.full((1, 1), step, "float32"), 3)
    made = adapt(kernel, grid, output, ops.convert_to_tensor(x), ops.convert_to_tensor(target), 500)

    def error(w):
        return np.mean((behind(x @ w) - target) ** 2)

    np.testing.assert_allclose(made / step, np.round(made / step), atol=1e-4)
    assert np.abs(made).max() == np.abs(kernel).max()
    assert error(np.round(kernel / step) * step) > 1.2 * best
    assert error(made) <= 1.05 * best


def test_it_is_the_file_on_the_same_grid_and_nearer_to_the_float_net():
    source = net()
    model = post_training(source, X, rounding="adaptive", equalize=False, iterations=200, verbose=0)
    rows = {row.layer: row for row in model.rounding}
    assert list(rows) == ["conv", "depthwise", "separable", "dense"]
    for row in rows.values():
        assert row.mode == "adaptive"
        assert row.moved > 0
        assert row.adaptive_mse < row.nearest_mse
    assert rows["separable"].reason == "depthwise_kernel to the nearest"
    content = tflite_export.convert(model, "int8").content
    places = [("conv", "kernel", (-1,)), ("depthwise", "kernel", (-2, -1))]
    for name, attribute, axes in [*places, ("separable", "pointwise_kernel", (-1,)), ("dense", "kernel", (-1,))]:
        before, after = (np.asarray(getattr(one.get_layer(name), attribute)) for one in (source, model))
        step = steps_of(before, axes)
        np.testing.assert_array_equal(steps_of(after, axes), step)
        integers = np.round(after / step)
        np.testing.assert_allclose(after / step, integers, atol=1e-3)
        assert np.abs(after - before).max() < np.max(step)
        assert np.sum(integers != np.round(before / step)) == rows[name].moved
        kind = {"depthwise": "DEPTHWISE_CONV_2D", "dense": "FULLY_CONNECTED"}.get(name, "CONV_2D")
        stored = kernels_of(content, kind)[int(name == "separable")][0]
        made = integers[None, ..., 0] if name == "depthwise" else np.moveaxis(integers, -1, 0)
        made = -made if name == "conv" else made  # the factor of its BatchNormalization is below zero
        np.testing.assert_array_equal(stored, made)
    again = round_adaptively(model, X, iterations=10, verbose=0)
    assert [row.mode for row in again] == ["nearest"] * 4


def test_the_error_by_layer_is_that_of_numpy():
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6,), name="x")
    source = settle(keras.Model(inputs, L.Dense(3)(L.Dense(5, activation="relu", name="first")(inputs))))
    x = RANDOM.normal(0.5, 1, (64, 6)).astype("float32")
    options = {"ranges": "min_max", "equalize": False, "bias_correction": False, "verbose": 0}
    model = post_training(source, x, rounding="adaptive", iterations=300, **options)
    row = model.rounding[0]
    scale = (x.max() - x.min()) / 255
    zero = np.round(-x.min() / scale)
    x_q = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    kernel, bias = (np.asarray(w) for w in source.get_layer("first").weights)
    step = steps_of(kernel, (-1,))
    adapted = np.asarray(model.get_layer("first").kernel)
    exact = np.maximum(x @ kernel + bias, 0)
    for made, expected in ((np.round(kernel / step) * step, row.nearest_mse), (adapted, row.adaptive_mse)):
        assert np.mean((np.maximum(x_q @ made + bias, 0) - exact) ** 2) == pytest.approx(expected, rel=0.02)


def test_a_kernel_that_would_be_worse_stays(monkeypatch):
    model = quantize_aware(net(), engine="native", calibration=X)
    before = [np.asarray(w) for w in model.net.weights]

    def away_from_zero(kernel, grid, *rest):
        whole = np.ceil(np.abs(kernel / grid.steps) - 1e-3) * grid.steps
        return np.copysign(np.minimum(whole, np.abs(kernel).max()), kernel)

    monkeypatch.setattr(rounding, "adapt", away_from_zero)
    rows = round_adaptively(model, X, verbose=0)
    assert {(row.mode, row.reason) for row in rows} == {("nearest", "its error would not be smaller")}
    assert all(row.adaptive_mse > row.nearest_mse and row.moved == 0 for row in rows)
    assert all(np.array_equal(a, b) for a, b in zip(before, [np.asarray(w) for w in model.net.weights], strict=True))


def test_zeros_stay_and_layers_without_one_kernel_are_told():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((4, 6), name="x")
    shared = L.Dense(6, name="shared")
    x = L.TimeDistributed(L.Dense(6, activation="relu"), name="times")(shared(shared(inputs)))
    x = L.LSTM(5, name="lstm")(L.EinsumDense("abc,cd->abd", (None, 6), bias_axes="d", name="einsum")(x))
    source = keras.Model(inputs, L.Dense(3, name="dense")(x))
    pruned = source.get_layer("dense").kernel
    mask = RANDOM.uniform(size=pruned.shape) > 0.5
    pruned.assign(pruned.numpy() * mask)
    data = RANDOM.normal(0, 1, (64, 4, 6)).astype("float32")
    model = post_training(source, data, rounding="adaptive", equalize=False, iterations=200, verbose=0)
    rows = {row.layer: row for row in model.rounding}
    assert [rows[name].mode for name in ("times", "einsum", "dense")] == ["adaptive"] * 3
    assert rows["shared"].reason == "it is called several times"
    assert rows["lstm"].reason == "it is no convolution or dense layer"
    after = np.asarray(model.get_layer("dense").kernel)
    assert np.all(after[~mask] == 0)
    assert np.any(after != pruned.numpy())


def test_wrong_options_are_told():
    source = keras.Sequential([keras.Input((3,)), L.Dense(2)])
    data = np.ones((4, 3), "float32")
    with pytest.raises(ValueError, match="`rounding` must be one of 'nearest', 'adaptive'; got 'adaround'"):
        post_training(source, data, rounding="adaround")
    for iterations in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`iterations` must be an integer >= 1"):
            post_training(source, data, rounding="adaptive", iterations=iterations)
    with pytest.raises(ValueError, match="`iterations=9` is for rounding='adaptive'"):
        post_training(source, data, iterations=9)
    with pytest.raises(RuntimeError, match="have not seen any data"):
        round_adaptively(quantize_aware(source, engine="native"), data)


def test_on_the_grids_of_a_scheme():
    layers = {"conv": 4, "depthwise": {"weights": "lsq"}, "dense": "ternary", "separable": "float"}
    options = {"rounding": "adaptive", "iterations": 200, "equalize": False, "verbose": 0}
    made = post_training(net(), X, layers=layers, **options)
    rows = {row.layer: row for row in made.rounding}
    assert "follows from its weights" in rows["dense"].reason
    assert rows["separable"].reason == "it stays float"
    assert [rows[name].mode for name in ("conv", "depthwise")] == ["adaptive"] * 2
    content = tflite_export.convert(made, "int8").content
    integers, scales = kernels_of(content, "CONV_2D")[0]
    assert np.abs(integers).max() == 7
    factor = np.asarray(factor_and_offset(made.net.get_layer("norm"))[0])
    places = np.asarray(made.net.get_layer("conv").kernel) * factor / scales
    np.testing.assert_allclose(np.moveaxis(integers, 0, -1), places, atol=1e-3)
