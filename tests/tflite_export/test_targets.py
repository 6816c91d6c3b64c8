"""What a target chooses, says and refuses."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import precisions
from tflite_export.conversion.targets import TARGETS, choose
from tflite_export.errors import ConversionError

layers = keras.layers
X = np.random.default_rng(0).random((40, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def net():
    image = keras.Input((12, 12, 3), name="image")
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, activation="relu", name="conv")(image))
    return keras.Model(image, layers.Dense(4, name="head")(layers.Flatten()(x)))


CHOSEN = {
    ("xnnpack", True): "int8_float_io",
    ("xnnpack", False): "weight_int8",
    ("gpu", True): "float16",
    ("gpu", False): "float16",
    ("edgetpu", True): "uint8",
    ("nnapi", True): "int8",
    ("nnapi", False): "float16",
    ("micro", True): "int8",
}


@pytest.mark.parametrize(("target", "data"), CHOSEN)
def test_what_it_chooses_and_says(net, target, data):
    file = tflite_export.convert(net, None, X if data else None, target=target)
    assert file.precision == CHOSEN[target, data]
    (note,) = file.notes
    assert note.startswith(f"target {target}: {file.precision}, since {TARGETS[target].why}; runs whole")
    assert ("measured here" if target == "xnnpack" else "from documentation, not run here") in note
    assert f"  {note}" in str(file).splitlines()
    assert file.inputs[0].shape[0] == 1


def test_a_precision_of_ones_own(net):
    assert tflite_export.convert(net, "float32", target="gpu").precision == "float32"
    assert tflite_export.convert(net, "float32").notes == ()
    with pytest.raises(ValueError, match=r"'edgetpu' runs 'int8', 'uint8', 'int8_float_io'; got precision 'float16'"):
        tflite_export.convert(net, "float16", target="edgetpu")


def test_what_stays_on_the_cpu_is_told():
    image = keras.Input((8, 8, 3))
    x = keras.ops.cumsum(layers.Conv2D(4, 3, name="conv")(image), axis=1)
    model = keras.Model(image, layers.Conv2D(2, 1, name="after")(x))
    (note,) = tflite_export.convert(model, target="xnnpack").notes
    assert "runs in part" in note
    assert "stay 1 CUMSUM" in note


def test_a_file_that_does_not_run_there():
    """TensorFlow Lite Micro has no GELU: nothing of the file would run."""
    x = keras.Input((8,))
    model = keras.Model(x, layers.Dense(3)(layers.Dense(8, activation="gelu", name="wide")(x)))
    with pytest.raises(ConversionError, match="GELU does not run") as caught:
        tflite_export.convert(model, "float32", target="micro")
    assert {one.rule for one in caught.value.violations} == {"target micro"}


def test_bad_arguments(net):
    bad = [
        ({"target": "tpu"}, "`target` must be one of 'xnnpack', 'gpu'.*got 'tpu'"),
        ({"target": "micro"}, "'micro' needs `representative_data`"),
        ({"target": "gpu", "batch": None}, "needs a fixed batch"),
        ({}, "Pass `precision`, one of 'float32'.*or `target`"),
    ]
    for given, message in bad:
        with pytest.raises(ValueError, match=message):
            tflite_export.convert(net, **given)
    with pytest.raises(ValueError, match="for one source"):
        tflite_export.convert({"a": net}, "float32", target="gpu")


def test_sources_that_were_trained_with_quantization_keep_their_integers():
    for name, target in TARGETS.items():
        assert choose(name, None, 1, data=False, trained=True)[1] == target.integer
        assert {target.integer, *([target.plain] if target.plain else [])} <= set(target.allowed)
        assert set(target.allowed) <= set(precisions.names())
