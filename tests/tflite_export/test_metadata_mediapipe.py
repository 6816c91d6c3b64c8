"""MediaPipe Tasks, another reader of the metadata, classifies as the file itself does.

It runs in a process of its own, on the Python that KDOPT_MEDIAPIPE_PYTHON names or on this one.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import Metadata, Normalization, TensorText
from tflite_export.app.attached import attach
from tflite_export.tflite import flatbuffer, soundness
from tflite_export.tflite.objects import FileObjects

layers = keras.layers
LABELS = ("red", "green", "blue", "white", "ünbekannt, black")
COLORS = np.array([[220, 40, 40], [40, 210, 40], [40, 60, 220], [230, 230, 230], [25, 25, 25]])
PYTHON = os.environ.get("KDOPT_MEDIAPIPE_PYTHON", sys.executable)

# Prints a line of JSON: what the classifier says to each image, or why it does not take the file.
CLIENT = """
import json, sys
import mediapipe, numpy
from mediapipe.tasks.python import BaseOptions, vision
options = vision.ImageClassifierOptions(base_options=BaseOptions(model_asset_path=sys.argv[1]), max_results=-1)
try:
    with vision.ImageClassifier.create_from_options(options) as classifier:
        answers = []
        for image in numpy.load(sys.argv[2]):
            result = classifier.classify(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=image))
            head = result.classifications[0]
            categories = [(one.index, one.category_name, one.score) for one in head.categories]
            answers.append({"head": head.head_name, "categories": categories})
    said = {"answers": answers}
except (ValueError, RuntimeError, OSError) as error:
    said = {"error": str(error)}
