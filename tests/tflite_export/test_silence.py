"""The converter's chatter stays away from the user, at the level of file descriptors, and comes back in `Captured`."""

import io
import logging
import os
import sys
import threading
import warnings

import pytest

import tflite_export
from tflite_export.silence import silenced


def _everything():
    print("python out")
    print("python err", file=sys.stderr)
    os.write(1, b"descriptor out\n")
    os.write(2, b"descriptor err\n")
    os.system("echo child")
    warnings.warn("a warning", stacklevel=1)
    logging.getLogger("tensorflow").warning("a log line")


def test_nothing_gets_out_and_all_is_kept(capfd):
    before = sys.stdout, sys.stderr, os.fstat(1), os.fstat(2), logging.getLogger("tensorflow").level
    with silenced() as said:
        _everything()
    assert capfd.readouterr() == ("", "")
    for line in ("python out", "python err", "descriptor out", "descriptor err", "child"):
        assert line in said.text
    assert said.tail(2).count("\n") == 1
    assert (sys.stdout, sys.stderr, os.fstat(1), os.fstat(2), logging.getLogger("tensorflow").level) == before
    print("after")
    os.write(2, b"after\n")
    assert capfd.readouterr() == ("after\n", "after\n")


def test_verbose_captures_nothing(capfd):
    with silenced(verbose=True) as said:
        os.write(1, b"loud\n")
    assert capfd.readouterr().out == "loud\n"
    assert said.text == ""


def test_an_error_restores_everything(capfd):
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt), silenced():
            raise KeyboardInterrupt
    os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_streams_without_descriptor(monkeypatch):
    notebook = io.StringIO()  # as in Jupyter
    monkeypatch.setattr(sys, "stdout", notebook)
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with silenced() as said:
        print("hidden")
        kept = sys.stdout
    print("shown")
    kept.write("late")  # a log handler made inside keeps its stream
    assert notebook.getvalue() == "shown\nlate"
    assert said.text == "hidden\n"


def test_closed_descriptor():
    copy = os.dup(1)
    os.close(1)
    try:
        with silenced() as said:
            os.write(2, b"still\n")
        assert "still" in said.text
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(1)
    finally:
        os.dup2(copy, 1)
        os.close(copy)


def test_nested_blocks_and_threads(capfd):
    def work():
        for _ in range(5):
            with silenced(), silenced() as said:
                os.write(1, b"x\n")
            assert said.text == "x\n"

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(1, b"end\n")
    assert capfd.readouterr().out == "end\n"


def test_a_conversion_is_silent_unless_verbose(dense, images, capfd):
    x = images.reshape(len(images), -1)[:, :12]
    file = tflite_export.convert(dense, "int8", x)
    tflite_export.verify(dense, file, x)
    tflite_export.benchmark(file, seconds=0.01)
    with pytest.raises(ValueError, match="stayed|needs"):
        tflite_export.convert(dense, "int8")
    assert capfd.readouterr() == ("", "")
    tflite_export.convert(dense, "int8", x, verbose=True)
    out, err = capfd.readouterr()
    assert "fully_quantize" in out + err
