"""The step that runs: what the student made in it, held from its call to the loss."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

_local = threading.local()  # each replica of tf.distribute runs in a thread of its own


@dataclass
class Step:
    """One step of one Distiller.

    Attributes:
        owner: The Distiller.
        student: The `Observation` of what its student made (of several students, a list); `None` before the call.
        taught: Number of a teacher -> what it says of the batch, if it was asked before the student.
    """

    owner: Any
    student: Any = None
    taught: dict[int, Any] = field(default_factory=dict)


@contextmanager
def run_step(owner: Any, student: Any = None) -> Iterator[None]:
    """Makes a step the running one of this thread.

    Args:
        owner: Whose step it is.
        student: What its student has made already. Defaults to `None`: nothing yet.
    """
    before = getattr(_local, "step", None)
    _local.step = Step(owner, student)
    try:
        yield
    finally:
        _local.step = before


def running(owner: Any) -> Step | None:
    """The step of this Distiller that runs in this thread."""
    step = getattr(_local, "step", None)
    return step if step is not None and step.owner is owner else None
