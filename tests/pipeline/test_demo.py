"""The demo end to end, in a few epochs: files, report, and the numbers in it measured another way."""

import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from kdopt.pipeline import datasets, demo, recipes
from kdopt.pruning.robustness import corruptions
from kdopt.reports.record import read_json

FILES = ("teacher_float32", "student_float32", "student_float16", "student_int8")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    lines = []
    report = demo.run(folder, quick=True, seed=1, say=lines.append)
    return folder, report, lines


def test_writes_every_file_and_the_report_says_what_is_in_them(done):
    folder, report, _ = done
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(f"{name}.tflite" for name in FILES), "report.html", "report.json"]
    )
    assert [variant.file for variant in report.variants] == [f"{name}.tflite" for name in FILES]
    for variant in report.variants:
        content = (folder / variant.file).read_bytes()
        assert variant.size_bytes == len(content)
        assert variant.gzip_bytes == len(gzip.compress(content, 9, mtime=0))
        assert 0 < variant.latency_ms <= variant.latency_p90_ms
        assert variant.verification["passed"], variant.verification["why"]
    assert read_json(folder / "report.json") == report
    assert json.loads((folder / "report.json").read_text())["facts"]["seed"] == 1


def accuracy_by_hand(path, images, classes):
    """Runs an int8 file with its scale and zero point."""
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert entry["dtype"] == end["dtype"] == np.int8
    scale, zero_point = entry["quantization"]
    right = 0
    for image, label in zip(images, classes, strict=True):
        stored = np.clip(np.round(image / scale) + zero_point, -128, 127).astype(np.int8)
        interpreter.set_tensor(entry["index"], stored[None])
        interpreter.invoke()
        right += int(interpreter.get_tensor(end["index"]).argmax() == label)
    return right / len(images)


def test_accuracy_is_that_of_the_file(done):
    folder, report, _ = done
    images, classes = datasets.load("digits").test
    int8 = report.variant("student int8")
    assert int8.accuracy == pytest.approx(accuracy_by_hand(folder / int8.file, images, classes), abs=0.006)
    worse = [
        accuracy_by_hand(folder / int8.file, corrupt(images, severity), classes)
        for corrupt in corruptions(value_range=(images.min(), images.max())).values()
        for severity in (1, 3, 5)
    ]
    assert int8.robustness == pytest.approx(np.mean(worse), abs=0.006)
    assert np.ptp(worse) > 0.05


def test_student_is_sparse_and_stays_so_through_quantization(done):
    _, report, _ = done
    recipe = recipes.RECIPES["digits"]
    kernels = 9 * 12 + 9 * 12 * 24 + 2 * 2 * 24 * 32 + 32 * 10
    float32, int8 = report.variant("student float32"), report.variant("student int8")
    assert float32.parameters == int8.parameters == kernels + 4 * (12 + 24) + 32 + 10
    assert float32.parameters - float32.nonzero >= round(recipe.sparsity * kernels) - 4
    assert int8.parameters - int8.nonzero >= round(recipe.sparsity * kernels) - 4
    assert float32.macs == 64 * 9 * 12 + 16 * 9 * 12 * 24 + 96 * 32 + 32 * 10
    for epoch in report.stages["quantization-aware"]:
        assert epoch["sparsity"] == pytest.approx(recipe.sparsity, abs=0.002)


def test_progress_is_told_in_numbered_stages(done):
    _, report, lines = done
    headings = [line for line in lines if line.startswith("[")]
    assert [heading[:5] for heading in headings] == [f"[{i}/6]" for i in range(1, 7)]
    assert sum(line.startswith("  epoch") for line in lines) == 2 + 3 + 1
    assert "student int8" in lines[-1]
    assert "smaller" in lines[-1]
    assert any("quick run" in note for note in report.notes)


def test_unusable_folder_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "load", lambda name: pytest.fail("went on"))
    taken = tmp_path / "file"
    taken.write_text("mine")
    with pytest.raises(OSError, match="it is a file"):
        demo.run(taken)
    with pytest.raises(OSError, match="Cannot write into the output folder"):
        demo.run(taken / "below")
    assert taken.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Cannot write into the output folder"):
        demo.run(tmp_path)


def test_bad_arguments_are_refused_before_the_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="Did you mean 'digits'"):
        demo.run(tmp_path / "new", "digit")
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        demo.run(tmp_path / "new", seed=-1)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_digits_reach_their_target(tmp_path):
    """The full recipe: at least 10x smaller, at most two points lost on 397 images, and the same twice."""
    first = demo.run(tmp_path / "here", say=lambda line: None)
    gain = first.gain(first.variant("student int8"))
    assert gain.size >= 10
    assert gain.points >= -2
    assert first.variant("teacher float32").accuracy >= 0.97
    reports = []
    for name in "ab":  # a process each: Keras numbers unnamed layers on, and the names are in the files
        command = [sys.executable, "-m", "kdopt", "demo", "--output", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    for name in FILES:
        assert (tmp_path / f"a/{name}.tflite").read_bytes() == (tmp_path / f"b/{name}.tflite").read_bytes()
    assert [v["accuracy"] for v in reports[0]["variants"]] == [v["accuracy"] for v in reports[1]["variants"]]
    assert [v["accuracy"] for v in reports[0]["variants"]] == [v.accuracy for v in first.variants]
