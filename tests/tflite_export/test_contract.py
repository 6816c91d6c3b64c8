"""What is wrong with a file, in which layer, and what to do: the rules on its bytes."""

from dataclasses import replace

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import precisions
from tflite_export.conversion.contract import Contract
from tflite_export.conversion.sameness import differences
from tflite_export.errors import ConversionError, Violation
from tflite_export.runtime.model import TFLiteModel
from tflite_export.sources.resolve import resolve
from tflite_export.tflite.objects import FileObjects

layers = keras.layers


def contract(precision, **asked):
    return Contract(precisions.get(precision), **asked)


def broken(model, file, precision, **asked):
    return {violation.rule: violation for violation in contract(precision, **asked).check(file, resolve(model))}


OFTEN = ("float32", "dynamic", "int8", "int16x8")


@pytest.mark.parametrize(
    "precision", [pytest.param(name, marks=[pytest.mark.slow] * (name not in OFTEN)) for name in precisions.names()]
)
def test_a_good_file_breaks_no_rule(convnet, images, precision):
    file = tflite_export.convert(convnet, precision, images)
    assert contract(precision, min_runtime="2.21", max_bytes=10**6).check(file, resolve(convnet)) == []


def test_a_float_file_is_no_integer_file(dense):
    found = contract("int8").check(tflite_export.convert(dense, "float32"), resolve(dense))
    assert {(one.rule, one.op, one.layer) for one in found} == {
        ("dtypes", "", ""),
        ("float islands", "FULLY_CONNECTED", "d"),
    }
    assert any(str(one).startswith("layer 'd': FULLY_CONNECTED stayed float in the int8 file.") for one in found)


def test_integers_at_the_border_of_a_float_file(dense):
    data = np.ones((8, 12), "float32")
    unsigned = tflite_export.convert(dense, "uint8", data)
    assert [info.dtype for info in (*unsigned.inputs, *unsigned.outputs)] == ["uint8", "uint8"]
    assert "is uint8; int8 has int8" in broken(dense, unsigned, "int8")["dtypes"].problem
    assert "is uint8; int8_float_io has float32" in broken(dense, unsigned, "int8_float_io")["dtypes"].problem


def test_a_release_that_is_too_old():
    """The converter leaves weights of fewer than 1024 numbers as they are."""
    dense = keras.Sequential([keras.Input((64,)), layers.Dense(32, name="d")])
    dynamic = tflite_export.convert(dense, "dynamic")
    found = broken(dense, dynamic, "dynamic", min_runtime="2.16")["old runtimes"]
    assert (found.op, found.layer) == ("FULLY_CONNECTED", "d")
    assert found.problem == "FULLY_CONNECTED version 12 needs TensorFlow Lite 2.17; asked for was 2.16"
    assert not broken(dense, dynamic, "dynamic", min_runtime="2.17")
    with pytest.raises(ConversionError, match=r"layer 'd': FULLY_CONNECTED version 12 needs.*'int8'") as caught:
        tflite_export.convert(dense, "dynamic", min_runtime="2.9")
    assert caught.value.violations == (replace(found, problem=found.problem.replace("2.16", "2.9")),)
    tflite_export.convert(dense, "int8", np.ones((8, 64), "float32"), min_runtime="2.9")
    with pytest.raises(ValueError, match=r"release such as '2\.9'"):
        tflite_export.convert(dense, "dynamic", min_runtime="latest")


def test_a_file_that_is_too_large(dense):
    size = tflite_export.convert(dense, "float32").size_bytes
    assert tflite_export.convert(dense, "float32", max_bytes=size).size_bytes == size
    with pytest.raises(ConversionError, match=rf"the file has {size:,} bytes; at most {size - 1:,} were asked for"):
        tflite_export.convert(dense, "float32", max_bytes=size - 1)
    with pytest.raises(ValueError, match="`max_bytes` must be an integer >= 1"):
        tflite_export.convert(dense, "float32", max_bytes=0)


