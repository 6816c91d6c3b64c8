"""What attacks on schemes and patched files found: each was silently wrong or crashed."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from int8_file import interpreter
from keras import layers as L

import tflite_export
from kdopt.quantization import Quantized, quantize_aware
from kdopt.quantization.learned_ranges import LearnedStepRange, ParameterizedClipping
from tflite_export.tflite import records

X = np.random.default_rng(3).normal(0, 1, (16, 6)).astype("float32")


def beside(model, *arrays):
    """Largest difference of the file from the model, in steps, one an output; inputs on the file's grid."""
    content = tflite_export.convert(model, "int8").content
    found = interpreter(content)
    given, taken = found.get_input_details(), found.get_output_details()
    seen, rows = [], []
    for entry, x in zip(given, arrays, strict=True):
        scale, zero = entry["quantization"]
        integers = np.clip(np.round(x / scale) + zero, -128, 127).astype("int8")
        rows.append(integers)
        seen.append((integers.astype("float32") - zero) * np.float32(scale))
    expected = keras.tree.flatten(model.predict(seen if len(seen) > 1 else seen[0], verbose=0))
    worst = [0.0] * len(taken)
    for place in range(len(arrays[0])):
        for entry, integers in zip(given, rows, strict=True):
            found.set_tensor(entry["index"], integers[place : place + 1])
        found.invoke()
        for number, entry in enumerate(taken):
            scale, zero = entry["quantization"]
            made = (found.get_tensor(entry["index"]).astype("float32") - zero) * scale
            worst[number] = max(worst[number], float(np.abs(made - expected[number][place : place + 1]).max() / scale))
    return worst


def dense_net(after, **options):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    return keras.Model(inputs, L.Dense(3, name="last")(after(L.Dense(4, name="a", **options)(inputs))))


_SLOW = [pytest.param(layers, marks=pytest.mark.slow) for layers in ({"a": "float", "b": "float"}, {"b": 4})]


@pytest.mark.parametrize("layers", [{"a": 4, "b": 4}, {"b": "float"}, *_SLOW])
def test_equal_kernels_keep_their_own_biases_and_schemes(layers):
    keras.utils.set_random_seed(1)
    inputs, others = keras.Input((6,)), keras.Input((6,))
    a, b = (
        L.Dense(4, name=name, bias_initializer=keras.initializers.Constant(c)) for name, c in (("a", 1), ("b", 0.5))
    )
    source = keras.Model([inputs, others], [a(inputs), b(others)])
    b.kernel.assign(a.kernel)
    model = quantize_aware(source, "native", layers=layers, calibration=[X, X])
    assert max(beside(model, X, X[::-1])) < 1.01


AFTER = {"number": lambda x: x + 3.0, "hard_sigmoid": keras.activations.hard_sigmoid}
BIASES = {"none": {"use_bias": False}, "zero": {}, "random": {"bias_initializer": "random_normal"}}
WEIGHTS = {"8": None, "4": {"a": 4}, "float": {"a": "float"}}
FAST = [
    ("none", "number", "8"),
    ("none", "hard_sigmoid", "4"),
    ("zero", "number", "float"),
    ("random", "hard_sigmoid", "8"),
]
BIASED = list(itertools.product(BIASES, AFTER, WEIGHTS))


@pytest.mark.parametrize(
    ("bias", "after", "weights"), [pytest.param(*one, marks=[pytest.mark.slow] * (one not in FAST)) for one in BIASED]
)
def test_a_number_that_the_converter_adds_to_a_bias(bias, after, weights):
    options, layers = BIASES[bias], WEIGHTS[weights]
    model = quantize_aware(dense_net(AFTER[after], **options), "native", layers=layers, calibration=X)
    assert max(beside(model, X)) < 1.01


def test_a_layer_of_a_nested_model_is_itself():
    inner = keras.Sequential([keras.Input((6,)), L.Dense(5, name="d"), L.Dense(4, name="e")], name="inner")
    inputs = keras.Input((6,))
    model = keras.Model(inputs, L.Dense(3, name="d")(inner(inputs)))
    report = {row.layer: row.reason for row in quantize_aware(model, "native", layers={inner.layers[0]: 4}).report}
    assert "4 bits" in report["inner.d"]
    assert "4 bits" not in report["d"]


def test_norms_alone_are_frozen_too():
    source = dense_net(lambda x: L.BatchNormalization(name="norm")(L.ReLU()(x)))
    model = quantize_aware(source, "native", calibration=X, freeze_batch_norm=0)
    model.compile("sgd", "mse", run_eagerly=True)
    before = np.array(model.net.get_layer("norm").moving_mean)
    model.fit(X, np.zeros((16, 3)), verbose=0)
    np.testing.assert_array_equal(model.net.get_layer("norm").moving_mean, before)


