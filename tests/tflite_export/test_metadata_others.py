"""Metadata that others wrote, and metadata that is damaged or hostile."""

import base64
import random
import zlib

import pytest

import tflite_export
from tflite_export import Metadata, Normalization, TensorText
from tflite_export.app.attached import attach
from tflite_export.app.metadata_reader import unpacked
from tflite_export.tflite import flatbuffer
from tflite_export.tflite.objects import FileObjects

LABELS = ("a", "b", "c", "d", "e")
NORMALIZATION = Normalization(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
SAID = Metadata("Letters", "Tells letters.", labels=LABELS, normalization=NORMALIZATION, image=True)
# Metadata by classes made from the schema: texts, sizes, statistics by channel, a threshold, labels in two languages.
THEIRS = zlib.decompress(
    base64.b85decode(
        b"c-mc(y-"
        b"wUf6orq$ECwuL&=wS1Y(YVj)dHy#)`F4*MJb4c6d8NKmRK)ZI|%}ceFK_Qd4`lJQ$z}7P@23zI*OE_q{2BfbDb;{pFKbK=ggUD0od+#SDRQy8!"
        b"arMi2y!4xEz6NzzW$UJ7kw&5^zaCrZ`>gtarNnJH#b-"
        b"cU7gQdfXr{wtAb}Tfi*Gz2hiO)uT0?p!Z*<st?Hxh;O>X^!Lr2G29$Y*q9|9j73q3e_9u1?<2V+*W{1RcZ^(|kPXrIqpB+3)WL-"
        b"QvosQAd+le#q<EdEPI*#dOwZhyp7A`DkLRh}=FJ*az_dAY?Zphq2c;^c_$7Vvq^1K2G~dxvN7g-7m|^ca4wDUY-iD2P()xcE_HfPl7Rd8lwGRf"
        b"vwxZo_Ee`gsig++o(#QID|IP#PQG0bRe*Pjiq^zvorhNjq`sRPB(etmjD;qWSTlg$Fy5*+_`DgF5@aJg~Vx&Sn|M2Q}xOZ_K?#+J>Zx|bh*B-"
        b"Uai3hUgc%s)c9$9q1$7ET0xaJ0cIF0gL9hvjL%aSsccbTf}FfFYw`%xL!>pd|{=N@Nq`G$_^TKy=?A@}}vUB3z7S=3jBi7!l@(2Rh;a8rDR"
    )
)


def with_buffer(file, metadata, archive=None):
    """A file with these very bytes as metadata."""
    objects = FileObjects(file.content)
    objects.set_named_buffer("TFLITE_METADATA", metadata)
    return attach(objects.content(), archive or {})


def packed_as_is(model):
    import flatbuffers

    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_metadata_of_others(classifiers):
    archive = {"birds_en.txt": b"owl\r\nrobin\r\n", "birds_de.txt": b"Eule\nRotkehlchen\n", "notes.txt": b"x"}
    found = tflite_export.read_metadata(with_buffer(classifiers["float32"], THEIRS, archive))
    assert found == Metadata(
        "Birds",
        "Names birds",
        "v3",
        "Them",
        "Apache-2.0",
        labels=("owl", "robin"),
        score_range=(0, 1),
        normalization=NORMALIZATION,
        image=True,
        inputs=[TensorText("picture", "A bird")],
        outputs=[TensorText("score", "One for each bird")],
    )
    assert found.min_parser_version == "1.3.0"


def test_metadata_that_is_damaged(classifiers):
    plain, good = classifiers["float32"], tflite_export.set_metadata(classifiers["float32"], SAID)
    packed = flatbuffer.metadata(good.content)["TFLITE_METADATA"]
    cases = {
        r"mark 'M001' at byte 4; got b'M002'": with_buffer(plain, packed.replace(b"M001", b"M002")),
        r"must have the mark": with_buffer(plain, b"tiny"),
        r"damaged: it points to byte \d+ of 40": with_buffer(plain, packed[:40]),
        r"names 'labels.txt', which is not readable behind the file: File is not a zip file": with_buffer(
            plain, packed
        ),
        r"names 'labels.txt'.*no item named 'labels.txt'": with_buffer(plain, packed, {"other": b""}),
        r"labels in 'labels.txt' must be UTF-8": with_buffer(plain, packed, {"labels.txt": b"se\xf1al"}),
        r"names 'labels.txt'.*more than 16,777,216": with_buffer(plain, packed, {"labels.txt": bytes(2**24 + 1)}),
    }
    for message, content in cases.items():
        with pytest.raises(ValueError, match=message):
            tflite_export.read_metadata(content)


def test_metadata_that_is_changed_at_random(classifiers):
    """It is read or refused, in little time and memory."""
    packed = flatbuffer.metadata(tflite_export.set_metadata(classifiers["float32"], SAID).content)["TFLITE_METADATA"]
    generator, refused = random.Random(0), 0
    for original in (packed, THEIRS):
        for _ in range(1500):
            changed = bytearray(original)
            for _ in range(generator.choice([1, 1, 4])):
                changed[generator.randrange(8, len(changed))] = generator.choice([0, 255, generator.randrange(256)])
            try:
                unpacked(bytes(changed))
            except ValueError as error:
                refused += "The metadata is damaged" in str(error)
    assert refused > 100


def test_tables_that_are_there_a_million_times():
    """3000 inputs that are one tensor, with 3000 process units that are one."""
    import flatbuffers

    builder = flatbuffers.Builder(0)

    def table(number, place=None):
        builder.StartObject(8)
        if place is not None:
            builder.PrependUOffsetTRelativeSlot(number, place, 0)
        return builder.EndObject()

    def times(count, place):
        builder.StartVector(4, count, 4)
        for _ in range(count):
            builder.PrependUOffsetTRelative(place)
        return builder.EndVector()

    tensor = table(4, times(3000, table(0)))
    builder.Finish(table(3, times(1, table(2, times(3000, tensor)))), b"M001")
    with pytest.raises(ValueError, match="it refers to the same place over and over"):
        unpacked(bytes(builder.Output()))


def test_data_behind_the_flatbuffer_is_refused(classifiers):
    objects = FileObjects(classifiers["float32"].content)
    objects.model.buffers[-1].offset, objects.model.buffers[-1].size = 5000, 4
    with pytest.raises(ValueError, match="keeps data behind its flatbuffer, at byte 5,000"):
        FileObjects(packed_as_is(objects.model))


def test_named_buffers_without_a_name_and_twice(classifiers):
    """Runtimes pass the first over and take the first of two."""
    model = FileObjects(tflite_export.set_metadata(classifiers["float32"], SAID).content).model
    model.metadata[0].name = None
    model.metadata.append(type(model.metadata[0])())
    model.metadata[-1].name, model.metadata[-1].buffer = "TFLITE_METADATA", 0
    content = packed_as_is(model)
    found = flatbuffer.metadata(content)
    assert "min_runtime_version" not in found
    assert found["TFLITE_METADATA"][4:8] == b"M001"
