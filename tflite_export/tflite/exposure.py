"""Inner tensors as outputs of a file, and back."""

import numpy as np

from tflite_export.tflite.objects import FileObjects


def with_all_outputs(content: bytes) -> tuple[bytes, tuple[int, ...]]:
    """The file in which every float tensor that an operation makes is an output of its graph, behind its own.

    Args:
        content: A `.tflite` file.

    Returns: that file; how many outputs of each graph are its own.
    """
    file = FileObjects(content)
    counts = []
    for _ in file.each_graph():
        own = [int(number) for number in file.graph.outputs]
        made = [int(number) for operator in file.operators for number in operator.outputs]
        inner = [number for number in made if number not in own and file.dtype(number) == "float32"]
        file.graph.outputs = np.array([*own, *inner], np.int32)
        counts.append(len(own))
    return file.content(), tuple(counts)


def with_first_outputs(content: bytes, counts: tuple[int, ...]) -> bytes:
    """The file with the first outputs of each graph alone."""
    file = FileObjects(content)
    for _, count in zip(file.each_graph(), counts, strict=True):
        file.graph.outputs = file.graph.outputs[:count]
    return file.content()
