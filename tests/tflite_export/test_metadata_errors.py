"""Metadata that does not fit is refused before anything is made."""

import pytest

import tflite_export
from tflite_export import Metadata, Normalization, TensorText
from tflite_export.app import metadata as module

LABELS = ("a", "b", "c", "d", "e")


def five(**changes):
    return Metadata(**{"labels": LABELS, **changes})


MISFITS = {
    "too few labels": (
        "float32",
        lambda: five(labels=LABELS[:4]),
        r"Output 'probability' has 5 scores, shape \(1, 5\), and there are 4 labels",
    ),
    "no labels": ("float32", lambda: five(labels=[]), "has 5 scores.* there are 0 labels"),
    "an empty label": ("float32", lambda: five(labels=["a", "b", " ", "d", "e"]), "Label 2 of output .* is ' '"),
    "a label of two lines": ("float32", lambda: five(labels=["a", "b\nc", "d", "e", "f"]), r"Label 1 .*'b\\nc'"),
    "the same label twice": (
        "float32",
        lambda: five(labels=["a", "crane", "c", "crane", "e"]),
        r"Label 'crane' of output 'probability' is there 2 times, for classes \[1, 3\].*'crane \(2\)'",
    ),
    "another output": (
        "float32",
        lambda: five(labels={"logits": LABELS}),
        r"`labels` names the outputs \['logits'\]; the file has \['probability'\]",
    ),
    "labels of which output": (
        "two",
        lambda: Metadata(labels=["a", "b"]),
        r"2 outputs, \['yak', 'bee'\]: say which one `labels` belongs to, as `labels=\{'yak': \.\.\.\}`",
    ),
    "labels of the other output": (
        "two",
        lambda: Metadata(labels={"yak": ["a", "b"]}),
        "Output 'yak' has 3 scores.*2 labels",
    ),
    "range of which output": ("two", lambda: Metadata(score_range=(0, 1)), r"none of \['yak', 'bee'\] has some"),
    "normalization of which input": (
        "two",
        lambda: Metadata(normalization=Normalization()),
        r"2 inputs, \['zeta', 'alpha'\]: say which one `normalization`",
    ),
    "other channels": (
        "float32",
        lambda: Metadata(normalization=Normalization((1, 2), (3, 4))),
        r"Input 'image' has 3 channels, shape \(1, 8, 8, 3\), and the normalization 2",
    ),
    "normalization of uint8": (
        "uint8",
        lambda: Metadata(normalization=Normalization()),
        r"for float inputs; input 'image' is uint8: pixel goes in as it is, .* \(pixel - 0\) / 255 here",
    ),
    "normalization of int8": (
        "int8",
        lambda: Metadata(normalization=Normalization()),
        r"input 'image' is int8: pixel - 128 goes in .* \(pixel - 0\) / 255 here. Leave `normalization` out",
    ),
    "no image": (
        "dense",
        lambda: Metadata(image=True),
        r"needs an input of shape \(1, height, width, 3 or 1\); the file has 'x' of shape \(1, 12\)",
    ),
    "too many texts": (
        "two",
        lambda: Metadata(outputs=[TensorText("a")] * 3),
        r"each of the file's 2 outputs, \['yak', 'bee'\]; got 3",
    ),
}


@pytest.mark.parametrize("what", MISFITS)
def test_what_does_not_fit_the_file(classifiers, two_by_two, dense, monkeypatch, what):
    def made(content):
        raise AssertionError("it began to make a file")

    name, metadata, message = MISFITS[what]
    files = {**classifiers, "two": two_by_two, "dense": tflite_export.convert(dense, "float32")}
    monkeypatch.setattr(module, "FileObjects", made)
    with pytest.raises(ValueError, match=message):
        tflite_export.set_metadata(files[name], metadata())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Normalization(0, (1, 0, 1)), ValueError, r"`std` must not be 0.*got \(1.0, 0.0, 1.0\)"),
        (lambda: Normalization(0, 1e-50), ValueError, "`std` must not be 0"),
        (lambda: Normalization((1, 2), (1, 2, 3)), ValueError, "for each channel, or one for all; got 2 and 3"),
        (lambda: Normalization(float("nan")), ValueError, "`mean` must be finite"),
        (lambda: Normalization(std=()), ValueError, "`std` must be finite"),
        (lambda: Normalization(std="127.5"), ValueError, "`std` must be finite"),
        (lambda: Normalization([[1, 2], [3]]), ValueError, "`mean` must be finite"),
        (lambda: Normalization(1e39), ValueError, "`mean` must be finite numbers in the range of float32; got 1e[+]39"),
        (lambda: Metadata(score_range=(1, 0)), ValueError, r"`score_range` must be \(lowest, highest\)"),
        (lambda: Metadata(labels="labels.txt"), TypeError, "`labels` must be a list of strings"),
        (lambda: Metadata(labels={"a": [1]}), TypeError, "`labels` must be a list of strings"),
        (lambda: Metadata(normalization=(0, 255)), TypeError, "must be a Normalization"),
        (lambda: Metadata(version=3), TypeError, "`version` must be a string; got 3"),
        (lambda: Metadata(image=1), TypeError, "`image` must be True or False"),
        (lambda: Metadata(inputs=["x"]), TypeError, "`inputs` must be a list of TensorText"),
        (lambda: TensorText(b"x"), TypeError, "`name` must be a string"),
        (lambda: tflite_export.set_metadata("net.tflite", {}), TypeError, "must be a tflite_export.Metadata; got dict"),
        (lambda: tflite_export.set_metadata("none.tflite", Metadata()), FileNotFoundError, "none.tflite"),
        (lambda: tflite_export.read_metadata(b"nothing"), ValueError, "is not a .tflite file"),
    ],
)
def test_arguments_that_are_none(make, error, message):
    with pytest.raises(error, match=message):
        make()
