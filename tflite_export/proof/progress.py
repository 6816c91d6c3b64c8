"""A bar for what takes long."""

import sys
import time

_WIDTH, _PAUSE = 30, 0.2


class Bar:
    """A line on standard error that grows with the time passed, and is wiped at the end.

    Args:
        label: What is going on.
        seconds: Float > 0, how long it takes.
        shown: Whether to print at all.
    """

    def __init__(self, label: str, seconds: float, shown: bool) -> None:
        self._label, self._seconds, self._shown = label, seconds, shown
        self._start = self._last = time.perf_counter()

    def update(self) -> None:
        """Draws it anew, at most five times a second."""
        now = time.perf_counter()
        if not self._shown or now - self._last < _PAUSE:
            return
        self._last = now
        passed = min(now - self._start, self._seconds)
        filled = round(_WIDTH * passed / self._seconds)
        bar = f"{'#' * filled}{'.' * (_WIDTH - filled)}"
        sys.stderr.write(f"\r{self._label} [{bar}] {passed:.0f} of {self._seconds:.0f} s")
        sys.stderr.flush()

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._last != self._start:  # something was drawn
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
