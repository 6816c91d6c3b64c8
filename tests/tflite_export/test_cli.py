"""The command `tflite-export`, end to end."""

import json
import subprocess
import sys

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
    "arguments",
    [
        (),
        ("convert", "m"),
        ("convert", "m", "--target", "tpu", "-o", "x"),
        ("convert", "m", "--precision", "int9", "-o", "x"),
        ("benchmark",),
    ],
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
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
    assert "int8_float_io" in done.stdout


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


@pytest.fixture(scope="module")
def small(tmp_path_factory, dense):
    """A classifier, its files, and labeled inputs."""
    folder = tmp_path_factory.mktemp("small")
    x = np.random.default_rng(0).normal(size=(60, 12)).astype("float32")
    labels = np.asarray(dense(x)).argmax(-1)
    dense.save(folder / "m.keras")
    np.savez(folder / "x.npz", x=x)
    np.savez(folder / "held.npz", x=x, y=labels)
    tflite_export.convert(dense, "float32").save(folder / "m.tflite")
    tflite_export.convert(dense, "float16").save(folder / "half.tflite")
    return folder


def test_best(small, capfd, tmp_path):
    best = ("best", small / "m.keras", "--calibration", small / "x.npz", "-o", tmp_path / "b.tflite")
    code, said, err = _run(capfd, *best, "--validation", small / "held.npz", "--max-drop", "0.05", "--prefer", "size")
    assert (code, err) == (0, "")
    assert said.startswith("float32: 1.0000 (+0.0000)")
    assert f"{tmp_path / 'b.tflite'}: float32 has 1.0000; a drop of 0.05 is accepted" in said
    assert (tmp_path / "b.tflite").exists()
    code, _, err = _run(capfd, *best, "--validation", small / "x.npz")
    assert code == 2
    assert "must hold the labels as 'y'; it holds ['x']" in err


def test_best_with_processing_inside(small, capfd, tmp_path):
    out = tmp_path / "best.tflite"
    held = dict(np.load(small / "x.npz"))
    (name,) = held
    np.savez(tmp_path / "held.npz", **held, y=np.zeros(len(held[name]), int))
    best = ("best", small / "m.keras", "--calibration", small / "x.npz", "--validation", tmp_path / "held.npz")
    code, _, err = _run(capfd, *best, "-o", out, "--rescale", "2,0", "--append", "softmax", "--batch", "4")
    assert (code, err) == (0, "")
    file = tflite_export.TFLiteModel.load(out)
    assert file.inputs[0].shape[0] == 4
    assert "SOFTMAX" in tflite_export.inspect(out).ops


def test_inspect_update_and_c_array(small, capfd, tmp_path):
    code, said, _ = _run(capfd, "inspect", small / "m.tflite", "--picture", tmp_path / "m.png")
    assert code == 0
    assert said.startswith("float32 .tflite, ")
    assert (tmp_path / "m.png").read_bytes().startswith(b"\x89PNG")
    code, said, _ = _run(capfd, "inspect", small / "m.tflite", "--json")
    assert json.loads(said)["macs"] == 60
    code, said, _ = _run(capfd, "update", small / "m.tflite", small / "half.tflite", "-o", tmp_path / "p")
    assert (code, "update of" in said) == (0, True)
    made = tflite_export.apply_update(small / "m.tflite", (tmp_path / "p").read_bytes())
    assert made == (small / "half.tflite").read_bytes()
    code, said, _ = _run(capfd, "c-array", small / "m.tflite", "-o", tmp_path / "fw/net", "--json")
    assert json.loads(said)["name"] == "net"
    assert (tmp_path / "fw/net.c").exists()


def test_bundle(small, capfd, tmp_path):
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    bundle = ("bundle", small / "m.tflite", "-o", tmp_path / "android", "--labels", tmp_path / "labels.txt")
    code, said, _ = _run(capfd, *bundle, "--data", small / "x.npz", "--name", "Digits")
    assert code == 0
    assert "app/src/main/assets/digits/golden.json" in said
    code, _, err = _run(capfd, *bundle)
    assert (code, "is there already. Choose another folder, or pass --overwrite." in err) == (2, True)


def test_verify_and_benchmark_as_json(small, capfd):
    verify = (
        "verify",
        small / "m.keras",
        small / "m.tflite",
        "--data",
        small / "x.npz",
        "--json",
        "--layers",
        "--save",
    )
    code, said, _ = _run(capfd, *verify, "--json", "--layers", "--save")
    assert code == 0
    assert json.loads(said)["layers"][0]["op"] == "FULLY_CONNECTED"
    assert json.loads((small / "m.verify.json").read_text())["passed"] is True
    code, said, _ = _run(capfd, "benchmark", small / "m.tflite", small / "half.tflite", "--json")
    assert code == 0
    assert json.loads(said)["files"][0]["ratio"] == 1


def test_options_of_convert(small, capfd, tmp_path):
    out = tmp_path / "m.tflite"
    convert = ("convert", small / "m.keras", "-o", out, "--precision")
    code, said, _ = _run(capfd, *convert, "int8", "--calibration", small / "x.npz", "--layer", "d=float32", "--json")
    assert code == 0
    assert json.loads(said)["precision"] == "int8"
    assert "bytes" in json.loads(said)["content"]
    assert tflite_export.inspect(out).ops["FULLY_CONNECTED"] == 1
    assert tflite_export.inspect(out).ops["DEQUANTIZE"] == 1
    code, _, err = _run(capfd, *convert, "float32", "--max-bytes", "100")
    assert code == 1
    assert "at most 100 were asked for" in err
    code, _, err = _run(capfd, *convert, "float32", "--min-runtime", "new")
    assert (code, "a TensorFlow Lite release" in err) == (2, True)
    code, _, err = _run(capfd, *convert, "float32", "--layer", "d=float32")
    assert (code, "tflite-export: --layer goes with 'int8'" in err) == (2, True)
    with pytest.raises(SystemExit):
        main([str(part) for part in (*convert, "int8", "--layer", "d")])
    assert "expected NAME=PRECISION" in capfd.readouterr().err


