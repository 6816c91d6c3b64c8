"""Schemes and exceptions by layer: the file has the very integers and steps that were trained."""

import re

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import WEIGHT_GRIDS, NativeModel, WeightGrid, quantize_aware
from kdopt.quantization.native.kernels import kernels_of
from tflite_export.tflite import records

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (48, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 4, 48)


def net():
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.Conv2D(6, 3, padding="same", use_bias=False, name="conv")(inputs)
    x = y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.DepthwiseConv2D(3, padding="same", name="depthwise", bias_initializer="random_normal")(x)
    x = L.SeparableConv2D(6, 3, padding="same", name="separable", activation="relu")(x)
    x = L.Flatten()(L.Conv2DTranspose(4, 2, 2, name="up")(L.MaxPooling2D()(L.Add(name="add")([x, y]))))
    x = L.Dense(7, name="hidden", activation="relu", bias_initializer="random_normal")(x)
    return keras.Model(inputs, L.Dense(4, name="head")(x))


def fitted(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)  # six batches: half the time
    model.fit(X, Y, epochs=2, batch_size=16, verbose=0)
    return model


def native(layers=None, **options):
    return quantize_aware(net(), "native", layers=layers, calibration=X, **options)


def kernels_in(content):
    """Layer -> (integers by channel, scales, type) of the file, whose operations come in the order of the layers."""
    names = iter(("conv", "depthwise", "spatial", "pointwise", "up", "hidden", "head"))
    found = {}
    for op in records.ops(content):
        place = {"DEPTHWISE_CONV_2D": 3}.get(op.name, 0)
        if len(op.inputs) > 2 and op.inputs[1].scales:
            kernel = op.inputs[1]
            matrix = np.moveaxis(kernel.data, place, 0).reshape(kernel.shape[place], -1)
            found[next(names)] = matrix, np.array(kernel.scales), kernel.dtype
    return found


def by_channel(variable, axes):
    values = np.asarray(variable, "float64")
    return np.moveaxis(values, axes, range(len(axes))).reshape(int(np.prod([values.shape[a] for a in axes])), -1)


def test_every_grid_is_in_the_file_to_the_last_integer():
    layers = {
        "conv": "power_of_two",
        "depthwise": "binary",
        "separable": "ternary",
        "hidden": 4,
        "head": {"weights": "lsq", "per_channel": False},
        "up": {"weights": "lsq"},
    }
    model = fitted(native(layers))
    file = tflite_export.convert(model, "int8")
    ((got, step),) = outputs_of(file.content, X[:16])
    assert np.abs(got - model.predict(X[:16], verbose=0)).max() / step < 0.01
    stored = kernels_in(file.content)
    # From the weights alone, by the formulas of the papers.
    w = by_channel(model.net.get_layer("depthwise").kernel, (2, 3))
    integers, scales, _ = stored["depthwise"]
    np.testing.assert_array_equal(integers, np.where(w >= 0, 1, -1))
    np.testing.assert_allclose(scales, np.abs(w).mean(axis=1), rtol=1e-5)
    w = by_channel(model.net.get_layer("separable").pointwise_kernel, (3,))
    integers, scales, _ = stored["pointwise"]
    kept = np.abs(w) > 0.7 * np.abs(w).mean(axis=1, keepdims=True)
    np.testing.assert_array_equal(integers, np.sign(w) * kept)
    np.testing.assert_allclose(scales, (np.abs(w) * kept).sum(axis=1) / kept.sum(axis=1), rtol=1e-5)
    w = by_channel(model.net.get_layer("hidden").kernel, (1,))
    integers, scales, dtype = stored["hidden"]
    np.testing.assert_array_equal(integers, np.round(w / (np.abs(w).max(axis=1, keepdims=True) / 7)))
    assert dtype == "int4"
    w = by_channel(model.net.get_layer("head").kernel, (1,))
    integers, scales, _ = stored["head"]
    learned = {v.path.rsplit("/")[-1]: np.asarray(v) for v in model.steps.trainable_variables}
    np.testing.assert_allclose(scales, np.broadcast_to(learned["head_kernel"].ravel() / 127, 4), rtol=1e-5)
    np.testing.assert_array_equal(integers, np.clip(np.round(w / scales[0]), -127, 127))
    integers, _, _ = stored["conv"]
    assert set(np.abs(integers).ravel()) <= {0, 1, 2, 4, 8}
    assert set(learned) == {"head_kernel", "up_kernel"}