def test_a_custom_operation(dense):
    file = FileObjects(tflite_export.convert(dense, "float32").content)
    code = file.model.operatorCodes[file.operators[0].opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 32  # CUSTOM
    code.customCode = b"FlexErf"
    good = tflite_export.convert(dense, "float32")
    found = broken(dense, replace(good, content=file.content()), "float32")["builtin operations"]
    assert (found.op, found.layer, found.problem) == ("FlexErf", "d", "FlexErf is no builtin operation")


def test_open_sizes(dense):
    with_any_batch = tflite_export.convert(dense, "float32", batch=None)
    assert "'x' has the open shape anyx12" in broken(dense, with_any_batch, "float32")["static shapes"].problem
    assert not broken(dense, with_any_batch, "float32", any_batch=True)
    assert not broken(dense, with_any_batch, "float32", open_shapes=True)


def test_inputs_in_another_order():
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([a, b], layers.Concatenate(name="both")([a, b]))
    file, source = tflite_export.convert(model, "float32"), resolve(model)
    swapped = replace(source, inputs=dict(reversed(source.inputs.items())))
    (found,) = contract("float32").check(file, swapped)
    assert found.problem == "the file's inputs are ['a', 'b']; expected ['b', 'a']"


def test_another_function(dense):
    file, precision = tflite_export.convert(dense, "float32"), precisions.get("float32")
    sample = {"x": np.ones((4, 12), "float32")}
    assert differences(file, resolve(dense), precision, sample) == []
    keras.utils.set_random_seed(5)
    other = keras.models.clone_model(dense)
    (found,) = differences(file, resolve(other), precision, sample)
    assert found.problem.startswith("output 'd': the file is another function than its source: rmse")
    assert "another scale than the training data" in found.mend
    dense_like = keras.Sequential([keras.Input((12,), name="x"), layers.Dense(4, name="d")])
    (found,) = differences(file, resolve(dense_like), precision, sample)
    assert "gives shape (4, 5), the source (4, 4)" in found.problem


def test_sizes_that_are_given():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)))
    file = tflite_export.convert(model, "float32", shapes={"image": (10, 12, 3)})
    assert file.inputs[0].shape == (1, 10, 12, 3)
    x = np.random.default_rng(0).normal(size=(2, 10, 12, 3)).astype("float32")
    np.testing.assert_allclose(file.predict(x), model(x), atol=1e-5)
    bad = [
        ({"picture": (8, 8, 3)}, ValueError, r"names \['picture'\].*has the inputs \['image'\]"),
        ({"image": (8, 8)}, ValueError, r"\(None, None, 3\) \(None = open\); got \(8, 8\)"),
        ({"image": (8, 8, 4)}, ValueError, r"got \(8, 8, 4\)"),
        ({"image": (8, 0, 3)}, ValueError, r"got \(8, 0, 3\)"),
        ({"image": (8, None, 3)}, ValueError, r"got \(8, None, 3\)"),
        ((8, 8, 3), TypeError, r"must be a dict input name -> shape of one sample"),
    ]
    for shapes, error, message in bad:
        with pytest.raises(error, match=message):
            tflite_export.convert(model, "float32", shapes=shapes)


def test_a_violation_reads_as_a_sentence():
    assert str(Violation("size", "it is large")) == "it is large."
    assert str(Violation("r", "p", "OP", "a/b", "Mend it")) == "layer 'a/b': p. Mend it."


def test_a_file_from_bytes_has_no_open_question(dense):
    content = tflite_export.convert(dense, "float32").content
    assert contract("float32").check(TFLiteModel.from_content(content), resolve(dense)) == []


def test_shapes_must_fit_the_sizes_that_are_fixed(dense):
    with pytest.raises(ValueError, match=r"input 'x' has samples of shape \(12,\).*got \(13,\)"):
        tflite_export.convert(dense, "float32", shapes={"x": (13,)})