def test_target_and_delegates(small, capfd, tmp_path):
    from tflite_export.cli import TARGETS
    from tflite_export.conversion import targets

    assert tuple(targets.TARGETS) == TARGETS
    convert = ("convert", small / "m.keras", "-o", tmp_path / "m.tflite")
    code, said, _ = _run(capfd, *convert, "--target", "gpu")
    assert code == 0
    assert "target gpu: float16, since" in said
    code, _, err = _run(capfd, *convert)
    assert (code, err) == (2, "tflite-export: Pass --precision, or --target, which chooses one.\n")
    code, said, _ = _run(capfd, "delegates", small / "m.tflite", "--name", "gpu", "--name", "micro", "--json")
    assert code == 0
    assert [verdict["name"] for verdict in json.loads(said)["verdicts"]] == ["gpu", "micro"]
    code, _, err = _run(capfd, "delegates", small / "m.tflite", "--name", "npu")
    assert (code, "No delegate 'npu'" in err) == (2, True)


def test_verify_between_two_files_loads_no_tensorflow(small, capfd):
    script = (
        "import sys; from tflite_export.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'tensorflow', 'keras', 'tf_keras'} & set(sys.modules))); sys.exit(code)"
    )
    arguments = ["verify", small / "m.tflite", small / "half.tflite", "--data", small / "x.npz", "--layers"]
    run = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("passed: rmse ")
    assert run.stdout.splitlines()[-1] == "[]"
    code, _, err = _run(capfd, *arguments, "--append", "softmax")
    assert (code, "go with a model, not with a .tflite file" in err) == (2, True)


def test_processing_inside_the_file(small, capfd, tmp_path):
    out = tmp_path / "m.tflite"
    around = ("--rescale", "0.5,1", "--append", "softmax", "--append", "top_k", "-k", "2")
    code, said, _ = _run(capfd, "convert", small / "m.keras", "--precision", "float32", "-o", out, *around)
    assert code == 0
    assert [info.shape for info in tflite_export.TFLiteModel.load(out).outputs] == [(1, 2), (1, 2)]
    code, said, _ = _run(capfd, "verify", small / "m.keras", out, "--data", small / "x.npz", *around)
    assert (code, said[:6]) == (0, "passed")
    with pytest.raises(SystemExit):
        main(["convert", "m.keras", "-o", "m.tflite", "--rescale", "0.5"])
    assert "expected SCALE,OFFSET" in capfd.readouterr().err


def test_open_shapes_sparse_and_custom_operations(tmp_path, capfd):
    import keras

    keras.utils.set_random_seed(0)
    convolution = keras.layers.Conv2D(8, 3, name="c")
    model = keras.Sequential([keras.Input((None, None, 3), name="image"), convolution])
    model.save(tmp_path / "m.keras")
    convert = ("convert", tmp_path / "m.keras", "--precision", "float32", "-o", tmp_path / "m.tflite")
    code, _, err = _run(capfd, *convert)
    assert (code, "e.g. --shape image=" in err) == (2, True)
    assert "shapes={" not in err
    code, said, _ = _run(capfd, *convert, "--shape", "image=8,9,3")
    assert (code, "image: float32 (1, 8, 9, 3)" in said) == (0, True)
    code, _, err = _run(capfd, *convert, "--shape", "image=8,9,3", "--sparse", "--custom-op", "FlexErf")
    assert (code, "without its zeros" in err) == (1, True)
    with pytest.raises(SystemExit):
        main([*map(str, convert), "--shape", "image=8,9,c"])
    assert "expected NAME=N,N,..., e.g. image=224,224,3" in capfd.readouterr().err


def test_places_and_files_that_do_not_fit(small, capfd, tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("a")
    code, _, err = _run(
        capfd, "convert", small / "m.keras", "--precision", "float32", "-o", tmp_path / "labels.txt" / "m.tflite"
    )
    assert (code, "cannot be written" in err, "is no folder" in err) == (2, True, True)
    monkeypatch.setattr("os.access", lambda *arguments: False)
    code, _, err = _run(capfd, "update", small / "m.tflite", small / "half.tflite", "-o", tmp_path / "p")
    assert (code, "write-protected" in err) == (2, True)
    monkeypatch.undo()
    code, _, err = _run(capfd, "bundle", small / "m.tflite", "-o", tmp_path / "b", "--labels", small / "x.npz")
    assert (code, "is no text file with one label a line" in err) == (2, True)
    code, _, err = _run(capfd, "verify", small / "m.keras", small / "m.tflite", "--data", tmp_path / "labels.txt")
    assert (code, "make one by np.savez" in err) == (2, True)
    (tmp_path / "firmware").mkdir()
    code, _, _ = _run(capfd, "c-array", small / "m.tflite", "-o", tmp_path / "firmware")
    assert (code, (tmp_path / "firmware" / "m.h").is_file()) == (0, True)
    np.savez(tmp_path / "any.npz", whatever=np.load(small / "x.npz")[np.load(small / "x.npz").files[0]])
    code, _, _ = _run(capfd, "bundle", small / "m.tflite", "-o", tmp_path / "b", "--data", tmp_path / "any.npz")
    assert code == 0