def test_learned_steps_and_ranges_train_save_and_load(tmp_path):
    model = native({re.compile("."): "lsq"}, observer="lsq")
    before = {v.path: np.array(v) for v in model.steps.trainable_variables}
    start = np.array(model.ranges.learned)
    fitted(model)
    assert len(before) == 7
    assert all(np.abs(np.asarray(v) - before[v.path]).max() > 1e-5 for v in model.steps.trainable_variables)
    assert np.abs(np.asarray(model.ranges.learned) - start).max() > 1e-4
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    assert loaded.get_config()["layers"].keys() == model.get_config()["layers"].keys()
    for name, (low, high) in loaded.all_ranges().items():
        assert low in (0.0, pytest.approx(-high * 128 / 127, rel=1e-5)), name


@pytest.mark.slow
def test_frozen_learned_ranges_stay():
    model = fitted(native(observer="lsq_plus"))
    model.freeze_ranges()
    kept = np.array(model.ranges.limits)
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.ranges.limits, kept)


def test_a_generator_starts_learned_ranges_with_its_first_batch():
    model = quantize_aware(net(), "native", observer="lsq_plus")
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(((X[:16], Y[:16]) for _ in range(1)), steps_per_epoch=1, verbose=0)
    low, high = model.range_of("image.input")
    np.testing.assert_allclose([low, high], [X[:16].min(), X[:16].max()], rtol=1e-5)


@pytest.mark.parametrize(
    "observer",
    ["ema", pytest.param("min_max", marks=pytest.mark.slow), pytest.param("percentile", marks=pytest.mark.slow)],
)
def test_a_batch_of_zeros_leaves_the_ranges(observer):
    model = quantize_aware(net(), "native", observer=observer, calibration=X)
    before = model.all_ranges()["image.input"]
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(np.zeros_like(X), Y, verbose=0)
    assert model.all_ranges()["image.input"] == before


_PLAIN = [pytest.param(weights, marks=pytest.mark.slow) for weights in (4, "binary", "ternary")]


@pytest.mark.parametrize("weights", ["lsq", "power_of_two", *_PLAIN])
def test_a_kernel_of_zeros_is_one_on_every_grid(weights):
    source = net()
    source.get_layer("hidden").kernel.assign(np.zeros(source.get_layer("hidden").kernel.shape))
    model = quantize_aware(source, "native", layers={"hidden": weights}, calibration=X)
    integers, _, _ = kernels_in(tflite_export.convert(model, "int8").content)["hidden"]
    assert not np.any(integers)


_OTHERS = [pytest.param(weights, marks=pytest.mark.slow) for weights in (4, "lsq")]


@pytest.mark.parametrize("weights", ["ternary", {"per_channel": False}, *_OTHERS])
def test_a_bias_that_is_large_beside_its_kernel_gets_room(weights):
    source = net()
    hidden = source.get_layer("hidden")
    hidden.kernel.assign(hidden.kernel * 3e-9)
    hidden.bias.assign(np.ones(7))
    model = quantize_aware(source, "native", layers={"hidden": weights}, calibration=X)
    ((got, step),) = outputs_of(tflite_export.convert(model, "int8").content, X[:16])
    assert np.abs(got - model.predict(X[:16], verbose=0)).max() / step < 1.01


