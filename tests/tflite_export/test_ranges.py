"""Sources with fake-quantization inside: trained ranges stay, missing ones are calibrated or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from tflite_export.errors import ConversionError
from tflite_export.tflite import records

X = np.random.default_rng(0).uniform(-1, 1, size=(64, 6)).astype("float32")


class Quantized(tf.Module):
    """x -> fq -> first -> relu -> (fq) -> second -> fq, with the range of the middle tensor optional."""

    def __init__(self, middle, *, calibration=None, calls_itself_float=False):
        super().__init__(name="quantized")
        generator = np.random.default_rng(1)
        self.first = tf.Variable(generator.normal(size=(6, 8)).astype("float32"))
        self.second = tf.Variable(generator.normal(size=(8, 3)).astype("float32"))
        self.middle, self.calibration, self.ranged = middle, calibration, not calls_itself_float

    def run(self, x):
        fake = tf.quantization.fake_quant_with_min_max_args
        x = fake(x, -1.0, 127 / 128)
        with tf.name_scope("hidden"):
            x = tf.nn.relu(tf.matmul(x, self.first))
            if self.middle:
                x = fake(x, 0.0, self.middle)
        with tf.name_scope("head"):
            return fake(tf.matmul(x, self.second), -6.4, 6.35)

    def __tflite_source__(self):
        return {
            "module": self,
            "function": self.run,
            "inputs": {"x": tf.TensorSpec((None, 6), tf.float32)},
            "outputs": ("y",),
            "has_ranges": self.ranged,
            "calibration": self.calibration,
        }


@pytest.mark.parametrize("calls_itself_float", [False, True])
def test_trained_ranges_are_kept_without_data(calls_itself_float):
    source = Quantized(2.55, calls_itself_float=calls_itself_float)
    file = tflite_export.convert(source, "int8")
    assert (file.inputs[0].scale, file.inputs[0].zero_point) == (pytest.approx(1 / 128), 0)
    assert (file.outputs[0].scale, file.outputs[0].zero_point) == (pytest.approx(0.05), 0)
    assert file.calibrated == ()
    steps = (file.predict(X) - source.run(X).numpy()) / 0.05
    assert np.abs(steps).max() <= 3.01  # weights are int8 in the file, float here
    assert np.abs(steps).mean() < 0.5


def test_data_on_another_scale_does_not_move_trained_ranges():
    file = tflite_export.convert(Quantized(2.55), "int8", 0.01 * X)
    assert file.inputs[0].scale == pytest.approx(1 / 128)


def test_missing_ranges_without_data_name_the_layers():
    with pytest.raises(ConversionError, match=r"no range for: .*hidden.*Pass `representative_data`"):
        tflite_export.convert(Quantized(None), "int8")


@pytest.mark.parametrize("own", [False, True])
def test_missing_ranges_come_from_data_and_are_recorded(own):
    source = Quantized(None, calibration={"x": X} if own else None)
    file = tflite_export.convert(source, "int8", None if own else X)
    assert file.inputs[0].scale == pytest.approx(1 / 128)
    assert file.outputs[0].scale == pytest.approx(0.05)
    assert any("hidden" in layer for layer in file.calibrated)
    assert "ranges from calibration" in str(file)


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic"])
def test_float_precisions_are_refused(precision):
    with pytest.raises(ValueError, match=r"'quantized' holds fake-quantization.*strip\(\)"):
        tflite_export.convert(Quantized(2.55), precision)


def test_an_incomplete_answer():
    class Half:
        def __tflite_source__(self):
            return {"function": None}

    with pytest.raises(TypeError, match=r"must return a dict with module, function.*got \['function'\]"):
        tflite_export.convert(Half(), "float32")


def test_outputs_that_are_not_as_said():
    class Wrong(Quantized):
        def __tflite_source__(self):
            return {**super().__tflite_source__(), "outputs": ("y", "z")}

    with pytest.raises(ConversionError, match=r"says its outputs are \['y', 'z'\], but returns 1 tensors"):
        tflite_export.convert(Wrong(2.55), "int8")


def test_a_branch_that_was_zero_in_calibration_has_a_range_it_can_use():
    keras.utils.set_random_seed(0)
    x = keras.Input((8,), name="x")
    asleep = keras.layers.Dense(6, activation="relu", bias_initializer=keras.initializers.Constant(-2), name="asleep")
    both = [keras.layers.Dense(4, name="second")(asleep(x)), keras.layers.Dense(4, name="beside")(x)]
    model = keras.Model(x, keras.layers.Add()(both))
    calm = np.random.default_rng(0).uniform(-0.3, 0.3, (64, 8)).astype("float32")
    loud = 20 * calm[:16]
    assert float(keras.ops.max(asleep(calm))) == 0 < float(keras.ops.max(asleep(loud)))
    file = tflite_export.convert(model, "int8", calm)
    assert any("nothing but zeros came out of asleep" in note for note in file.notes)
    assert tflite_export.verify(model, file, calm).passed
    made = [op.outputs[0] for op in records.ops(file.content) if "asleep" in op.outputs[0].name]
    assert made
    assert all(tensor.scales[0] > 1e-4 for tensor in made)


def test_a_file_that_the_runtime_refuses_is_a_conversion_error(monkeypatch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])

    def refuse(*arguments, **options):
        raise ValueError("ai_edge_litert cannot load the file: node 3")

    monkeypatch.setattr(tflite_export.TFLiteModel, "from_content", refuse)
    with pytest.raises(tflite_export.ConversionError, match=r"does not load: .*node 3(.|\n)*Choose another precision"):
        tflite_export.convert(model, "float32")
