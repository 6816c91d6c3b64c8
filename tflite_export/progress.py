"""A bar for what takes long."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

_PAUSE = 0.2  # seconds between two drawings: no thread disturbs what is measured


def on_terminal() -> bool:
    """Whether somebody looks at standard error."""
    return bool(sys.stderr is not None and sys.stderr.isatty())


@contextlib.contextmanager
def progress(label: str, total: float | None, shown: bool) -> Iterator[Callable[[float], None]]:
    """A bar on standard error that is wiped at the end, whatever becomes of standard error in between.

    Args:
        label: What is going on.
        total: Float > 0, when it is done, or None if that is not known.
        shown: Whether to draw at all.

    Yields: a function of how far it is.
    """
    if not shown:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    # A descriptor of its own: `silenced` takes the process's away while the converter runs.
    try:
        stream: Any = os.fdopen(os.dup(sys.stderr.fileno()), "w")
    except (OSError, ValueError):  # a stream without a file, as notebooks have
        stream = sys.stderr
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(file=stream, force_terminal=True)
    last = 0.0
    try:
        with Progress(*columns, console=console, transient=True, auto_refresh=False, redirect_stderr=False,
                      redirect_stdout=False) as bar:  # fmt: skip
            task = bar.add_task(label, total=total)

            def update(done: float) -> None:
                nonlocal last
                if time.perf_counter() - last >= _PAUSE:
                    last = time.perf_counter()
                    bar.update(task, completed=done, refresh=True)

            yield update
    finally:
        if stream is not sys.stderr:
            stream.close()
