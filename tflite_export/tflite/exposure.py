"""Inner tensors as outputs of a file, and back."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def with_all_outputs(content: bytes) -> bytes:
    """The file in which every float tensor that an operation of the main graph makes is an output, behind its own.

    Args:
        content: A `.tflite` file.
    """
    file = FileObjects(content)
    own = [int(number) for number in file.graph.outputs]
    made = [int(number) for operator in file.operators for number in operator.outputs]
    file.graph.outputs = np.array([*own, *(n for n in made if n not in own and file.dtype(n) == "float32")], np.int32)
    return file.content()


def with_outputs_of(content: bytes, like: bytes) -> bytes:
    """The file with the outputs that another of the same graph has."""
    file = FileObjects(content)
    file.graph.outputs = FileObjects(like).graph.outputs
    return file.content()
