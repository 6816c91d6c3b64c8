"""The step that runs: what the student made in it, held from its call to the loss."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kdopt.distillation.teachers import Observation

_local = threading.local()  # each replica of tf.distribute runs in a thread of its own


@dataclass
class Step:
    """One step of one Distiller.

    Attributes:
        owner: The Distiller.
        student: What its student made; `None` before the call.
    """

    owner: Any
    student: Observation | None = None


@contextmanager
def run_step(owner: Any) -> Iterator[None]:
    """Makes a step the running one of this thread."""
    before = getattr(_local, "step", None)
    _local.step = Step(owner)
    try:
        yield
    finally:
        _local.step = before


def running(owner: Any) -> Step | None:
    """The step of this Distiller that runs in this thread."""
    step = getattr(_local, "step", None)
    return step if step is not None and step.owner is owner else None
