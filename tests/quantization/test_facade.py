"""The quantized model is a Keras 3 model: it trains, saves, strips and leaves the process as it was."""

import importlib
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from kdopt.pruning.callbacks import GradualPruning
from kdopt.quantization import LayerReport, QuantizedModel, post_training, quantize_aware
from kdopt.schedules import Polynomial

RANDOM = np.random.default_rng(5)
X = RANDOM.normal(0.5, 1.5, (64, 6, 6, 2)).astype("float32")
Y = RANDOM.integers(0, 3, 64).astype("int32")


@keras.saving.register_keras_serializable("kdopt_test")
class Shifted(layers.Layer):
    """Becomes an opaque layer of the net."""

    def build(self, input_shape):
        self.shift = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="shift")

    def call(self, inputs):
        return inputs + self.shift


def small(**dense):
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, name="conv", kernel_regularizer=keras.regularizers.L2(0.01))(inputs)
    x = layers.BatchNormalization(name="norm", momentum=0.5)(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Multiply(name="square")([x, x])
    x = Shifted(name="shift")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(inputs, layers.Dense(3, name="dense", activation="softmax", **dense)(x), name="small")


def compiled(model, rate=0.05):
    model.compile(keras.optimizers.SGD(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def values(model):
    return [keras.ops.convert_to_numpy(v) for v in model.weights]


@pytest.fixture
def trained():
    model = compiled(quantize_aware(small(), calibration=X))
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0)
    return model


def test_is_a_keras_model_that_learns():
    source = small()
    before = values(source)
    model = compiled(quantize_aware(source, calibration=X))
    assert isinstance(model, keras.Model)
    assert [layer.name for layer in model.layers][:3] == ["image", "conv", "norm"]
    history = model.fit(X, Y, batch_size=16, epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0] - 0.02
    for a, b in zip(before, values(source), strict=True):
        np.testing.assert_array_equal(a, b)


def test_variables_are_the_nets_own():
    model = quantize_aware(small(), calibration=X)
    conv = model.get_layer("conv").by_name["kernel"]
    before = model.predict(X[:4], verbose=0)
    conv.assign(conv * 0.5)
    assert np.abs(model.predict(X[:4], verbose=0) - before).max() > 1e-3
    names = [(name, tuple(v.shape), axis) for name, v, axis in model.get_prunable_weights()]
    assert names == [("conv", (3, 3, 2, 4), -1), ("dense", (4, 3), -1)]
    assert model.get_prunable_weights()[0][1] is conv


def test_batch_normalization_statistics_move_by_the_batch():
    source = keras.Sequential(
        [keras.Input((5,)), layers.BatchNormalization(name="norm", momentum=0.9), layers.Dense(1)]
    )
    x = RANDOM.normal(3.0, 2.0, (32, 5)).astype("float32")
    model = quantize_aware(source, calibration=x)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(x, np.zeros((32, 1)), batch_size=32, verbose=0)
    norm = model.get_layer("norm").by_name
    step = np.ptp(x) / 255
    np.testing.assert_allclose(norm["moving_mean"].numpy(), 0.1 * x.mean(axis=0), atol=step)
    np.testing.assert_allclose(norm["moving_variance"].numpy(), 0.9 + 0.1 * x.var(axis=0), rtol=0.02)
    mean = norm["moving_mean"].numpy()
    model.predict(x, verbose=0)
    np.testing.assert_array_equal(norm["moving_mean"].numpy(), mean)


def test_freezing_reaches_the_net():
    model = compiled(quantize_aware(small(), calibration=X))
    model.get_layer("norm").trainable = False
    before = {n: v.numpy() for n, v in model.get_layer("norm").by_name.items()}
    model.fit(X, Y, verbose=0)
    for name, value in before.items():
        np.testing.assert_array_equal(model.get_layer("norm").by_name[name].numpy(), value, err_msg=name)


def test_a_frozen_source_layer_stays_frozen():
    source = small()
    source.get_layer("conv").trainable = False
    model = compiled(quantize_aware(source, calibration=X))
    kernel = model.get_layer("conv").by_name["kernel"].numpy()
    model.fit(X, Y, verbose=0)
    np.testing.assert_array_equal(model.get_layer("conv").by_name["kernel"].numpy(), kernel)
    assert not any(v is model.get_layer("conv").by_name["kernel"] for v in model.trainable_variables)


def test_regularizer_and_constraint_of_the_source_act():
    model = quantize_aware(small(kernel_constraint=keras.constraints.MaxNorm(0.1, axis=0)), calibration=X)
    kernel = model.get_layer("conv").by_name["kernel"].numpy()
    np.testing.assert_allclose(float(sum(model.losses)), 0.01 * np.sum(kernel**2), rtol=1e-5)
    compiled(model).fit(X, Y, verbose=0)
    assert np.linalg.norm(model.get_layer("dense").by_name["kernel"].numpy(), axis=0).max() <= 0.1 + 1e-6


def test_losses_of_a_layer_count():
    source = keras.Sequential([keras.Input((4,)), layers.Dense(3, activity_regularizer=keras.regularizers.L2(0.5))])
    x = RANDOM.normal(size=(16, 4)).astype("float32")
    model = quantize_aware(source, calibration=x)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    source.compile(keras.optimizers.SGD(0.0), "mse")
    y = np.zeros((16, 3))
    wanted = source.evaluate(x, y, batch_size=16, verbose=0)
    assert wanted > np.mean(source.predict(x, verbose=0) ** 2) * 1.2
    np.testing.assert_allclose(model.evaluate(x, y, batch_size=16, verbose=0), wanted, rtol=0.03)


def test_callbacks_are_keras_own(tmp_path):
    model = compiled(quantize_aware(small(), calibration=X))
    path = str(tmp_path / "best.weights.h5")
    callbacks = [
        keras.callbacks.EarlyStopping(patience=0, monitor="loss", restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(path, save_weights_only=True),
        keras.callbacks.BackupAndRestore(str(tmp_path / "backup")),
    ]
    model.fit(X, Y, epochs=2, callbacks=callbacks, verbose=0)
    other = quantize_aware(small())
    other.load_weights(path)
    np.testing.assert_array_equal(other.predict(X, verbose=0), model.predict(X, verbose=0))


_STEPS = pytest.param({"steps_per_execution": 2}, marks=pytest.mark.slow)


@pytest.mark.parametrize("option", [{"jit_compile": True}, _STEPS, {"run_eagerly": True}])
def test_compile_options(option):
    model = quantize_aware(small(), calibration=X)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", **option)
    before = model.get_layer("conv").by_name["kernel"].numpy()
    model.fit(X, Y, batch_size=16, verbose=0)
    assert np.abs(model.get_layer("conv").by_name["kernel"].numpy() - before).max() > 1e-3
    assert model.range_updates.numpy() == 999.0 + 4


def test_gradual_pruning_holds_through_the_rounding():
    model = compiled(quantize_aware(small(), calibration=X))
    pruning = GradualPruning(Polynomial(0.75, end_step=6, frequency=2))
    model.fit(X, Y, batch_size=16, epochs=2, verbose=0, callbacks=[pruning])
    for name, size in (("conv", 72), ("dense", 12)):
        kernel = model.get_layer(name).by_name["kernel"].numpy()
        assert np.count_nonzero(kernel) == size // 4
        assert np.count_nonzero(model.strip().get_layer(name).kernel.numpy()) == size // 4


def test_nested_and_separable_kernels_are_named_as_in_the_source():
    inner = keras.Sequential([keras.Input((6, 6, 2)), layers.SeparableConv2D(4, 3, name="sep")], name="inner")
    inputs = keras.Input((6, 6, 2))
    source = keras.Model(inputs, layers.Dense(2, name="dense")(layers.Flatten()(inner(inputs))))
    model = quantize_aware(source, calibration=X)
    source.trainable = False
    names = [name for name, *_ in model.get_prunable_weights()]
    assert names == ["inner/sep/depthwise_kernel", "inner/sep/pointwise_kernel", "dense"]


def test_save_and_load(trained, tmp_path):
    path = tmp_path / "model.keras"
    trained.save(path)
    loaded = keras.models.load_model(path)
    assert isinstance(loaded, QuantizedModel)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), trained.predict(X, verbose=0))
    assert loaded.report == trained.report
    assert int(loaded.optimizer.iterations) == int(trained.optimizer.iterations) == 8
    sample = loaded.__tflite_source__()["calibration"]["image"]
    np.testing.assert_array_equal(sample, X)
    loaded.fit(X, Y, verbose=0)
    # Keras 3 goes on as if nothing had happened; in a process of its own in the slow tests.
    assert "TF_USE_LEGACY_KERAS" not in os.environ
    assert importlib.import_module("tensorflow").keras.Model is keras.Model


_FRESH = """
import json, os, sys
import kdopt, keras
import numpy as np
model = keras.models.load_model(sys.argv[1])
x = np.load(sys.argv[2])
print(json.dumps(model.predict(x, verbose=0).tolist()))

# Keras 3 goes on as if nothing had happened.
import tensorflow as tf
assert os.environ.get("TF_USE_LEGACY_KERAS") == (sys.argv[3] or None)
assert getattr(tf, "keras").Model is keras.Model
plain = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
plain.compile("sgd", "mse")
plain.fit(np.zeros((16, 3)), np.zeros((16, 2)), verbose=0)
assert b"TFL3" in tf.lite.TFLiteConverter.from_keras_model(plain).convert()[:16]
"""


def run_fresh(code, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_loads_in_a_fresh_process_and_keras_3_works_on(tmp_path):
    model = quantize_aware(
        keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.ReLU()]), calibration=X
    )
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X[:3])
    printed = run_fresh(_FRESH, tmp_path / "model.keras", tmp_path / "x.npy", "")
    received = np.array(json.loads(printed.splitlines()[0]))
    np.testing.assert_allclose(received, model.predict(X[:3], verbose=0), atol=1e-5)


