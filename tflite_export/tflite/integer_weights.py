"""Constants of a float file on 8 bits, which still computes in floating point."""

from typing import Any

import numpy as np

from tflite_export.tflite.objects import FileObjects

# Operation -> (input that is the kernel, axis of its output channels).
_KERNELS = {
    "FULLY_CONNECTED": (1, 0),
    "CONV_2D": (1, 0),
    "DEPTHWISE_CONV_2D": (1, 3),
    "TRANSPOSE_CONV": (1, 0),
    "CONV_3D": (1, 4),
    "CONV_3D_TRANSPOSE": (1, 3),
    "BATCH_MATMUL": (1, None),
}
_TABLES = {"GATHER": 0, "EMBEDDING_LOOKUP": 1}
_LARGEST = 127


def with_integer_weights(content: bytes) -> bytes:
    """The file with int8 kernels and tables, those of loops included.

    A kernel becomes a constant that a DEQUANTIZE makes float, once when the file is loaded: the largest weight of each
    output channel becomes 127. A table (of an Embedding) is looked up in int8, the largest number of the whole table
    being 127, and what was looked up is made float.

    Args:
        content: A `.tflite` file in float32.
    """
    file = FileObjects(content)
    for _ in file.each_graph():
        made: dict[int, int] = {}
        for operator in list(file.operators):
            kind = file.kind(operator)
            if kind in _KERNELS:
                _narrow_kernel(file, operator, *_KERNELS[kind])
            elif kind in _TABLES:
                _narrow_table(file, operator, _TABLES[kind], made)
    return file.content()


def _narrow_kernel(file: FileObjects, operator: Any, place: int, axis: int | None) -> None:
    number = int(operator.inputs[place])
    values = file.float_values(number)
    if values is None or values.ndim < 2:
        return
    others = tuple(one for one in range(values.ndim) if one != axis)
    steps = np.maximum(np.abs(values).max(axis=others if axis is not None else None, keepdims=True), 1e-12) / _LARGEST
    integers = np.rint(values / steps).astype(np.int8)
    file.dequantized_constant(number, integers, steps.ravel().astype(np.float32), axis or 0, 8)


def _narrow_table(file: FileObjects, operator: Any, place: int, narrow: dict[int, int]) -> None:
    """`narrow`: number of a table -> that of the one in int8, of those that were made before."""
    number = int(operator.inputs[place])
    values = file.float_values(number)
    if values is None or values.ndim < 2:
        return
    step = np.maximum(np.abs(values).max(), 1e-12).astype(np.float32) / _LARGEST
    if number not in narrow:
        narrow[number] = file.like(number)
        file.set_integers(narrow[number], np.rint(values / step).astype(np.int8), step.reshape(1), 0, 8)
    file.set_input(operator, place, narrow[number])
    file.dequantized_after(operator, step.reshape(1))
