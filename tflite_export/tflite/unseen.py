"""Ranges for what calibration did not see."""

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
    guessed = []
    for operator in file.operators:
        reached = [file.range_of(int(number)) for number in operator.inputs if number >= 0]
        largest = max((max(-low, high) for low, high in filter(None, reached)), default=0.0)
        for number in map(int, operator.outputs):
            own = file.range_of(number)
            if own is not None and own[1] - own[0] <= _NOTHING and largest > _NOTHING:
                file.set_range(number, -largest, largest)
                guessed.append(file.name(number))
    return (file.content(), tuple(guessed)) if guessed else (content, ())


def with_headroom(content: bytes, factor: float) -> bytes:
    """A calibrated float file whose ranges are wider by a factor, against clipping of larger values in use.

    But for inputs of RSQRT (the variance in a normalization): its table has 128 places for positive numbers, so that
    small ones lose by what large ones gain.

    Args:
        content: A float `.tflite` file with ranges.
        factor: Above 1.
    """
    file = FileObjects(content)
    tensors = {int(number) for operator in file.operators for number in (*operator.inputs, *operator.outputs)}
    steep = {int(operator.inputs[0]) for operator in file.operators if file.kind(operator) == "RSQRT"}
    for number in tensors - steep - {-1}:
        own = file.range_of(number)
        if own is not None:
            file.set_range(number, factor * own[0], factor * own[1])
    return file.content()
