"""The delegates that tables know.

To add one: a file in `tflite_export/hardware/tables` with its source in the docstring and `register(Delegate(...))`.
"""

import importlib
import pkgutil
from dataclasses import dataclass

from tflite_export.hardware import tables
from tflite_export.hardware.rules import Rule


@dataclass(frozen=True)
class Delegate:
    """What is written about a delegate.

    Attributes:
        name: As users say it.
        source: Documents and their dates.
        rule: Operation -> None if it runs, else why not.
        most: Pieces of a graph that it takes at most; None: all.
        in_order: Whether it takes the first pieces, not those with the most operations.
        smallest: Operations that a piece must have at least.
        reads_float16: Whether it reads float16 weights itself, without the DEQUANTIZE before them.
        needs: Rule that every operation must pass, those in loops too, or the file does not load at all; None: the rest
            runs on the CPU.
        remedy: What to do when something stays on the CPU.
        note: What to know in any case.
    """

    name: str
    source: str
    rule: Rule
    most: int | None = None
    in_order: bool = False
    smallest: int = 1
    reads_float16: bool = False
    needs: Rule | None = None
    remedy: str = ""
    note: str = ""


_KNOWN: dict[str, Delegate] = {}


def register(delegate: Delegate) -> Delegate:
    """Makes a delegate known, and returns it.

    Raises: ValueError if its name is taken or it names no source.
    """
    if not delegate.source.strip():
        raise ValueError(f"The table of {delegate.name!r} must name its source.")
    if delegate.name in _KNOWN:
        raise ValueError(f"A delegate {delegate.name!r} is registered already.")
    _KNOWN[delegate.name] = delegate
    return delegate


def known() -> dict[str, Delegate]:
    """Name -> delegate, of all tables."""
    for module in sorted(found.name for found in pkgutil.iter_modules(tables.__path__)):
        importlib.import_module(f"{tables.__name__}.{module}")
    return dict(sorted(_KNOWN.items()))
