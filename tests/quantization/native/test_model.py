"""A natively quantized model is a Keras model like any other, and its file computes what it does."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from int8_file import kernels_of, on_grid, outputs_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.core.norms import reestimate_batch_norm
from kdopt.distillation import Distiller
from kdopt.pruning import GradualPruning, keep_zeros, prune
from kdopt.quantization import NativeModel, quantize_aware
from kdopt.schedules import Constant

RANDOM = np.random.default_rng(8)
X = RANDOM.normal(0.2, 1.0, (64, 8, 8, 2)).astype("float32")
Y = RANDOM.integers(0, 4, 64)


def net(dtype=None):
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 8, 2), name="image")
    x = L.Conv2D(6, 3, padding="same", use_bias=False, name="conv", dtype=dtype)(inputs)
    x = L.ReLU(dtype=dtype, name="relu")(L.BatchNormalization(name="norm", dtype=dtype)(x))
    y = L.BatchNormalization(dtype=dtype)(L.DepthwiseConv2D(3, padding="same", name="depthwise", dtype=dtype)(x))
    x = L.GlobalAveragePooling2D(dtype=dtype)(L.Add(dtype=dtype)([x, y]))
    return keras.Model(inputs, L.Dense(4, name="head", dtype=dtype)(x))


def compiled(model, **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **options)
    return model


def native(model=None, **options):
    data = None if "calibration" in options else X
    return quantize_aware(model or net(), engine="native", **{"calibration": data, **options})


def steps_beside(model, x=X[:24]):
    """Largest difference of the file from the model, in steps of its output."""
    ((got, step),) = outputs_of(tflite_export.convert(model, "int8").content, x)
    return float((np.abs(got - model.predict(x, verbose=0)) / step).max())


_COMPILED = pytest.param({"jit_compile": True, "steps_per_execution": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("options", [{}, _COMPILED])
def test_it_trains_and_the_file_is_the_model(options):
    model = compiled(native(), **{"jit_compile": False, **options})
    history = model.fit(X, Y, epochs=4, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert steps_beside(model) < 0.01
    assert [entry.mode for entry in model.report] == ["quantized"] * len(model.report)
    assert [line.split()[:2] for line in str(model.report).splitlines()] == [[e.layer, e.mode] for e in model.report]
    assert model.count_params() == net().count_params() + 2 * len(model.range_names) + 3


def test_half_precision_trains_and_exports_in_single():
    model = compiled(native(net("mixed_float16")))
    model.fit(X, Y, epochs=2, verbose=0)
    assert steps_beside(model) < 2.01  # what is predicted here is computed in float16


def test_several_replicas():
    (one, *_) = tf.config.list_logical_devices("CPU")
    with tf.distribute.MirroredStrategy([one.name]).scope():
        model = compiled(native())
    model.fit(X, Y, batch_size=16, verbose=0)
    assert steps_beside(model) < 0.01


@pytest.mark.parametrize("kind", [pytest.param("array", marks=pytest.mark.slow), "generator"])
def test_without_calibration_the_first_batches_set_the_ranges(kind):
    model = compiled(native(calibration=None))
    with pytest.raises(RuntimeError, match="have not seen any data"):
        model.predict(X, verbose=0)
    with pytest.raises(RuntimeError, match="have not seen any data"):
        tflite_export.convert(model, "int8")
    batches = ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16))
    model.fit(*((X, Y) if kind == "array" else (batches,)), verbose=0)
    assert model.calibrated
    low, high = model.range_of("image.input")
    assert (low, high) == (
        pytest.approx((X.min(), X.max()), rel=0.01) if kind == "array" else pytest.approx((low, high))
    )
    assert low < -1
    assert high > 1
    assert steps_beside(model) < 0.01


def test_calibrated_ranges_are_the_extremes_of_the_float_model():
    source = net()
    model = native(source)
    taps = keras.Model(source.inputs, [source.get_layer(name).output for name in ("relu", "head")])
    relu, head = taps.predict(X, verbose=0)
    assert model.range_of("relu.output") == pytest.approx((0.0, relu.max()), rel=1e-5)
    assert model.range_of("head.output") == pytest.approx((min(head.min(), 0), max(head.max(), 0)), rel=1e-5)
    assert "conv.output" not in model.range_names  # folded and fused: no tensor of the file


def test_ranges_follow_training_as_the_equation_says():
    inputs = keras.Input((3,), name="x")
    model = native(keras.Model(inputs, L.Dense(1, name="out")(inputs)), calibration=None)
    x = RANDOM.normal(size=(12, 3)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(((x[i : i + 4], np.ones((4, 1))) for i in (0, 4, 8)), verbose=0)
    low, high = 0.0, 0.0
    for n in range(3):
        decay = min(0.99, n / (n + 1))
        batch = x[4 * n : 4 * n + 4]
        low = decay * low + (1 - decay) * min(batch.min(), 0)
        high = decay * high + (1 - decay) * max(batch.max(), 0)
    assert model.range_of("x.input") == pytest.approx((low, high), rel=1e-5)


def test_weights_of_the_file_are_the_trained_grid():
    model = compiled(native())
    model.fit(X, Y, epochs=2, verbose=0)
    content = tflite_export.convert(model, "int8").content
    plain = model.strip()
    ((conv, conv_scales),) = kernels_of(content, "CONV_2D")
    norm = plain.get_layer("norm")
    factor = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    kernel = plain.get_layer("conv").kernel.numpy() * factor
    scales = np.abs(kernel).max((0, 1, 2)) / 127
    np.testing.assert_allclose(conv_scales, scales, rtol=1e-5)
    np.testing.assert_array_equal(conv, np.round(kernel / scales).transpose(3, 0, 1, 2))
    ((head, head_scales),) = kernels_of(content, "FULLY_CONNECTED")
    kernel = plain.get_layer("head").kernel.numpy()
    np.testing.assert_allclose(head_scales, np.abs(kernel).max(0) / 127, rtol=1e-6)
    np.testing.assert_array_equal(head, np.round(kernel / (np.abs(kernel).max(0) / 127)).T)


def test_nested_shared_and_subclassed_models():
    inputs = keras.Input((8, 8, 2))
    parts = [keras.Input((8, 8, 2)), L.Conv2D(2, 3, padding="same", name="c"), L.BatchNormalization(), L.ReLU()]
    block = keras.Sequential(parts, name="block")
    model = compiled(native(keras.Model(inputs, L.Dense(4)(L.Flatten()(block(block(inputs)))))))
    model.fit(X, Y, verbose=0)
    assert steps_beside(model) < 0.01

    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv, self.head = L.Conv2D(4, 3, activation="relu"), L.Dense(4)

        def call(self, x):
            return self.head(ops.mean(self.conv(x), axis=(1, 2)))

        def get_config(self):
            return {}

    source = Own()
    source(X[:2])
    model = compiled(native(source))
    model.fit(X, Y, verbose=0)
    assert steps_beside(model) < 0.01
    assert isinstance(model.strip(), Own)


def test_several_inputs_and_outputs_by_name():
    a, b = keras.Input((8, 8, 2), name="a"), keras.Input((5,), name="b")
    both = L.Concatenate()([L.Flatten()(L.Conv2D(3, 3)(a)), L.Dense(4)(b)])
    outputs = {"u": L.Dense(3, name="u")(both), "v": L.Dense(2, activation="sigmoid", name="v")(both)}
    data = {"b": RANDOM.normal(size=(64, 5)).astype("float32"), "a": X}
    model = native(keras.Model({"a": a, "b": b}, outputs), calibration=data)
    model.compile("adam", {"u": "mse", "v": "mse"})
    model.fit(data, {"u": np.ones((64, 3)), "v": np.ones((64, 2))}, verbose=0)
    assert set(model.predict(data, verbose=0)) == {"u", "v"}
    assert sorted(info.name for info in tflite_export.convert(model, "int8").outputs) == ["u", "v"]


def test_masks_hold_and_a_distiller_teaches():
    sparse, _ = prune(net(), 0.5)
    model = compiled(native(sparse))
    with keep_zeros(model):
        model.fit(X, Y, verbose=0)
    assert np.mean(model.strip().get_layer("conv").kernel.numpy() == 0) == 0.5
    model = compiled(native())
    model.fit(X, Y, verbose=0, callbacks=[GradualPruning(Constant(0.5))])
    assert np.mean(model.get_layer("head").kernel.numpy() == 0) == 0.5
    student = native()
    both = compiled(Distiller(student=student, teacher=net()))
    assert "soft_targets_loss" in both.fit(X, Y, verbose=0).history
    assert steps_beside(student) < 0.01


def test_save_load_and_strip(tmp_path):
    model = compiled(native())
    model.fit(X, Y, verbose=0)
    model.save(tmp_path / "qat.keras")
    loaded = keras.models.load_model(tmp_path / "qat.keras")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    assert loaded.calibrated
    assert tflite_export.convert(loaded, "int8").content == tflite_export.convert(model, "int8").content
    loaded.fit(X, Y, verbose=0)
    model.save_weights(tmp_path / "q.weights.h5")
    other = native(calibration=None)
    other.load_weights(tmp_path / "q.weights.h5")
    np.testing.assert_array_equal(compiled(other).predict(X, verbose=0), model.predict(X, verbose=0))
    plain = model.strip()
    assert type(plain) is type(net())
    for one, same in zip(plain.weights, model.net.weights, strict=True):
        np.testing.assert_array_equal(one, same)
    assert tflite_export.convert(plain, "float32").precision == "float32"


def test_regularizers_and_frozen_layers_count_as_before():
    def made():
        keras.utils.set_random_seed(4)
        inputs = keras.Input((8, 8, 2))
        options = {"kernel_regularizer": "l2", "activity_regularizer": keras.regularizers.L1(0.1)}
        x = L.Conv2D(3, 3, activation="relu", **options)(inputs)
        x = L.BatchNormalization(name="norm")(L.Conv2D(3, 3, activity_regularizer=keras.regularizers.L2(0.1))(x))
        return keras.Model(inputs, L.Dense(4)(L.Flatten()(x)))

    source, model = compiled(made()), compiled(native(made()))
    assert model.evaluate(X, Y, verbose=0)[0] == pytest.approx(source.evaluate(X, Y, verbose=0)[0], rel=0.03)
    model.get_layer("norm").trainable = False
    before = model.get_layer("norm").moving_mean.numpy()
    compiled(model).fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_layer("norm").moving_mean.numpy(), before)


def test_what_cannot_be_done_is_refused():
    model = native()
    with pytest.raises(TypeError, match="is quantized already"):
        native(model)
    with pytest.raises(ValueError, match=r"'native'.*got 'natve'|natve.*native"):
        quantize_aware(net(), engine="natve")
    with pytest.raises(ValueError, match="must have the shape"):
        native(calibration=X[:, :4])
    with pytest.raises(ValueError, match="NaN"):
        native(calibration=X * np.nan)
    broken = net()
    broken.get_layer("head").kernel.assign(broken.get_layer("head").kernel * np.nan)
    with pytest.raises(ValueError, match="'head' is not finite on the calibration data"):
        native(broken)
    extended = net()
    extended.get_layer("head").enable_lora(2)
    with pytest.raises(ValueError, match="'head' has LoRA weights.*Way out"):
        native(extended)
    with pytest.raises(Exception, match="strip"):
        tflite_export.convert(model, "float32")


def test_statistics_are_estimated_with_the_rounding():
    model = compiled(native())
    before = model.get_layer("norm").moving_variance.numpy()
    report = reestimate_batch_norm(model, X)
    assert report.skipped == ()
    assert len(report.done) == 2
    after = model.get_layer("norm").moving_variance.numpy()
    assert np.abs(after - before).max() > 0.1
    plain = net()
    taps = keras.Model(plain.inputs, plain.get_layer("conv").output)
    np.testing.assert_allclose(after, taps.predict(X, verbose=0).var((0, 1, 2)), rtol=0.05)
    assert steps_beside(model) < 0.01


def ranges(model):
    return np.asarray(model.ranges.limits)


def test_ranges_that_are_frozen_stay_and_go_on():
    model = compiled(native())
    model.freeze_ranges()
    before = ranges(model)
    model.fit(3 * X, Y, verbose=0)
    np.testing.assert_array_equal(ranges(model), before)
    assert steps_beside(model) < 0.01
    model.freeze_ranges(False)
    model.fit(3 * X, Y, verbose=0)
    assert np.abs(ranges(model) - before).max() > 0.01
    with pytest.raises(RuntimeError, match="have not seen any data yet"):
        native(calibration=None).freeze_ranges()


def test_before_its_delay_it_trains_as_the_float_model_does():
    def trained(model):
        model.compile(keras.optimizers.SGD(0.05), "mse")
        return model.fit(X, np.eye(4)[Y], batch_size=16, epochs=2, shuffle=False, verbose=0).history["loss"]

    exact, late = trained(net()), trained(native(delay=4))  # an epoch is 4 steps
    assert late[0] == pytest.approx(exact[0], rel=1e-5)
    assert late[1] != pytest.approx(exact[1], rel=1e-5)
    assert trained(native())[0] != pytest.approx(exact[0], rel=1e-5)
    model = native(delay=100)
    loaded = NativeModel.from_config(model.get_config())
    assert loaded.delay == 100


def test_the_widest_range_ever_seen():
    inputs = keras.Input((3,), name="x")
    model = native(keras.Model(inputs, L.Dense(1)(inputs)), calibration=None, observer="min_max")
    x = RANDOM.normal(size=(12, 3)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(((x[i : i + 4], np.ones((4, 1))) for i in (0, 4, 8)), verbose=0)
    assert model.range_of("x.input") == pytest.approx((x.min(), x.max()))
    with pytest.raises(ValueError, match="Did you mean 'ema'"):
        native(observer="emma")
    with pytest.raises(ValueError, match="`observer`: for engine='native' only"):
        quantize_aware(net(), observer="ema")
    with pytest.raises(ValueError, match="delay"):
        native(delay=-1)


def test_a_net_of_convolutions_is_the_file_to_the_last_integer():
    inputs = keras.Input((12, 12, 2))
    x = L.MaxPooling2D()(L.Conv2D(6, 3, activation="relu", padding="same")(inputs))
    x = L.ReLU(6.0)(L.DepthwiseConv2D(3, padding="same")(x))
    source = keras.Model(inputs, L.Dense(5)(L.Flatten()(L.Conv2D(4, 1)(x))))
    x = RANDOM.normal(size=(400, 12, 12, 2)).astype("float32")
    model = native(source, calibration=x[:64])
    content = tflite_export.convert(model, "int8").content
    ((got, step),) = outputs_of(content, x)
    predicted = model.predict(on_grid(content, x)[1], verbose=0)
    np.testing.assert_array_equal(np.round(got / step), np.round(predicted / step))
