"""Versions of the operations that are put into a file, or get other tensors, after the converter.

The numbers are TensorFlow's own (tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc, 2025): the version tells
a runtime which types an operation must know.
"""

from collections.abc import Sequence

_INTEGERS = ("int8", "int4")


def version_of(kind: str, inputs: Sequence[str], outputs: Sequence[str], per_channel: bool) -> int | None:
    """The version that an operation needs for its types; None for kinds that are not changed here.

    Args:
        kind: Name, e.g. `"FULLY_CONNECTED"`.
        inputs: Types of its inputs, e.g. `["float32", "int8"]`.
        outputs: Types of its outputs.
        per_channel: Whether a constant of it has a step for each channel.
    """
    if kind == "DEQUANTIZE":
        if inputs[0] == "int4":
            return 6
        if inputs[0] == "int8":
            return 5 if per_channel else 2
        return 3 if inputs[0] in ("float16", "int16") else 1
    if kind == "QUANTIZE":
        return 3 if per_channel else 2 if outputs[0] == "int16" else 1
    if kind == "FULLY_CONNECTED" and len(inputs) > 1 and inputs[1] in _INTEGERS:
        if inputs[0] == "float32":
            return 12 if per_channel else 9
        if inputs[1] == "int4":
            return 13 if inputs[0] == "int16" else 10
    if kind == "GATHER":
        return {"int8": 2, "bool": 3, "int16": 4}.get(inputs[0], 1)
    return None
