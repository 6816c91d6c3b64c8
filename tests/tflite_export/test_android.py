"""The folder for an Android app: its golden vectors, replayed, and what its Kotlin says of the tensors."""

import json
import re

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.app import golden, kotlin
from tflite_export.runtime.model import TensorInfo

layers = keras.layers


@pytest.fixture(scope="module")
def two_inputs():
    keras.utils.set_random_seed(0)
    image, extra = keras.Input((6, 6, 3), name="camera_image"), keras.Input((4,), name="extra")
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(image)), extra])
    return keras.Model([image, extra], [layers.Dense(3, name="class_logits")(x), layers.Dense(2, name="box")(x)])


def data(count=40):
    generator = np.random.default_rng(0)
    return {"camera_image": generator.random((count, 6, 6, 3)), "extra": generator.normal(size=(count, 4))}


@pytest.mark.parametrize("precision", ["float32", "int8", "uint8"])
def test_golden_vectors_are_what_the_file_gives(two_inputs, tmp_path, precision):
    file = tflite_export.convert(two_inputs, precision, data())
    bundle = tflite_export.android_bundle(file, tmp_path / "android", name="Finder", data=data(), runs=3)
    assert max(bundle.replay().values()) == 0
    assets = bundle.folder / "app/src/main/assets/finder"
    assert (assets / "model.tflite").read_bytes() == file.content
    told = json.loads((assets / "golden.json").read_text())
    expected = file.predict({name: values[:3] for name, values in data().items()})
    for entry, info in zip(told["outputs"], file.outputs, strict=True):
        raw = np.frombuffer((assets / entry["file"]).read_bytes(), entry["dtype"]).reshape(3, -1).astype("float64")
        values = raw if entry["scale"] is None else entry["scale"] * (raw - entry["zero_point"])
        np.testing.assert_allclose(values, expected[info.name], rtol=1e-5, atol=1e-6)
        assert entry["tolerance"] == (3 if info.scale else pytest.approx(0.01 * np.abs(values).max(), rel=1e-5))
    wrong = bytearray((assets / "golden_outputs_0.bin").read_bytes())
    wrong[3] ^= 0x40
    (assets / "golden_outputs_0.bin").write_bytes(wrong)
    assert max(golden.replayed(assets, "model.tflite").values()) > 1


def test_kotlin_has_every_tensor_with_its_size_and_type(two_inputs, tmp_path):
    file = tflite_export.convert(two_inputs, "uint8", data())
    bundle = tflite_export.android_bundle(file, tmp_path / "a", name="Finder", package="com.acme.finder", runs=2)
    texts = {path.name: (bundle.folder / path).read_text() for path in bundle.files if path.suffix == ".kt"}
    compiled, interpreter = texts["FinderCompiled.kt"], texts["FinderInterpreter.kt"]
    assert "fun run(cameraImage: ByteArray, extra: ByteArray): FinderOutput" in compiled
    assert "inputs[0].writeInt8(cameraImage)\n    inputs[1].writeInt8(extra)" in compiled
    assert "return FinderOutput(outputs[0].readInt8(), outputs[1].readInt8())" in compiled
    assert 'CompiledModel.create(context.assets, "finder/model.tflite"' in compiled
    assert "ByteBuffer.allocateDirect(108)" in interpreter
    assert "class FinderOutput(val classLogits: ByteArray, val box: ByteArray)" in interpreter
    test = texts["FinderGoldenTest.kt"]
    assert '"golden_inputs_0.bin" to 108' in test
    assert "(it.toInt() and 255).toDouble()" in test
    for name, text in texts.items():
        assert text.startswith("// Not compiled where it was written"), name
        assert "package com.acme.finder\n" in text
        assert text.count("{") == text.count("}"), name
        assert text.count("(") == text.count(")"), name
    assert {path.parts[:4] for path in bundle.files if path.suffix == ".kt"} == {
        ("app", "src", "main", "java"),
        ("app", "src", "androidTest", "java"),
    }
    readme = (bundle.folder / "README.md").read_text()
    assert "| input | `cameraImage` | uint8 | 1 x 6 x 6 x 3 |" in readme
    assert "not compiled here" in readme
    gradle = (bundle.folder / "build.gradle.kts.lines").read_text()
    assert re.search(r"litert:2\.\d+\.\d+", gradle)
    assert re.search(r"litert:1\.4\.\d+", gradle)
    assert 'noCompress += "tflite"' in gradle


