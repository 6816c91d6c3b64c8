"""NEG, SQUARE and SQUARED_DIFFERENCE as multiplications, which have integer kernels where these have none."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def as_multiplications(content: bytes, *, differences: bool) -> bytes:
    """The float file with NEG written as MUL by -1 and SQUARE as MUL by itself: the same numbers.

    Args:
        content: A `.tflite` file, with or without ranges.
        differences: Whether SQUARED_DIFFERENCE, which has a kernel for 8 bits but none for 16, becomes SUB and MUL.
    """
    file = FileObjects(content)
    kinds = ("NEG", "SQUARE", "SQUARED_DIFFERENCE") if differences else ("NEG", "SQUARE")
    found = {
        kind: [one for one in file.operators if file.kind(one) == kind and file.dtype(int(one.inputs[0])) == "float32"]
        for kind in kinds
    }
    if not any(found.values()):
        return content
    minus = file.new_constant("minus_one", np.array(-1, np.float32)) if found["NEG"] else 0
    for operator in found["NEG"]:
        file.become_multiplication(operator, minus)
    for operator in found["SQUARE"]:
        file.become_multiplication(operator, int(operator.inputs[0]))
    for operator in found.get("SQUARED_DIFFERENCE", ()):
        difference = file.difference_before(operator)
        squares = file.range_of(int(operator.outputs[0]))
        if squares is not None:
            file.set_range(difference, -np.sqrt(squares[1]), np.sqrt(squares[1]))
        file.set_input(operator, 0, difference)
        file.become_multiplication(operator, difference)
    return file.content()
