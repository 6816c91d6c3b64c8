"""Loads and runs a file from elsewhere in a process of its own: what ends that process does not end the caller's."""

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from types import TracebackType

from tflite_export.tflite import soundness

TIMEOUT_SECONDS = 120.0
_ADMITTED: set[bytes] = set()
MEMORY_BYTES = 16 * 2**30  # of addresses: a file that asks for more does not get it


class Sandbox:
    """A child process that loads one file after another and runs each once.

    Args:
        timeout: Seconds > 0 for one file.

    Example:
    ```
    with Sandbox() as sandbox:
        sandbox.admit(content)      # ValueError if the file is damaged, or crashes, or hangs
    ```
    """

    def __init__(self, timeout: float = TIMEOUT_SECONDS) -> None:
        self._timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None

    def admit(self, content: bytes, label: str = "The file") -> None:
        """Refuses a file that is damaged, that the runtime refuses, that crashes it, or that takes too long.

        Raises: ValueError.
        """
        soundness.check(content, label)
        problem = self._asked(content)
        if problem:
            raise ValueError(f"{label}: {problem}")

    def close(self) -> None:
        """Ends the child process."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked(self, content: bytes) -> str:
        child = self._child = self._child if self._child is not None and self._child.poll() is None else _started()
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def end() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(self._timeout, end)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(struct.pack("<Q", len(content)))
                child.stdin.write(content)
                child.stdin.flush()
            answer = child.stdout.readline()
        finally:
            timer.cancel()
        if answer:
            return json.loads(answer)["problem"]
        code = child.wait()
        self.close()
        if late.is_set():
            return f"running it once took more than {self._timeout:g} s."
        if code > 0:
            raise RuntimeError(
                f"The process that tries files from elsewhere ended with exit code {code}: see `python -c "
                "'import ai_edge_litert.interpreter'`."
            )
        return (
            f"it crashes ai_edge_litert ({signal.Signals(-code).name}), so it is damaged or made for another runtime."
        )


def _started() -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", "from tflite_export.runtime.sandbox import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def serve() -> None:
    """What the child does: reads length and bytes of a file, answers by a line of JSON, until its input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runtime prints is no answer
    with contextlib.suppress(ImportError, ValueError):  # Windows; a smaller limit that is there already
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    while header := sys.stdin.buffer.read(8):
        content = sys.stdin.buffer.read(struct.unpack("<Q", header)[0])
        answers.write(json.dumps({"problem": _problem(content)}) + "\n")
        answers.flush()


def _problem(content: bytes) -> str:
    """What the runtime says against a file; empty if it runs."""
    from tflite_export.runtime.runner import Runner

    try:
        runner = Runner(content)
        if runner.allocated:
            runner.set_zeros()
            runner.invoke()
    except Exception as error:  # names that are no text, numbers that do not fit, ...
        return f"{type(error).__name__}: {error}" if not isinstance(error, ValueError | RuntimeError) else str(error)
    return ""


def admit(content: bytes, label: str = "The file") -> None:
    """As `Sandbox.admit`, in a process for this file alone; a file that was admitted before is not tried again.

    Raises: ValueError.
    """
    key = hashlib.sha256(content).digest()
    if key in _ADMITTED:
        return
    with Sandbox() as sandbox:
        sandbox.admit(content, label)
    _ADMITTED.add(key)
