"""NEG and SQUARE as multiplications, which have int8 kernels where these have none."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def as_multiplications(content: bytes) -> bytes:
    """The float file with NEG written as MUL by -1 and SQUARE as MUL by itself: the same numbers.

    Args:
        content: A `.tflite` file.
    """
    file = FileObjects(content)
    found = {
        kind: [one for one in file.operators if file.kind(one) == kind and file.dtype(int(one.inputs[0])) == "float32"]
        for kind in ("NEG", "SQUARE")
    }
    if not any(found.values()):
        return content
    minus = file.new_constant("minus_one", np.array(-1, np.float32)) if found["NEG"] else 0
    for operator in found["NEG"]:
        file.become_multiplication(operator, minus)
    for operator in found["SQUARE"]:
        file.become_multiplication(operator, int(operator.inputs[0]))
    return file.content()