def test_strip_gives_the_trained_float_model(trained):
    before = values(trained)
    stripped = trained.strip()
    assert type(stripped) is type(small())
    assert [layer.name for layer in stripped.layers] == [layer.name for layer in small().layers]
    for name in ("conv", "norm", "shift", "dense"):
        for variable in stripped.get_layer(name).variables:
            own = trained.get_layer(name).by_name[variable.name].numpy()
            np.testing.assert_array_equal(variable.numpy(), own)
    gap = np.abs(stripped.predict(X, verbose=0) - trained.predict(X, verbose=0)).max()
    assert 0 < gap < 0.05
    stripped.set_weights([w * 0 for w in stripped.get_weights()])
    for a, b in zip(before, values(trained), strict=True):
        np.testing.assert_array_equal(a, b)


def test_strip_of_nested_and_separable():
    inner = keras.Sequential([keras.Input((6, 6, 2)), layers.SeparableConv2D(4, 3, activation="relu6")], name="inner")
    inputs = keras.Input((6, 6, 2))
    source = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(inner(inputs))))
    stripped = quantize_aware(source, calibration=X).strip()
    np.testing.assert_allclose(stripped.predict(X, verbose=0), source.predict(X, verbose=0), atol=1e-6)
    assert stripped.get_layer("inner") is not inner


