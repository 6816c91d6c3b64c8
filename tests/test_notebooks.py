"""Every notebook runs from top to bottom in a process of its own, and is committed without outputs."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECONDS = 240  # of one cell, on a busy machine


def read(path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert [path.name for path in NOTEBOOKS] == ["01_quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs(path):
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_code_cell_sets_everything_up(path):
    first = next(cell for cell in read(path).cells if cell.cell_type == "code")
    assert 'os.environ["KERAS_BACKEND"] = "tensorflow"' in first.source
    assert '"pip", "install"' in first.source
    assert "import keras" not in first.source  # too early: the backend is chosen here


SHORT = {"epochs=12": "epochs=3", "EPOCHS = 30": "EPOCHS = 5", "epochs=4,": "epochs=1,"}


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["short", "whole"])
def test_quickstart_reaches_what_it_tells(short, tmp_path):
    """Runs it where its files may go; reads accuracy and bytes from what it prints last."""
    notebook = read(FOLDER / "01_quickstart.ipynb")
    for old, new in SHORT.items() if short else ():
        (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and old in cell.source]
        cell.source = cell.source.replace(old, new)
    context = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=context).execute()
    printed = [cell for cell in notebook.cells if cell.cell_type == "code"][-1].outputs
    text = "".join(output.text for output in printed if output.name == "stdout")
    found = re.findall(r"^(\w+ \w+)\s+accuracy ([\d.]+)%\s+([\d,]+) bytes\s+([\d,]+) gzip\s+([\d.]+) ms", text, re.M)
    rows = {name: (float(accuracy), int(size.replace(",", ""))) for name, accuracy, size, *_ in found}
    assert set(rows) == {"teacher float32", "student float16", "student int8"}
    assert rows["teacher float32"][0] > (70 if short else 95)
    assert rows["student int8"][0] > (50 if short else 90)
    assert rows["student int8"][1] * 10 < rows["teacher float32"][1]
    for name, (_, size) in rows.items():
        assert os.path.getsize(tmp_path / (name.replace(" ", "_") + ".tflite")) == size
    checks = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert checks.count("passed: ") == 3
    assert "Traceback" not in checks