def test_floats_and_integers_in_kotlin():
    infos = [TensorInfo("x:0", (1, 3), "float32"), TensorInfo("token ids", (1, 5), "int32")]
    text = kotlin.interpreter_class("a.b", "M", "m/model.tflite", infos, infos[:1])
    assert "fun run(x0: FloatArray, tokenIds: IntArray): MOutput" in text
    assert "input0.asFloatBuffer().put(x0)" in text
    assert "ByteBuffer.allocateDirect(20)" in text
    assert kotlin.identifier("3d") == "tensor3d"
    assert kotlin.identifier("in") == "tensorin"


def test_labels_and_folders(two_inputs, tmp_path):
    file = tflite_export.convert(two_inputs, "float32")
    bundle = tflite_export.android_bundle(file, tmp_path / "a", labels=["cat", "dog", "fox"])
    assert (bundle.folder / "app/src/main/assets/model/labels.txt").read_text() == "cat\ndog\nfox\n"
    with pytest.raises(FileExistsError, match="is there already.*overwrite=True"):
        tflite_export.android_bundle(file, tmp_path / "a")
    tflite_export.android_bundle(file, tmp_path / "a", overwrite=True)
    assert not (bundle.folder / "app/src/main/assets/model/labels.txt").exists()
    bad = [
        ({"labels": ["a", "b", "c", "d"]}, "4 labels fit no output: {'class_logits': 3, 'box': 2}"),
        ({"labels": ["a", " ", "c"]}, "a line of text that is not empty"),
        ({"name": "model"}, "a capital first"),
        ({"package": "model"}, "as 'com.example.app'"),
        ({"runs": 0}, "`runs` must be an integer >= 1"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            tflite_export.android_bundle(file, tmp_path / "b", **change)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_that_an_app_cannot_take(dense, tmp_path):
    with pytest.raises(ValueError, match="open sizes"):
        tflite_export.android_bundle(tflite_export.convert(dense, "float32", batch=None), tmp_path / "a")
    wide = tflite_export.convert(dense, "int16x8", np.random.default_rng(0).normal(size=(40, 12)))
    with pytest.raises(ValueError, match="take float32, int8, uint8 and int32; the file has x: int16"):
        tflite_export.android_bundle(wide, tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_nothing_but_a_bundle_is_replaced(dense, tmp_path):
    file = tflite_export.convert(dense, "float32")
    project = tmp_path / "project"
    (project / "app/src/main/java").mkdir(parents=True)
    precious = project / "app/src/main/java/notes.txt"
    precious.write_text("precious")
    with pytest.raises(FileExistsError, match=r"holds other files than a bundle, e.g. 'app/src/main/java/notes.txt'"):
        tflite_export.android_bundle(file, project, overwrite=True)
    assert precious.read_text() == "precious"
    precious.rename(precious.with_name("MainActivity.kt"))  # as a bundle has them, but there is no bundle
    with pytest.raises(FileExistsError, match="holds other files than a bundle"):
        tflite_export.android_bundle(file, project, overwrite=True)
    bundle = tflite_export.android_bundle(file, tmp_path / "android")
    again = tflite_export.android_bundle(file, bundle.folder, name="Other", overwrite=True)
    assert not (bundle.folder / "app/src/main/assets/model").exists()
    assert max(again.replay().values()) == 0
    assert [found.name for found in tmp_path.iterdir() if found.name.startswith(".")] == []


def test_labels_of_classes_by_rank(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(10, name="logits")])
    ranks = tflite_export.fold_processing(model, output="top_k", k=3)
    file = tflite_export.convert(ranks, "float32")
    labels = [f"class {number}" for number in range(10)]
    bundle = tflite_export.android_bundle(file, tmp_path / "android", labels=labels)
    assert (bundle.folder / "app/src/main/assets/model/labels.txt").read_text().split("\n")[:10] == labels
    told = tflite_export.set_metadata(file, tflite_export.Metadata("Ranks", labels={"logits_classes": labels}))
    assert tflite_export.read_metadata(told).labels == {"logits_classes": tuple(labels)}


def test_several_signatures_and_keywords_are_refused(dense, tmp_path):
    both = tflite_export.convert({"one": dense, "two": dense}, "float32")
    with pytest.raises(ValueError, match="signatures 'one', 'two', and the Kotlin classes call one alone"):
        tflite_export.android_bundle(both, tmp_path / "android")
    with pytest.raises(ValueError, match="without keywords of Kotlin; got 'com.acme.in'"):
        tflite_export.android_bundle(tflite_export.convert(dense, "float32"), tmp_path / "a", package="com.acme.in")
