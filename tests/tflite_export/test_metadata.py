"""What a file says about itself: written, read back, and read by hand."""

import io
import struct
import zipfile
from dataclasses import replace

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import Metadata, Normalization, TensorText
from tflite_export.app.metadata_reader import unpacked
from tflite_export.tflite import flatbuffer, soundness
from tflite_export.tflite.objects import FileObjects

layers = keras.layers
LABELS = ("cat", "dog", "señal de tráfico", "a, b; c", " 5 ")
SAID = Metadata(
    name="Pets ünd more",
    description="Tells pets.\nAnd signs.",
    version="1.2.3",
    author="Somebody",
    license="MIT",
    labels=LABELS,
    score_range=(0, 1),
    normalization=Normalization(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    image=True,
    inputs=(TensorText("picture", "A photo"),),
    outputs=(TensorText("likelihood", "One for each pet"),),
)


@pytest.fixture(scope="module")
def pixels():
    return (np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3)) / 255).astype(np.float32)


def archive_of(file):
    return zipfile.ZipFile(io.BytesIO(file.content))


def test_what_is_written_is_read(classifiers, tmp_path):
    file = tflite_export.set_metadata(classifiers["float32"], SAID)
    assert tflite_export.read_metadata(file) == SAID
    assert SAID.min_parser_version == tflite_export.read_metadata(file).min_parser_version == "1.0.0"
    path = file.save(tmp_path / "pets.tflite")
    assert tflite_export.read_metadata(path) == tflite_export.read_metadata(path.read_bytes()) == SAID
    assert tflite_export.TFLiteModel.load(path).content == file.content
    changed = replace(SAID, labels=LABELS[::-1], image=False, normalization=None, score_range=None)
    assert tflite_export.read_metadata(tflite_export.set_metadata(path, changed)) == changed


def test_what_is_not_said_is_read_as_nothing(classifiers):
    assert tflite_export.read_metadata(classifiers["float32"]) is None
    found = tflite_export.read_metadata(tflite_export.set_metadata(classifiers["float32"], Metadata()))
    assert found == Metadata(inputs=[TensorText("image")], outputs=[TensorText("probability")])


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8", "int8"])
def test_the_file_computes_the_same_to_the_bit(classifiers, pixels, precision):
    plain = classifiers[precision]
    before = plain.content
    said = replace(SAID, normalization=SAID.normalization if "float" in precision else None)
    file = tflite_export.set_metadata(plain, said)
    np.testing.assert_array_equal(file.predict(pixels), plain.predict(pixels))
    assert plain.content == before
    assert (file.precision, file.inputs, file.outputs) == (plain.precision, plain.inputs, plain.outputs)
    assert file.min_runtime == plain.min_runtime
    soundness.check(file.content)
    assert set(flatbuffer.metadata(file.content)) == {*flatbuffer.metadata(before), "TFLITE_METADATA"}
    assert tflite_export.TFLiteModel.from_content(file.content).outputs == plain.outputs  # in the sandbox


def test_loops_of_a_file_stay(pixels):
    model = keras.Sequential([keras.Input((8, 24)), layers.LSTM(4), layers.Dense(5)])
    rows = pixels.reshape(32, 8, 24)
    plain = tflite_export.convert(model, "float32")
    file = tflite_export.set_metadata(plain, Metadata(labels=LABELS))
    np.testing.assert_array_equal(file.predict(rows), plain.predict(rows))


def test_the_archive_behind_the_file(classifiers, tmp_path):
    file = tflite_export.set_metadata(classifiers["float32"], SAID)
    (entry,) = archive_of(file).infolist()
    assert (entry.filename, entry.compress_type) == ("labels.txt", zipfile.ZIP_STORED)
    assert entry.date_time == (1980, 1, 1, 0, 0, 0)
    text = "cat\ndog\nseñal de tráfico\na, b; c\n 5 ".encode()
    assert archive_of(file).read("labels.txt") == text
    # By hand: the end of the archive names the place of its list, the list the place of the file, which is stored.
    end = len(file.content) - 22
    mark, count, place = struct.unpack_from("<4s6xH4xI", file.content, end)
    assert (mark, count) == (b"PK\5\6", 1)
    local = struct.unpack_from("<I", file.content, place + 42)[0]
    start = local + 30 + sum(struct.unpack_from("<HH", file.content, local + 26))
    assert file.content[place : place + 4] == b"PK\1\2"
    assert file.content[start : start + len(text)] == text


