"""NEG as a multiplication by -1, which has an int8 kernel where NEG has none."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def without_negations(content: bytes) -> bytes:
    """The float file with NEG of floats written as MUL by -1: the same numbers.

    Args:
        content: A `.tflite` file.
    """
    file = FileObjects(content)
    found = [one for one in file.operators if file.kind(one) == "NEG" and file.dtype(int(one.inputs[0])) == "float32"]
    if not found:
        return content
    minus = file.new_constant("minus_one", np.array(-1, np.float32))
    for operator in found:
        file.become_multiplication(operator, minus)
    return file.content()
