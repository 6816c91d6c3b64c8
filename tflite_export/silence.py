"""Keeps the converter's chatter, Python's and C++'s, from the user, and keeps it at hand for an error."""

import contextlib
import ctypes
import io
import logging
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

_LOCK = threading.RLock()
_LOGGERS = ("tensorflow", "absl")


class Captured:
    """What was said inside `silenced()`; complete once the block has ended."""

    def __init__(self) -> None:
        self.text = ""

    def tail(self, lines: int = 12, width: int = 220) -> str:
        """The last `lines` non-empty lines, each cut at `width` characters."""
        said = [line[:width] for line in self.text.splitlines() if line.strip()]
        return "\n".join(said[-lines:])


class _Shield(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr`.

    A log handler made inside the block keeps its stream for ever, so after the block this one passes on to the real
    stream instead of being closed.
    """

    def __init__(self, real: Any, sink: BinaryIO) -> None:
        self._real, self._sink = real, sink
        self.active = True

    def write(self, text: str) -> int:
        if not self.active:
            return self._real.write(text) if self._real is not None else len(text)
        self._sink.write(text.encode("utf-8", "replace"))
        return len(text)

    def flush(self) -> None:
        if not self.active and self._real is not None:
            self._real.flush()

    def writable(self) -> bool:
        return True


@contextlib.contextmanager
def silenced(verbose: bool = False) -> Iterator[Captured]:
    """Captures stdout, stderr (Python streams and file descriptors 1 and 2), warnings and TensorFlow's log.

    Descriptors, streams, filters and levels are put back whatever happens. They belong to the whole process: blocks
    of several threads run one after another, and what another thread prints meanwhile is captured too. Works where
    `sys.stdout` has no descriptor (Jupyter, pytest) and where descriptors 1 or 2 are closed.

    Args:
        verbose: With `True` nothing is captured.

    Returns: a context manager that gives a `Captured`.
    """
    captured = Captured()
    if verbose:
        yield captured
        return
    with _LOCK, tempfile.TemporaryFile(buffering=0) as sink:
        try:
            with _descriptors(sink.fileno()), _streams(sink), _calm_logs(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield captured
        finally:
            sink.seek(0)
            captured.text = sink.read().decode("utf-8", "replace")


@contextlib.contextmanager
def _descriptors(target: int) -> Iterator[None]:
    _flush()
    saved: list[tuple[int, int]] = []
    try:
        for descriptor in (1, 2):
            with contextlib.suppress(OSError):  # closed in a daemon: nothing to keep quiet
                saved.append((descriptor, os.dup(descriptor)))
                os.dup2(target, descriptor)
        yield
    finally:
        _flush()
        for descriptor, copy in saved:
            os.dup2(copy, descriptor)
            os.close(copy)


@contextlib.contextmanager
def _streams(sink: BinaryIO) -> Iterator[None]:
    real = sys.stdout, sys.stderr
    shields = [_Shield(stream, sink) for stream in real]
    sys.stdout, sys.stderr = shields
    try:
        yield
    finally:
        sys.stdout, sys.stderr = real
        for shield in shields:
            shield.active = False


@contextlib.contextmanager
def _calm_logs() -> Iterator[None]:
    # Only loggers that exist: making absl's here would give it the wrong class.
    known = [logging.getLogger(name) for name in _LOGGERS if name in logging.root.manager.loggerDict]
    levels = [(logger, logger.level) for logger in known]
    for logger in known:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):  # C's own buffers
        ctypes.CDLL(None).fflush(None)