def test_activity_regularizers_count_once():
    losses = []
    for options in ({}, {"losses": {"cross_entropy": 1e-9}}):
        source = dense_net(L.ReLU(), activity_regularizer=keras.regularizers.L2(1.0))
        model = quantize_aware(source, "native", calibration=X, **options)
        model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
        losses.append(float(model.train_on_batch(X, np.zeros((16, 3)))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("observer", [pytest.param("pact", marks=pytest.mark.slow), "lsq"])
def test_learned_ranges_go_on_where_they_were_frozen(observer):
    model = quantize_aware(dense_net(L.ReLU()), "native", calibration=X, observer=observer)
    model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1), "mse")
    model.freeze_ranges()
    kept = np.array(model.ranges.limits)
    model.fit(X, np.zeros((16, 3)), epochs=5, verbose=0)
    model.freeze_ranges(False)
    model.optimizer.learning_rate = 0.0
    model.train_on_batch(X, np.zeros((16, 3)))
    np.testing.assert_allclose(model.ranges.limits, kept, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{"losses": {"mse": 1.0}}, {"observer": "lsq"}, {"layers": {"a": {"symmetric": True}}}], ids=str
)
def test_what_weights_alone_cannot_follow_is_refused(options):
    with pytest.raises(ValueError, match="activations stay float|no output with a range"):
        quantize_aware(dense_net(L.ReLU()), "native", scheme="weight_int8", **options)


def test_folding_without_a_norm_is_refused():
    with pytest.raises(ValueError, match="`folding`: nothing to do it to, the model has no BatchNormalization"):
        quantize_aware(dense_net(L.ReLU()), "native", folding=True)


def test_what_is_not_trainable_does_not_train():
    source = dense_net(L.ReLU())
    source.get_layer("a").trainable = False
    assert not quantize_aware(source, "native", layers={"a": "lsq"}, calibration=X).steps.trainable_variables
    layer = Quantized(L.Dense(3))
    layer(X, training=True)
    layer.trainable = False
    kept = np.array(layer.ranges.limits)
    layer(10 * X, training=True)
    np.testing.assert_array_equal(layer.ranges.limits, kept)


def test_symmetric_sums_save_and_load(tmp_path):
    inputs = keras.Input((6,))
    source = keras.Model(inputs, L.Add(name="add")([L.Dense(4)(inputs), L.Dense(4)(inputs)]))
    model = quantize_aware(source, "native", layers={"add": {"symmetric": True}}, calibration=X)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"observer": "lsq", "layers": {L.Dense: "lsq"}}, marks=pytest.mark.slow)],
    ids=["ema", "lsq"],
)
def test_a_global_policy_of_half_precision(options):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = quantize_aware(dense_net(L.ReLU()), "native", calibration=X, **options)
        model.compile("adam", "mse", run_eagerly=True)
        model.fit(X, np.zeros((16, 3)), verbose=0)
        assert max(beside(model, X)) < 3.01
    finally:
        keras.config.set_dtype_policy("float32")


def test_masks_stop_at_a_wrapped_layer():
    with pytest.raises(ValueError, match="does not compute with masks"):
        Quantized(L.LSTM(4, unroll=True))(L.Masking()(keras.Input((5, 2))))


@pytest.mark.parametrize("grid", ["lsq", "ternary", pytest.param(4, marks=pytest.mark.slow)])
def test_negative_factors_of_a_norm(grid):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    norm = L.BatchNormalization(gamma_initializer=keras.initializers.Constant(-1.5), beta_initializer="random_normal")
    model = keras.Model(inputs, norm(L.Dense(4, name="a", use_bias=False)(inputs)))
    assert max(beside(quantize_aware(model, "native", layers={"a": grid}, calibration=X), X)) < 0.01


def test_kernels_wait_for_the_delay():
    model = quantize_aware(dense_net(L.ReLU()), "native", layers={"a": 2}, calibration=X, delay=10)
    np.testing.assert_allclose(model(X, training=True), model.strip()(X), atol=1e-5)


def test_a_learned_step_covers_what_is_only_negative():
    low, high = LearnedStepRange().limits(np.array([-2.0, 0.5], "float32"), False, 4)
    assert float(low) == pytest.approx(-2.0, rel=1e-5)
    assert float(high) == pytest.approx(2.0 * 127 / 128, rel=1e-5)


def test_half_precision_keeps_its_learned_steps():
    inputs = keras.Input((6,))
    source = keras.Model(inputs, L.Dense(3, name="a", dtype="mixed_float16", bias_initializer="random_normal")(inputs))
    model = quantize_aware(source, "native", layers={"a": "lsq"}, calibration=X)
    (limit,) = model.steps.trainable_variables
    limit.assign(limit * 0.5)
    stored = records.ops(tflite_export.convert(model, "int8").content)
    (kernel,) = (op.inputs[1] for op in stored if op.name == "FULLY_CONNECTED")
    np.testing.assert_allclose(kernel.scales, np.ravel(limit) / 127, rtol=1e-5)


def test_the_target_of_the_cross_entropy_is_a_constant():
    model = quantize_aware(dense_net(L.ReLU()), "native", calibration=X, losses={"cross_entropy": 1.0}, delay=10)
    with tf.GradientTape() as tape:
        model(X, training=True)
        (loss,) = model.losses
    # Without rounding p = q: the gradient of -sum p log q is then 0 for a constant p, that of the entropy is not.
    gradients = tape.gradient(loss, [v.value for v in model.net.trainable_variables])
    assert max(float(tf.reduce_max(tf.abs(g))) for g in gradients) < 1e-5


def test_a_wrapped_layer_adds_the_penalty_of_its_ranges():
    layer = Quantized(L.Dense(3), observer=ParameterizedClipping(decay=0.5))
    layer(X, training=True)
    layer(X, training=True)
    expected = 0.5 * np.square(np.asarray(layer.ranges.learned)).sum()
    assert float(layer.losses[-1]) == pytest.approx(expected, rel=1e-4)
