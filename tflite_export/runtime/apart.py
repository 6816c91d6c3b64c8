"""Measures a file in a fresh process, where nothing was loaded before and a crash ends nothing else."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 600.0


def ask(task: str, content: bytes, **options: Any) -> tuple[dict[str, Any], str]:
    """What a generator function of this package finds out about a file.

    Args:
        task: `"module:function"`, called with the path of the file and the options; it yields dicts for JSON.
        content: The file.
        options: What JSON can hold.

    Returns: (all that was found, merged; why there is no more, empty if it came to its end). What was found before
        a crash is kept.
    Raises: RuntimeError if the process cannot do its work at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(content)
        call = json.dumps({"task": task, "path": str(path), "options": options})
        try:
            done = subprocess.run(
                [sys.executable, "-c", "from tflite_export.runtime.apart import answer; answer()"],
                input=call.encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                timeout=_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {}, f"it took more than {_TIMEOUT_SECONDS:g} s"
    if done.returncode > 0:
        raise RuntimeError(f"The process that measures {task} ended with exit code {done.returncode}.")
    found: dict[str, Any] = {}
    for line in done.stdout.splitlines():
        with contextlib.suppress(ValueError):  # the line that a crash cut
            found |= json.loads(line)
    crash = f"the runtime crashed ({signal.Signals(-done.returncode).name})" if done.returncode else ""
    return found, found.pop("problem", crash)


def answer() -> None:
    """What the child does: reads the call, writes a line of JSON for everything it finds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtime prints is no answer
    for found in _answered(json.load(sys.stdin)):
        answers.write(json.dumps(found) + "\n")
        answers.flush()


def _answered(call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    module, _, function = call["task"].partition(":")
    try:
        yield from getattr(importlib.import_module(module), function)(call["path"], **call["options"])
    except (ValueError, RuntimeError, OSError) as error:
        yield {"problem": str(error)}
