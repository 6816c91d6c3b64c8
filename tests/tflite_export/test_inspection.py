"""What is in a file, and what an update of it costs, against Keras and by hand."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.tflite import records
from tflite_export.tflite.objects import FileObjects

layers = keras.layers


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(3)
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="conv")(image)
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Conv2DTranspose(6, 2, strides=2, name="up")(x)
    model = keras.Model(image, layers.Dense(5, name="dense")(layers.Flatten(name="flat")(x)), name="net")
    generator = np.random.default_rng(0)  # biases of zeros would be one constant
    model.set_weights([generator.normal(size=weight.shape) for weight in model.get_weights()])
    return model


def of(inspection):
    return {part.layer.split("/")[0].removesuffix("_1"): part for part in inspection.layers}


def test_numbers_equal_those_of_keras(net):
    file = tflite_export.convert(net, "float32")
    found = tflite_export.inspect(file)
    assert (found.size_bytes, found.gzip_bytes) == (file.size_bytes, file.gzip_bytes)
    assert (found.precision, found.min_runtime) == ("float32", file.min_runtime)
    assert found.signatures == ("serving_default",)
    assert found.custom_ops == ()
    parts = of(found)
    # conv: 4x4 outputs of 8 channels over 3x3x4; depthwise: 2x2x8 over 3x3; up: 2x2x8 inputs over 2x2x6; dense 4*4*6*5
    wanted = {"conv": 16 * 8 * 36, "depthwise": 4 * 8 * 9, "up": 4 * 8 * 24, "dense": 96 * 5}
    assert {name: parts[name].macs for name in wanted} == wanted
    assert found.macs == sum(wanted.values())
    for name in ("conv", "depthwise", "up", "dense"):
        weights = sum(int(np.prod(weight.shape)) for weight in net.get_layer(name).weights)
        assert 4 * weights <= parts[name].weight_bytes <= 4 * weights + 16, name  # and shapes
    assert found.ops["CONV_2D"] == found.ops["TRANSPOSE_CONV"] == 1
    assert found.inputs[0].endswith("float32 (1, 8, 8, 4)")


def test_zeros_and_steps(net):
    kernel = net.get_layer("dense").kernel.numpy()
    mask = np.arange(kernel.size).reshape(kernel.shape) % 4 == 0
    copy = keras.models.clone_model(net)
    copy.set_weights(net.get_weights())
    copy.get_layer("dense").kernel.assign(kernel * mask)
    part = of(tflite_export.inspect(tflite_export.convert(copy, "float32")))["dense"]
    assert part.sparsity == 0.75
    assert part.scales is None
    data = np.random.default_rng(0).random((20, 8, 8, 4)).astype("float32")
    found = tflite_export.inspect(tflite_export.convert(copy, "int8", data))
    part = of(found)["dense"]
    largest = np.abs(copy.get_layer("dense").kernel.numpy()).max(axis=0) / 127
    np.testing.assert_allclose(part.scales, (largest.min(), largest.max()), rtol=1e-5)
    assert set(found.dtype_bytes) == {"int8", "int32"}
    assert "int8" in part.dtypes


def test_text_json_and_picture(net, tmp_path):
    path = tflite_export.convert(net, "float16").save(tmp_path / "net.tflite")
    found = tflite_export.inspect(path)
    text = str(found)
    assert text.startswith(f"float16 .tflite, {path.stat().st_size:,} bytes (")
    assert "1 TRANSPOSE_CONV" in text
    assert any(line.split()[1:5] == ["DEQUANTIZE", "x2,", "FULLY_CONNECTED", "970"] for line in text.splitlines())
    stored = json.loads(found.save(tmp_path / "net.json").read_text())
    assert stored["layers"][0]["macs"] == found.layers[0].macs
    assert found.save(tmp_path / "net.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in found.save(tmp_path / "net.svg").read_bytes()
    with pytest.raises(ValueError, match="Format 'xyz' is not supported"):
        found.save(tmp_path / "net.xyz")


def test_it_needs_neither_tensorflow_nor_the_runtime(net, tmp_path):
    path = tflite_export.convert(net, "float32").save(tmp_path / "net.tflite")
    code = (
        "import sys, tflite_export\nprint(tflite_export.inspect(sys.argv[1]).macs)\n"
        "print({'tensorflow', 'keras', 'ai_edge_litert.interpreter'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tflite_export.inspect(path).macs), "set()"]


def test_integers_of_four_bits_by_hand():
    raw = np.array([0x21, 0xF8, 0x07], np.uint8)
    np.testing.assert_array_equal(records._unpacked(raw, 5), [1, 2, -8, -1, 7])


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file: .*none.tflite"):
        tflite_export.inspect(tmp_path / "none.tflite")
    with pytest.raises(TypeError, match="must be a TFLiteModel, a path or bytes; got int"):
        tflite_export.inspect(3)
    (tmp_path / "bad.tflite").write_bytes(b"nothing here")
    with pytest.raises(ValueError, match="bad.tflite' is not a .tflite file"):
        tflite_export.inspect(tmp_path / "bad.tflite")


def tuned(net, *names):
    """The net after a step of training of some layers."""
    copy = keras.models.clone_model(net)
    copy.set_weights(net.get_weights())
    for name in names:
        kernel = copy.get_layer(name).weights[0]
        kernel.assign(kernel * (1 + 0.01 * np.sign(kernel)))
    return copy


def test_an_update_is_as_large_as_what_changed(net):
    data = np.random.default_rng(0).random((30, 8, 8, 4)).astype("float32")
    for precision in ("float32", "int8"):
        old = tflite_export.convert(net, precision, data)
        nothing = tflite_export.update(old, old)
        assert (nothing.changed_bytes, nothing.changed_tensors) == (0, ())
        assert nothing.size_bytes < 0.1 * nothing.full_bytes
        assert tflite_export.apply_update(old, nothing.patch) == old.content
    old = tflite_export.convert(net, "float32")
    new = tflite_export.convert(tuned(net, "dense"), "float32")
    head = tflite_export.update(old, new)
    assert len(head.changed_tensors) == 1
    assert head.changed_bytes <= net.get_layer("dense").kernel.numpy().nbytes
    everything = tflite_export.update(old, tflite_export.convert(tuned(net, "dense", "conv", "up"), "float32"))
    assert head.size_bytes < everything.size_bytes
    assert "of the whole file after gzip" in str(head)
    assert "send the whole file" not in str(head)
    assert tflite_export.apply_update(old, head.patch) == new.content


def test_updates_between_other_files(net):
    old, new = (tflite_export.convert(net, precision) for precision in ("float32", "float16"))
    there = tflite_export.update(old, new)
    assert tflite_export.apply_update(old, there.patch) == new.content
    assert ("send the whole file" in str(there)) == (there.size_bytes >= there.full_bytes)
    assert tflite_export.apply_update(new, tflite_export.update(new, old).patch) == old.content


def test_patches_that_do_not_fit(net):
    old, new = (tflite_export.convert(net, precision) for precision in ("float32", "float16"))
    patch = tflite_export.update(old, new).patch
    with pytest.raises(ValueError, match="made for another version of the file"):
        tflite_export.apply_update(new, patch)
    with pytest.raises(ValueError, match="none that `update` made"):
        tflite_export.apply_update(old, b"nothing")
    for broken in (patch[:-20], patch[:90] + b"\0\0\0\0" + patch[94:], patch[:70] + b"\xff" * 8 + patch[78:]):
        with pytest.raises(ValueError, match="The patch is damaged"):
            tflite_export.apply_update(old, broken)


def test_the_step_of_a_custom_operation_is_told(net):
    file = FileObjects(tflite_export.convert(net, "float32").content)
    code = file.model.operatorCodes[file.operators[0].opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = b"Mine"
    found = tflite_export.inspect(file.content())
    assert found.custom_ops == ("Mine",)
    assert "not built in: Mine" in str(found)