def test_report_says_how_each_layer_is_quantized():
    report = {entry.layer: entry for entry in quantize_aware(small(), calibration=X).report}
    assert report["conv"] == LayerReport(
        "conv", "quantized", "kernel; its output is read only after what is fused with it"
    )
    assert report["norm"].reason == "folded into the kernel before it"
    assert {name: entry.mode for name, entry in report.items()} == {
        **dict.fromkeys(("conv", "norm", "relu", "pool", "dense"), "quantized"),
        **dict.fromkeys(("square", "shift"), "output-only"),
    }
    assert "its weights get scales at export" in report["shift"].reason
    inputs = keras.Input((4,), dtype="int32")
    x = layers.Embedding(5, 3, name="words")(ops.cast(inputs, "int32"))
    x = layers.LSTM(3, name="memory")(x)
    with pytest.warns(UserWarning, match="cannot become an int8 file as it is: 'memory' keeps a loop.*unroll=True"):
        tokens = quantize_aware(keras.Model(inputs, layers.Dense(2)(x)), calibration=np.ones((8, 4)))
    report = {entry.layer: entry for entry in tokens.report}
    assert report["memory"].mode == "calibration-only"
    assert "int8 export needs `unroll=True`" in report["memory"].reason
    assert report["cast"].mode == "float"


