"""Ranges of tensors that were zero all through calibration."""

from collections.abc import Iterator
from typing import Any

from tflite_export.tflite.objects import FileObjects

_NOTHING = 1e-37  # the calibrator writes the smallest float as the upper end of such a range


def with_guessed_ranges(content: bytes) -> tuple[bytes, tuple[str, ...]]:
    """A calibrated float file in which a tensor that was always zero has the range of what it is computed from.

    Its own would give a step of 1e-8, with which XNNPACK refuses the file, and which a first number that is not zero
    would overflow.

    Args:
        content: A float `.tflite` file with ranges.

    Returns: the file; the names of those tensors.
    """
    file = FileObjects(content)
    guessed = [name for _ in file.each_graph() for operator in file.operators for name in _guess(file, operator)]
    return (file.content(), tuple(guessed)) if guessed else (content, ())


def _guess(file: FileObjects, operator: Any) -> Iterator[str]:
    """Names of those outputs of an operation that have another range now."""
    reached = [file.range_of(int(number)) for number in operator.inputs if number >= 0]
    largest = max((max(-low, high) for low, high in filter(None, reached)), default=0.0)
    for number in map(int, operator.outputs):
        own = file.range_of(number)
        if own is not None and own[1] - own[0] <= _NOTHING and largest > _NOTHING:
            file.set_range(number, -largest, largest)
            yield file.name(number)
