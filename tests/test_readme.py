"""What the README shows, runs."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_example_runs_and_leaves_a_checked_int8_file(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "passed: rmse" in done.stdout
    assert (tmp_path / "model.tflite").stat().st_size > 1000
    assert "Warning" not in done.stderr, done.stderr


def test_links_and_pictures_exist():
    root = Path(__file__).parents[1]
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", README) if not t.startswith("http")]
    assert targets
    assert [t for t in targets if not (root / t).exists()] == []