def test_layers_that_stay_float_are_float_in_the_file():
    model = fitted(native({"head": "float", "conv": "float"}))
    file = tflite_export.convert(model, "int8")
    found = records.ops(file.content)
    kinds = [op.name for op in found]
    assert [op.name for op in found if op.is_float] == ["CONV_2D", "FULLY_CONNECTED"]
    assert kinds.count("DEQUANTIZE") == kinds.count("QUANTIZE") == 2
    kernel = next(op.inputs[1].data for op in reversed(found) if op.name == "FULLY_CONNECTED")
    np.testing.assert_array_equal(kernel, np.transpose(model.net.get_layer("head").kernel))
    bias = next(op.inputs[2].data for op in reversed(found) if op.name == "FULLY_CONNECTED")
    np.testing.assert_array_equal(bias, model.net.get_layer("head").bias)
    ((got, step),) = outputs_of(file.content, X[:16])
    assert np.abs(got - model.predict(X[:16], verbose=0)).max() / step < 1.01
    modes = {entry.layer: entry for entry in model.report}
    assert modes["head"].mode == "float"
    assert "as `layers` says" in modes["head"].reason


def test_symmetric_and_per_tensor():
    model = native({"add": {"symmetric": True}, "hidden": {"per_channel": False}, "depthwise": {"symmetric": True}})
    file = tflite_export.convert(model, "int8")
    low, high = model.range_of("add.output")
    assert low == pytest.approx(-high * 128 / 127)
    zeros = {op.name: op.outputs[0].zero_points for op in records.ops(file.content)}
    assert zeros["ADD"] == (0,)
    w = by_channel(model.net.get_layer("hidden").kernel, (1,))
    integers, scales, _ = kernels_in(file.content)["hidden"]
    np.testing.assert_allclose(scales, np.abs(w).max() / 127, rtol=1e-5)
    np.testing.assert_array_equal(integers, np.round(w / (np.abs(w).max() / 127)))


def test_activations_of_16_bits():
    model = fitted(native(scheme="int16x8"))
    file = tflite_export.convert(model, "int16x8")
    assert {info.dtype for info in (*file.inputs, *file.outputs)} == {"int16"}
    assert {info.zero_point for info in (*file.inputs, *file.outputs)} == {0}
    low, high = model.range_of("head.output")
    assert file.outputs[0].scale == pytest.approx((high - low) / 65535, rel=1e-5)
    scale = np.float32(file.inputs[0].scale)
    x = np.clip(np.round(X / scale), -32768, 32767) * scale
    steps = np.abs(file.predict(x) - model.predict(x, verbose=0)) / file.outputs[0].scale
    assert steps.max() < 3
    assert steps.mean() < 0.2
    # A hundred times finer than int8.
    exact = net()
    exact.set_weights(model.strip().get_weights())
    assert np.abs(model.predict(x, verbose=0) - exact.predict(x, verbose=0)).max() < 0.05


@pytest.mark.parametrize(
    ("scheme", "kinds"),
    [pytest.param("weight_int8", {"int8"}, marks=pytest.mark.slow), ("weight_int4", {"int8", "int4"})],
)
def test_weights_alone(scheme, kinds):
    model = fitted(quantize_aware(net(), "native", scheme=scheme))  # nothing to calibrate
    file = tflite_export.convert(model, "weight_int8")
    np.testing.assert_allclose(file.predict(X), model.predict(X, verbose=0), atol=2e-6)
    stored = [op.inputs[0] for op in records.ops(file.content) if op.name == "DEQUANTIZE"]
    assert {tensor.dtype for tensor in stored} == kinds
    assert len(stored) == 7
    assert not model.range_names
    modes = {entry.layer: entry.mode for entry in model.report}
    assert modes["head"] == modes["norm"] == "quantized"
    assert modes["add"] == "float"