print(json.dumps({"version": mediapipe.__version__, **said}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def mediapipe():
    found = subprocess.run([PYTHON, "-c", "import mediapipe"], capture_output=True)
    if found.returncode:
        pytest.skip(f"no mediapipe in {PYTHON}: name a Python that has it in KDOPT_MEDIAPIPE_PYTHON")


def squares(count, seed):
    """Images of colored squares on noise, as pixels, and their labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(LABELS), count)
    images = generator.integers(0, 256, (count, 32, 32, 3))
    for image, label in zip(images, labels, strict=True):
        top, left, size = *generator.integers(0, 8, 2), generator.integers(16, 24)
        color = COLORS[label] + generator.integers(-40, 40, 3)
        image[top : top + size, left : left + size] = np.clip(color, 0, 255)
    return images.astype(np.uint8), labels


NETS = {
    "pixels in [0, 1]": Normalization(),
    "pixels in [-1, 1]": Normalization(mean=127.5, std=127.5),
}


def entering(images, normalization):
    """What the model is trained on."""
    return ((images - normalization.mean[0]) / normalization.std[0]).astype(np.float32)


@pytest.fixture(scope="module", params=NETS)
def trained(request):
    keras.utils.set_random_seed(3)
    stack = [
        keras.Input((32, 32, 3), name="image"),
        layers.Conv2D(8, 3, strides=2, activation="relu"),
        layers.MaxPooling2D(2) if request.param == "pixels in [0, 1]" else layers.DepthwiseConv2D(3, strides=2),
        layers.Conv2D(12, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(len(LABELS), activation="softmax", name="probability"),
    ]
    model, normalization = keras.Sequential(stack), NETS[request.param]
    images, labels = squares(600, 0)
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(entering(images, normalization), labels, epochs=6, batch_size=32, verbose=0)
    return model, normalization, images


def asked(file, images, folder):
    path, pixels = file.save(folder / "net.tflite"), folder / "images.npy"
    np.save(pixels, images)
    command = [PYTHON, "-c", CLIENT, path, pixels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def own_scores(file, images, normalization):
    """The file's answers: pixels as they are into uint8, where they stand for (pixel - zero point) * scale."""
    info = file.inputs[0]
    if info.dtype == "uint8":
        return file.predict((images.astype(np.float32) - info.zero_point) * np.float32(info.scale))
    return file.predict(entering(images, normalization))


@pytest.mark.parametrize("precision", ["float32", "float16", "uint8", "int8_float_io"])
def test_the_same_classes_and_scores(trained, tmp_path, precision):
    model, normalization, calibration = trained
    images, labels = squares(40, 1)
    plain = tflite_export.convert(model, precision, entering(calibration, normalization))
    metadata = Metadata("Colors", labels=LABELS, score_range=(0, 1), image=True)
    if precision != "uint8":
        metadata = replace(metadata, normalization=normalization)
    file = tflite_export.set_metadata(plain, metadata)
    soundness.check(file.content)
    said = asked(file, images, tmp_path)
    assert "error" not in said, said
    expected = own_scores(plain, images, normalization)
    found = np.zeros_like(expected)
    for row, answer in zip(found, said["answers"], strict=True):
        assert answer["head"] == "probability"
        for index, name, score in answer["categories"]:
            assert name == LABELS[index]
            row[index] = score
    distance = float(np.abs(found - expected).max())
    right = float(np.mean(expected.argmax(1) == labels))
    print(f"mediapipe {said['version']}, {precision}: scores within {distance:.2g}; {right:.0%} right")
    assert right > 0.9
    sure = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0] > 0
    np.testing.assert_array_equal(found.argmax(1)[sure], expected.argmax(1)[sure])
    assert sure.mean() > 0.9
    assert distance <= (1 / 255 if precision == "uint8" else 1e-3)


def test_what_it_does_not_take(tmp_path):
    """What the docstring of `set_metadata` says of it."""
    said = Metadata(labels=LABELS, image=True)
    data, images = np.random.default_rng(0).random((32, 8, 8, 3), np.float32), squares(1, 2)[0][:, :8, :8]
    plain, quantized, gray = (
        tflite_export.convert(
            keras.Sequential([keras.Input((8, 8, channels)), layers.Flatten(), layers.Dense(5, activation="softmax")]),
            precision,
            data[..., :channels],
        )
        for precision, channels in (("float32", 3), ("int8", 3), ("float32", 1))
    )
    by_channel = replace(said, normalization=Normalization((1, 2, 3), 255))
    refused = {
        "Requested one of these types: uint8/float32, got INT8": (quantized, said),
        "requires specifying NormalizationOptions": (plain, said),
        "Per-channel image normalization is not available": (plain, by_channel),
        "Only RGB color space": (gray, replace(said, normalization=Normalization())),
        "depth = 3 or 4. Got 1 x 8 x 8 x 1": (gray, replace(said, normalization=Normalization(), image=False)),
    }
    for message, (file, metadata) in refused.items():
        assert message in asked(tflite_export.set_metadata(file, metadata), images, tmp_path)["error"]


# Reads metadata with classes made from the schema, and writes other metadata with them.
SCHEMA = """
import json, sys
import flatbuffers
from mediapipe.tasks.metadata import metadata_schema_py_generated as schema
read = schema.ModelMetadata.GetRootAsModelMetadata(open(sys.argv[1], "rb").read(), 0)
model = schema.ModelMetadataT.InitFromObj(read)
graph = model.subgraphMetadata[0]
(pixels,), (scores,) = graph.inputTensorMetadata, graph.outputTensorMetadata
unit, file = pixels.processUnits[0], scores.associatedFiles[0]
print(json.dumps({
    "texts": [text.decode() for text in (model.name, model.description, model.version, model.author, model.license,
              model.minParserVersion, pixels.name, pixels.description, scores.name, scores.description, file.name)],
    "types": [type(pixels.content.contentProperties).__name__, pixels.content.contentProperties.colorSpace,
              type(unit.options).__name__, type(scores.content.contentProperties).__name__, file.type],
    "numbers": [list(map(float, values)) for values in (unit.options.mean, unit.options.std, scores.stats.min,
                scores.stats.max)],
}))
model.name, model.minParserVersion, pixels.description = "theirs", "1.5.0", "A photo"
unit.options.mean, unit.options.std = [1.5, 2.5, 3.5], [4.0, 5.0, 6.0]
builder = flatbuffers.Builder(0)
builder.Finish(model.Pack(builder), b"M001")
open(sys.argv[2], "wb").write(bytes(builder.Output()))
"""


def test_classes_made_from_the_schema_read_and_write_the_same(tmp_path):
    net = keras.Sequential([keras.Input((8, 8, 3), name="image"), layers.Flatten(), layers.Dense(5, name="d")])
    texts = ("n", "what it does", "1.2", "me", "MIT")
    said = Metadata(
        *texts,
        labels=LABELS,
        score_range=(-1, 2),
        normalization=Normalization((1, 2, 3), (4, 5, 6)),
        image=True,
        inputs=[TensorText("pixels", "a picture")],
        outputs=[TensorText("colors", "how likely")],
    )
    file = tflite_export.set_metadata(tflite_export.convert(net, "float32"), said)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_bytes(flatbuffer.metadata(file.content)["TFLITE_METADATA"])
    done = subprocess.run([PYTHON, "-c", SCHEMA, ours, theirs], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["texts"] == [*texts, "1.0.0", "pixels", "a picture", "colors", "how likely", "labels.txt"]
    assert found["types"] == ["ImagePropertiesT", 1, "NormalizationOptionsT", "FeaturePropertiesT", 2]
    assert found["numbers"] == [[1, 2, 3], [4, 5, 6], [-1], [2]]
    objects = FileObjects(file.content)
    objects.set_named_buffer("TFLITE_METADATA", theirs.read_bytes())
    back = tflite_export.read_metadata(attach(objects.content(), {"labels.txt": "\n".join(LABELS).encode()}))
    assert back == replace(
        said,
        name="theirs",
        normalization=Normalization((1.5, 2.5, 3.5), (4, 5, 6)),
        inputs=[TensorText("pixels", "A photo")],
    )
    assert back.min_parser_version == "1.5.0"