def field(content, table, number):
    """Place of a field of a table of a flatbuffer."""
    fields = table - struct.unpack_from("<i", content, table)[0]
    return table + struct.unpack_from("<H", content, fields + 4 + 2 * number)[0]


def follow(content, place):
    return place + struct.unpack_from("<I", content, place)[0]


def entries(content, vector):
    count = struct.unpack_from("<I", content, vector)[0]
    return [follow(content, vector + 4 + 4 * number) for number in range(count)]


def string(content, place):
    start = follow(content, place)
    return content[start + 4 : start + 4 + struct.unpack_from("<I", content, start)[0]].decode()


def test_a_reader_made_another_way(two_by_two):
    """By numbers of fields: model (name 0, graphs 3), graph (inputs 2, outputs 3), tensor (name 0, content 3)."""
    said = Metadata("by hand", image=True, labels={"bee": ["b", "c"]})
    content = flatbuffer.metadata(tflite_export.set_metadata(two_by_two, said).content)["TFLITE_METADATA"]
    assert content[4:8] == b"M001"
    root = follow(content, 0)
    assert string(content, field(content, root, 0)) == "by hand"
    (graph,) = entries(content, follow(content, field(content, root, 3)))
    inputs = entries(content, follow(content, field(content, graph, 2)))
    outputs = entries(content, follow(content, field(content, graph, 3)))
    assert [string(content, field(content, tensor, 0)) for tensor in inputs] == ["zeta", "alpha"]
    assert [string(content, field(content, tensor, 0)) for tensor in outputs] == ["yak", "bee"]
    kind = follow(content, field(content, inputs[0], 3))
    assert content[field(content, kind, 0)] == 2  # an image
    assert content[field(content, follow(content, field(content, kind, 1)), 0)] == 1  # in RGB


def test_setting_again_replaces_all(classifiers):
    plain, short = classifiers["float32"], replace(SAID, name="second", labels=["1", "2", "3", "4", "5"])
    first = tflite_export.set_metadata(plain, SAID)
    second = tflite_export.set_metadata(first.content, short)
    assert second.content == tflite_export.set_metadata(plain, short).content
    assert archive_of(second).namelist() == ["labels.txt"]
    assert b"Pets" not in second.content
    assert b"tr\xc3\xa1fico" not in second.content
    bare = tflite_export.set_metadata(second, Metadata())
    assert not zipfile.is_zipfile(io.BytesIO(bare.content))
    assert bare.content == tflite_export.set_metadata(plain, Metadata()).content
    assert len(FileObjects(second.content).model.buffers) == len(FileObjects(first.content).model.buffers)


def test_several_inputs_and_outputs(two_by_two):
    normalization = {"alpha": Normalization(mean=range(6), std=2), "zeta": Normalization()}
    said = Metadata(
        labels={"bee": ["b", "c"], "yak": ["x", "y", "z"]},
        normalization=normalization,
        image=True,
        score_range=(-1, 1),
        inputs=[TensorText("picture"), TensorText("", "six numbers")],
    )
    file = tflite_export.set_metadata(two_by_two, said)
    found = tflite_export.read_metadata(file)
    assert found.labels == {"bee": ("b", "c"), "yak": ("x", "y", "z")}
    assert found.normalization == normalization
    assert found.inputs == (TensorText("picture"), TensorText("alpha", "six numbers"))
    assert [text.name for text in found.outputs] == ["yak", "bee"]
    assert {name: archive_of(file).read(name) for name in archive_of(file).namelist()} == {
        "labels.txt": b"x\ny\nz",
        "labels_2.txt": b"b\nc",
    }
    tensors = unpacked(flatbuffer.metadata(file.content)["TFLITE_METADATA"])
    assert [tensor.color_space for tensor in tensors.inputs] == [1, 0]
    assert [tensor.score_range for tensor in tensors.outputs] == [(-1, 1), (-1, 1)]


def test_images_in_gray():
    gray = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(5)])
    file = tflite_export.set_metadata(tflite_export.convert(gray, "float32"), Metadata(image=True))
    (tensor,) = unpacked(flatbuffer.metadata(file.content)["TFLITE_METADATA"]).inputs
    assert (tensor.content, tensor.color_space) == (2, 2)


def test_one_number_for_all_channels():
    assert Normalization((1, 2, 3), 4) == Normalization((1, 2, 3), (4, 4, 4))
    assert Normalization(np.float32(127.5), [2]) == Normalization(mean=127.5, std=2)
