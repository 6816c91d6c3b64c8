"""The bar: drawn only where asked, while the converter's chatter is taken away, too, and wiped at the end."""

import sys

import numpy as np
import pytest

import tflite_export
from tflite_export import progress
from tflite_export.silence import silenced


@pytest.mark.parametrize("shown", [False, True])
def test_drawn_where_asked_and_wiped(shown, capfd, monkeypatch):
    monkeypatch.setattr(progress, "_PAUSE", 0)
    with progress.progress("calibrating", 60, shown) as update, silenced():
        update(30)
        print("chatter", file=sys.stderr)
    out, err = capfd.readouterr()
    assert out == ""
    assert ("calibrating" in err, "30/60" in err, err.endswith("\x1b[2K")) == (shown, shown, shown)
    assert "chatter" not in err


def test_calibration_tells_how_far_it_is(dense, monkeypatch, capfd):
    data = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
    told = []

    class Bar:
        def __init__(self, label, total, shown):
            told.append((label, total, shown))

        def __enter__(self):
            return told.append

        def __exit__(self, *_):
            told.append("end")

    monkeypatch.setattr("tflite_export.conversion.job.progress", Bar)
    tflite_export.convert(dense, "int8", data)
    assert told == [("calibrating", 40, False), *range(1, 41), "end"]
    assert "calibrating" not in capfd.readouterr().err