def test_what_tflite_does_not_fuse_or_fold_has_a_range():
    inputs = keras.Input((4, 4, 4))
    seen = layers.Conv2D(4, 1, name="seen")(inputs)  # an output of the model too
    clipped = layers.Conv2D(4, 1, name="clipped")(layers.ReLU(name="fused")(seen))
    rows = layers.Conv2D(4, 1, name="rows")(layers.ReLU(max_value=3.0, name="three")(clipped))
    source = keras.Model(inputs, [seen, layers.BatchNormalization(axis=1, name="across")(rows)])
    report = {entry.layer: entry for entry in quantize_aware(source).report}
    for name in ("seen", "clipped", "rows"):
        assert report[name].reason == "kernel and output"
    assert report["across"].mode == "output-only"


def test_an_unrolled_loop_needs_no_warning(recwarn):
    source = keras.Sequential([keras.Input((3, 2)), layers.GRU(2, unroll=True, name="memory"), layers.Dense(2)])
    report = {entry.layer: entry for entry in quantize_aware(source, calibration=np.ones((8, 3, 2))).report}
    assert "unroll" not in report["memory"].reason
    assert not [w for w in recwarn if "loop" in str(w.message)]


def test_multi_input_multi_output_by_name():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((2,), name="b")}
    joined = layers.Concatenate()([inputs["a"], inputs["b"]])
    source = keras.Model(
        inputs, {"left": layers.Dense(1, name="left")(joined), "right": layers.Dense(2, name="right")(joined)}
    )
    x = {"a": RANDOM.normal(size=(16, 3)).astype("float32"), "b": RANDOM.normal(size=(16, 2)).astype("float32")}
    model = quantize_aware(source, calibration=x)
    wanted, received = source.predict(x, verbose=0), model.predict(x, verbose=0)
    for name in ("left", "right"):
        np.testing.assert_allclose(received[name], wanted[name], atol=0.05)
    model.compile("sgd", {"left": "mse", "right": "mae"})
    model.fit(x, {"left": np.zeros((16, 1)), "right": np.zeros((16, 2))}, verbose=0)
    assert list(model.__tflite_source__()["inputs"]) == ["a", "b"]


class Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="`engine` must be one of 'tfmot', 'native'; got 'own'"):
        quantize_aware(small(), engine="own")
    with pytest.raises(TypeError, match=r"quantized already.*strip"):
        quantize_aware(quantize_aware(small()))
    for load in (quantize_aware, lambda path: quantize_aware(path, "native"), lambda path: post_training(path, None)):
        with pytest.raises(TypeError, match="Expected a built keras.Model; got str. Load it first"):
            load("model.keras")
    with pytest.raises(TypeError, match=r"received Subclassed.*engine='native'.*functional API"):
        quantize_aware(Subclassed())
    with pytest.raises(ValueError, match="not built"):
        quantize_aware(keras.Sequential([layers.Dense(2)]))
    half = keras.Sequential([keras.Input((3,)), layers.Dense(2, dtype="mixed_float16", name="half")])
    with pytest.raises(ValueError, match="'half' has the dtype policy 'mixed_float16'"):
        quantize_aware(half)
    masked = keras.Sequential([keras.Input((3, 2)), layers.Masking(name="mask"), layers.Dense(2)])
    with pytest.raises(ValueError, match="'mask' produces a Keras mask"):
        quantize_aware(masked)
