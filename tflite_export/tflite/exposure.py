"""Inner tensors as outputs of a file, and back."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def with_all_outputs(content: bytes) -> tuple[bytes, int]:
    """The file in which every float tensor that an operation of the main graph makes is an output, behind its own.

    Args:
        content: A `.tflite` file.

    Returns: that file; how many outputs are its own.
    """
    file = FileObjects(content)
    own = [int(number) for number in file.graph.outputs]
    made = [int(number) for operator in file.operators for number in operator.outputs]
    file.graph.outputs = np.array([*own, *(n for n in made if n not in own and file.dtype(n) == "float32")], np.int32)
    return file.content(), len(own)


def with_first_outputs(content: bytes, count: int) -> bytes:
    """The file with its first outputs alone."""
    file = FileObjects(content)
    file.graph.outputs = file.graph.outputs[:count]
    return file.content()
