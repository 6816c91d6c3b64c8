"""The command `tflite-export`, end to end."""

import subprocess
import sys
import time

import numpy as np
import pytest

import tflite_export
from tflite_export.cli import main
from tflite_export.files import write_atomic


@pytest.fixture(scope="module")
def files(tmp_path_factory, convnet, images):
    folder = tmp_path_factory.mktemp("cli")
    convnet.save(folder / "net.keras")
    np.savez(folder / "data.npz", image=images)
    np.savez(folder / "unnamed.npz", images)
    np.savez(folder / "wrong.npz", image=images[:, :8])
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no")
    (folder / "broken.tflite").write_bytes(b"nothing")
    return folder


def _run(capfd, *arguments):
    code = main([str(argument) for argument in arguments])
    return (code, *capfd.readouterr())


def test_convert_verify_benchmark(files, capfd, convnet, images, tmp_path):
    out = tmp_path / "net.tflite"
    convert = ("convert", files / "net.keras", "--precision", "int8", "-o", out)
    code, said, err = _run(capfd, *convert, "--calibration", files / "unnamed.npz", "--batch", "2")
    assert (code, err) == (0, "")
    assert said.startswith(f"{out}: int8 .tflite, ")
    assert "image: int8 (2, 16, 16, 3)" in said
    assert tflite_export.verify(convnet, out, images).passed

    verify = ("verify", files / "net.keras", out, "--data", files / "data.npz")
    code, said, err = _run(capfd, *verify)
    assert (code, err) == (0, "")
    assert said.startswith("passed: ")
    code, said, err = _run(capfd, *verify, "--tolerance", "1e-9")
    assert (code, err) == (1, "")
    assert said.startswith("FAILED: ")

    code, said, err = _run(capfd, "benchmark", out, "--threads", "1", "--seconds", "0.05")
    assert (code, err) == (0, "")
    assert "ms median" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("none.keras", "float32"), "No such model"),
        (("net.keras", "int8"), "--precision int8 needs --calibration: an .npz"),
        (("net.keras", "int8", "none.npz"), "No such file"),
        (("net.keras", "int8", "broken.npz"), "is not a readable .npz file"),
        (("net.keras", "int8", "wrong.npz"), "expected shape (n, 16, 16, 3); got (96, 8, 16, 3)"),
    ],
)
def test_bad_input_writes_nothing(files, capfd, tmp_path, options, message):
    model, precision, *data = options
    out = tmp_path / "out.tflite"
    out.write_bytes(b"old")
    calibration = ["--calibration", files / data[0]] if data else []
    code, said, err = _run(capfd, "convert", files / model, "--precision", precision, "-o", out, *calibration)
    assert (code, said) == (2, "")
    assert err.startswith("tflite-export: ")
    assert message in err
    assert err.count("\n") == 1
    assert out.read_bytes() == b"old"


def test_bad_tflite_and_folder(files, capfd, tmp_path):
    code, _, err = _run(capfd, "benchmark", files / "broken.tflite")
    assert code == 2
    assert "is not a .tflite file" in err
    code, _, err = _run(capfd, "convert", files / "net.keras", "--precision", "float32", "-o", tmp_path)
    assert code == 2
    assert "is a folder; give a file name" in err
    with pytest.raises(IsADirectoryError, match="the name of a file to write; got the folder"):
        write_atomic(tmp_path, b"content")
    with pytest.raises(IsADirectoryError, match="the name of a file to write; got the folder ''"):
        write_atomic("", b"content")


@pytest.mark.parametrize(
    "arguments", [(), ("convert", "m"), ("convert", "m", "--precision", "int9", "-o", "x"), ("benchmark",)]
)
def test_usage(arguments, capfd):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capfd.readouterr().err


def test_help_is_light():
    script = (
        "import sys, contextlib\n"
        "from tflite_export.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['convert', '--help'])\n"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'ai_edge_litert', 'kdopt'} & set(sys.modules)))\n"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert done.stdout.endswith("[]\n")
    assert "int8_float_io" in done.stdout
    assert min(times) < 0.5


def test_package_face():
    assert tflite_export.convert.__module__ == "tflite_export.conversion.convert"
    assert set(tflite_export.__all__) <= set(dir(tflite_export))
    for name in tflite_export.__all__:
        assert getattr(tflite_export, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'covert'; it has"):
        _ = tflite_export.covert


def test_a_custom_class_is_imported_or_named(tmp_path, capfd, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "@keras.saving.register_keras_serializable('mine')\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    make = "import keras, mine; keras.Sequential([keras.Input((3,)), mine.Twice()]).save('custom.keras')"
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True, capture_output=True)
    convert = ("convert", tmp_path / "custom.keras", "--precision", "float32", "-o", tmp_path / "out.tflite")
    code, _, err = _run(capfd, *convert)
    assert code == 2
    assert "Could not locate class 'Twice'" in err
    assert "--import PACKAGE" in err
    assert "Full object config" not in err
    code, _, err = _run(capfd, *convert, "--import", "nowhere")
    assert (code, err) == (2, "tflite-export: No module named 'nowhere'\n")
    code, said, _ = _run(capfd, *convert, "--import", "mine")
    assert code == 0, said
