"""The command line: parses, calls, prints, and its exit codes."""

import subprocess
import sys
from pathlib import Path

import keras
import pytest

import kdopt
from kdopt import cli


@pytest.mark.parametrize("command", [["-m", "kdopt"], [str(Path(sys.executable).with_name("kdopt"))]])
def test_help_loads_no_framework(command):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--help"], capture_output=True, text=True, check=True
    )
    assert "kdopt demo --output out" in done.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "kdopt.cli" in loaded
    assert loaded.isdisjoint({"keras", "tensorflow", "numpy", "tflite_export"})


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"kdopt {kdopt.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ([], "required: COMMAND"),
        (["demo"], "-o/--output"),
        (["demo", "-o", "x", "--dataset", "cifar"], "invalid choice: 'cifar'"),
        (["measure", "x.keras", "--input-shape", "a,b"], "expected positive integers"),
    ],
)
def test_bad_usage(arguments, wanted, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert wanted in capsys.readouterr().err


def test_unusable_output_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["demo", "--output", str(tmp_path / "file")]) == 2
    assert "it is a file" in capsys.readouterr().err


def test_datasets_are_those_of_the_pipeline():
    from kdopt.pipeline.datasets import DATASETS

    assert tuple(DATASETS) == cli.DATASETS


def test_measure(tmp_path, capsys):
    inputs = keras.Input((None, None, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(inputs))
    keras.Model(inputs, keras.layers.Dense(2, name="dense")(x), name="net").save(tmp_path / "net.keras")
    assert cli.main(["measure", str(tmp_path / "net.keras"), "--input-shape", "8,8,3"]) == 0
    conv, dense, total = capsys.readouterr().out.splitlines()
    assert conv == f"conv (Conv2D): 112 parameters, 108 not zero, MACs {36 * 27 * 4:,}"
    assert dense.endswith("MACs 8")
    assert total == f"net: 122 parameters, 116 not zero, 488 bytes of weights, MACs {36 * 27 * 4 + 8:,}"
    assert cli.main(["measure", str(tmp_path / "net.keras")]) == 2
    assert "Pass input_shape=" in capsys.readouterr().err
    assert cli.main(["measure", str(tmp_path / "missing.keras")]) == 2
    assert "missing.keras" in capsys.readouterr().err
