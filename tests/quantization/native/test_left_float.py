"""Layers without a kernel that stay in floating point in an int8 file."""

import keras
import numpy as np
import pytest
from int8_file import outputs_of
from keras import layers as L
from keras import ops

import tflite_export
from kdopt.quantization import quantize_aware
from tflite_export.tflite import records

X = np.random.default_rng(4).normal(0.5, 1.0, (48, 6, 8)).astype("float32")


def net(middle):
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6, 8), name="sequence")
    x = middle(L.Dense(8, name="first")(inputs))
    return keras.Model(inputs, L.Dense(3, name="last")(L.Flatten()(x)))


MIDDLES = {
    "normalization": lambda x: L.LayerNormalization(name="left")(x),
    "root mean square": lambda x: L.RMSNormalization(name="left")(x),
    "groups": lambda x: L.GroupNormalization(2, name="left")(x),
    "batch": lambda x: L.BatchNormalization(name="left")(L.ReLU()(x)),
    "activation": lambda x: L.Activation("gelu", name="left")(x),
    "softmax": lambda x: L.Softmax(name="left")(x),
    "sum of three": lambda x: L.Add(name="left")([x, L.Dense(8)(x), L.Dense(8)(L.ReLU()(x))]),
    "into a concatenation": lambda x: L.Concatenate()([x, L.RMSNormalization(name="left")(x)]),
    "operation": lambda x: ops.sin(x),
    "nested": lambda x: keras.Sequential([keras.Input((6, 8)), L.LayerNormalization(name="left")], name="inside")(x),
}
FAST = ("normalization", "sum of three", "operation", "nested")
NAMES = {"operation": "sin", "nested": "inside.left"}


# A mean of integers that the converter would round; an operation that it refuses before a reshaping; ...
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in FAST)) for kind in MIDDLES]
)
def test_it_is_float_in_the_file_and_nothing_else_is(kind, tmp_path):
    name = NAMES.get(kind, "left")
    model = quantize_aware(net(MIDDLES[kind]), "native", layers={name: "float"}, calibration=X)
    model.compile("adam", "mse", run_eagerly=True)  # two batches
    model.fit(X, np.zeros((48, 3)), verbose=0)
    file = tflite_export.convert(model, "int8")
    found = records.ops(file.content)
    left = [op for op in found if op.is_float]
    assert left
    assert "FULLY_CONNECTED" not in {op.name for op in left}
    assert all(op.name in ("DEQUANTIZE", "QUANTIZE") or op.outputs[0].dtype == "int8" for op in found if op not in left)
    (entry,) = [entry for entry in model.report if entry.layer == name]
    assert (entry.mode, entry.reason) == ("float", "as `layers` says; its input and output are int8 in the file")
    ((got, step),) = outputs_of(file.content, X[:16])
    apart = np.abs(got - model.predict(X[:16], verbose=0)) / step
    assert apart.max() < 1.01  # a value of the other kernels' floats may lie across a half
    assert apart.mean() < 0.05
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), model.predict(X, verbose=0))


def test_it_computes_in_float_between_rounded_tensors():
    source = net(MIDDLES["normalization"])
    model = quantize_aware(source, "native", layers={L.LayerNormalization: "float"}, calibration=X)
    assert [name for name in model.range_names if "left" in name] == ["left.output"]
    plain = quantize_aware(source, "native", calibration=X)
    assert len([name for name in plain.range_names if "left" in name]) > 1


def test_activations_of_16_bits_around_it():
    model = quantize_aware(net(MIDDLES["normalization"]), "native", "int16x8", {"left": "float"}, X)
    file = tflite_export.convert(model, "int16x8")
    assert any(op.is_float for op in records.ops(file.content))
    np.testing.assert_allclose(file.predict(X[:8]), model.predict(X[:8], verbose=0), atol=2e-3)


def test_what_has_no_operation_of_its_own_is_refused():
    with pytest.raises(ValueError, match=r"layers\['flatten.*'\]: flatten.* has no operation that could be float"):
        quantize_aware(net(lambda x: L.Flatten(name="flatten_it")(x)), "native", layers={"flatten_it": "float"})


def test_the_way_out_is_named_where_there_is_no_int8_kernel():
    model = quantize_aware(net(MIDDLES["operation"]), "native", calibration=X)
    with pytest.raises(tflite_export.ConversionError, match="or leave it float by `layers`"):
        tflite_export.convert(model, "int8")


@pytest.mark.parametrize("scheme", ["weight_int8", "weight_int4"])
def test_where_all_is_float_it_is_refused(scheme):
    with pytest.raises(ValueError, match=f"leaves left float, as scheme='{scheme}' does"):
        quantize_aware(net(MIDDLES["normalization"]), "native", scheme, {"left": "float"})