@pytest.mark.parametrize(
    ("scheme", "precision", "message"),
    [
        ("int16x8", "int8", "for 'int16x8'"),
        ("weight_int8", "int8", "for 'weight_int8'"),
        ("int8", "int16x8", "'int8'"),
    ],
)
def test_another_precision_is_refused(scheme, precision, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.convert(native(scheme=scheme), precision, X)


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ({"hiden": 4}, ValueError, "Did you mean 'hidden'"),
        ({"relu": 4}, ValueError, "relu has no kernel"),
        ({"norm": {"symmetric": True}}, ValueError, "no output with a range of its own"),
        ({"hidden": 9}, ValueError, r"\[2, 8\]"),
        ({"hidden": "trenary"}, ValueError, "Did you mean 'ternary'"),
        ({"hidden": {"bits": 4}}, ValueError, "known: weights, per_channel, symmetric"),
        ({"hidden": {"per_channel": 1}}, ValueError, "`per_channel` must be True or False"),
        ({L.LSTM: 4}, ValueError, "no such layer"),
        ({3: 4}, TypeError, "made by re.compile"),
        (["hidden"], TypeError, "must be a dict"),
    ],
)
def test_exceptions_that_cannot_be_met(layers, error, message):
    with pytest.raises(error, match=message):
        native(layers)


def test_what_is_for_the_native_engine_alone():
    with pytest.raises(ValueError, match="`layers`, `folding`"):
        quantize_aware(net(), layers={"hidden": 4}, folding=True)


def test_a_grid_of_ones_own():
    @WEIGHT_GRIDS.register("thirds")
    class Thirds(WeightGrid):
        bits = 3

        def step(self, weights, axes):
            return ops.full((1,) * len(weights.shape), 0.01)

        def integers(self, weights, step, axes):
            return ops.clip(ops.round(weights / step / 3) * 3, -3, 3)

    try:
        model = native({"hidden": "thirds"})
        integers, scales, _ = kernels_in(tflite_export.convert(model, "int8").content)["hidden"]
    finally:
        del WEIGHT_GRIDS._classes["thirds"]
    assert set(integers.ravel()) == {-3, 0, 3}
    np.testing.assert_allclose(scales, 0.01, rtol=1e-5)


def test_what_has_no_16_bits_in_a_trained_file_is_refused():
    inputs = keras.Input((4,))
    for build in (
        lambda x: L.Dense(2, activation="softmax", name="odd")(x),
        lambda x: L.LSTM(2, name="odd")(L.Reshape((2, 2))(x)),
    ):
        with pytest.raises(ValueError, match="'odd.* has a sigmoid, tanh, softmax.*end in logits"):
            quantize_aware(keras.Model(inputs, build(inputs)), "native", scheme="int16x8")


def test_shared_layers_and_powers_of_two_in_dense_ones():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    shared = L.Dense(6, activation="relu", name="shared", bias_initializer="random_normal")
    model = keras.Model(inputs, L.Dense(3, name="head")(shared(shared(inputs))))
    model.get_layer("head").kernel.assign(np.asarray(model.get_layer("head").kernel) * [1, 0, 1])
    model.get_layer("head").bias.assign([0.1, 0.2, 0.3])
    x = RANDOM.normal(0, 1, (32, 6)).astype("float32")
    made = quantize_aware(model, "native", calibration=x, layers={"shared": "lsq", "head": "power_of_two"})
    file = tflite_export.convert(made, "int8")
    ((got, step),) = outputs_of(file.content, x)
    assert np.abs(got - made.predict(x, verbose=0)).max() / step < 0.01
    assert np.abs(got[:, 1] - 0.2).max() < step  # a channel without weights has its bias


def test_all_kernels_are_known_by_layer_and_axes():
    placement = NativeModel(net(), X)._hidden.placement
    found = [(layer, variable.name, axes) for layer, variable, axes in kernels_of(placement)]
    assert found == [
        ("conv", "kernel", (-1,)),
        ("depthwise", "kernel", (-2, -1)),
        ("separable", "depthwise_kernel", (-2, -1)),
        ("separable", "pointwise_kernel", (-1,)),
        ("up", "kernel", (-2,)),
        ("hidden", "kernel", (-1,)),
        ("head", "kernel", (-1,)),
    ]
