"""How much an operation computes: multiply-accumulates, from the shapes of its tensors."""

import math
from collections.abc import Callable

from tflite_export.tflite.records import OpRecord

# Operation -> multiply-accumulates; each output of a convolution sums kernel height x width x inputs of its group.
_RULES: dict[str, Callable[[OpRecord], int]] = {
    "CONV_2D": lambda op: math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[1:]),
    "DEPTHWISE_CONV_2D": lambda op: math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[1:3]),
    "CONV_3D": lambda op: math.prod(op.outputs[0].shape) * math.prod(op.inputs[1].shape[:4]),
    "FULLY_CONNECTED": lambda op: math.prod(op.outputs[0].shape) * op.inputs[1].shape[-1],
    "BATCH_MATMUL": lambda op: math.prod(op.outputs[0].shape) * op.inputs[0].shape[-1],
    # Each input is spread over kernel height x width x outputs.
    "TRANSPOSE_CONV": lambda op: math.prod(op.inputs[2].shape) * math.prod(op.inputs[1].shape[:3]),
}


def macs(op: OpRecord) -> int:
    """Multiply-accumulates of one run of an operation; 0 for those that are no convolution and no matrix product.

    An open batch counts as one sample; the body of a loop counts once.
    """
    rule = _RULES.get(op.name)
    return rule(op) if rule is not None else 0
