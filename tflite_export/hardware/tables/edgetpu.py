"""The Edge TPU of Coral and of Axis ARTPEC-7: int8 and uint8, one piece, compiled ahead of time.

Source: Coral, "TensorFlow models on the Edge TPU", https://coral.ai/docs/edgetpu/models-intro/ (runtime 14 and later,
undated), as Axis republishes it
    https://developer.axis.com/computer-vision/on-device/system-on-chip/artpec-7/supported-ops/: operations and limits;
    https://developer.axis.com/computer-vision/on-device/system-on-chip/artpec-7/optimization-tips/: dtypes, constant
    sizes, 3 innermost dimensions, and that the compiler splits a graph once, at the first operation it does not have;
and compiler logs 14 to 16 in public repositories: a QUANTIZE of float inputs and the DEQUANTIZE at the end stay on the
CPU while all between them is mapped.

Left out: sizes from which on the compiler does not map a RESHAPE or a resize, and what it caches on the chip: no
document has numbers. The words "operation version not supported" in its logs have no published list of versions.
"""

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import (
    activations,
    axes,
    by_table,
    constant,
    dilation,
    fixed_sizes,
    one_dimensional,
    values,
    when,
)

_EIGHT_BITS = ("int8", "uint8")
_CONSTANTS = (*_EIGHT_BITS, "int32", "int64")  # weights, biases, shapes
_SOFTMAX = 16_000
_LSTM = ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM")


def _quantized(node: Node) -> str | None:
    """An LSTM keeps a state of 16 bits; of anything else all tensors have 8."""
    computed = node.running[:1] if node.op in _LSTM else node.running
    for tensor in (*computed, *node.outputs):
        if tensor.dtype not in _EIGHT_BITS:
            return f"{tensor.dtype}; it computes in int8 and uint8 only"
    wide = [] if node.op in _LSTM else [t.dtype for t in node.constants if t.dtype not in _CONSTANTS]
    return f"weights in {wide[0]}; it computes in int8 and uint8 only" if wide else None


def _inner(node: Node) -> str | None:
    for tensor in (*node.running, *node.outputs):
        if any(size > 1 for size in tensor.shape[:-3]):
            return f"shape {tensor.shape}: only the 3 innermost sizes may be above 1"
    return None


def _joined(node: Node) -> str | None:
    """A constant may be joined to one other input if it is all zeros: a padding."""
    for tensor in node.constants:
        zero = tensor.zero_points[0] if tensor.zero_points else 0
        if len(node.given) != 2 or tensor.data is None or (tensor.data != zero).any():
            return "a constant among its inputs that is no padding with zeros"
    return None


def _mean(node: Node) -> str | None:
    read = node.given[0].shape
    found = axes(node, 1)
    if len(read) > 1 and 0 in found:
        return "over the batch"
    if len(read) > 1 and len(read) - 1 in found and read[-1] % 4:
        return f"over {read[-1]} channels, no multiple of 4"
    return None


def _softmax(node: Node) -> str | None:
    read = node.given[0]
    if not one_dimensional(read):
        return f"over shape {read.shape}, not 1 dimension"
    return f"over {read.shape[-1]} numbers, more than {_SOFTMAX}" if read.shape[-1] > _SOFTMAX else None


_NO_ACTIVATION = activations()
_DILATED = when(lambda node: len(set(dilation(node))) == 1, "dilated differently in height and width")
_WEIGHTS = constant(1, "weights are")
_NOT_BATCH = when(lambda node: 0 not in axes(node, 1), "over the batch")

TABLE = {
    "AVERAGE_POOL_2D": (_NO_ACTIVATION,),
    "CONCATENATION": (_NO_ACTIVATION, _joined),
    "CONV_2D": (_WEIGHTS, _DILATED),
    "DEPTHWISE_CONV_2D": (_WEIGHTS, _DILATED),
    "FULLY_CONNECTED": (
        _WEIGHTS,
        when(lambda node: not node.option("weightsFormat"), "shuffled weights"),
        when(lambda node: one_dimensional(node.outputs[0]), "an output of more than 1 dimension"),
    ),
    "MAX_POOL_2D": (_NO_ACTIVATION,),
    "MEAN": (_mean,),
    "PACK": (when(lambda node: node.option("axis") != 0, "along the batch"),),
    "PAD": (when(lambda node: len(node.given[0].shape) < 4 or not any(values(node, 1)[:2]), "of the batch"),),
    "PRELU": (when(lambda node: one_dimensional(node.given[1]), "a slope for more than each channel"),),
    "REDUCE_MAX": (_NOT_BATCH,),
    "REDUCE_MIN": (_NOT_BATCH,),
    "SOFTMAX": (_softmax,),
    "SPLIT": (when(lambda node: 0 not in axes(node, 0, rank_of=1), "of the batch"),),
    "STRIDED_SLICE": (
        when(lambda node: set(values(node, 3)) == {1}, "strides other than 1"),
        when(lambda node: not node.option("ellipsisMask"), "ellipsis_mask"),
        when(lambda node: not node.option("newAxisMask"), "new_axis_mask"),
    ),
    "SUM": (_NOT_BATCH,),
    **dict.fromkeys(
        (
            *("ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "QUANTIZE", "RELU"),
            *("RELU6", "RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE"),
            *("SPACE_TO_DEPTH", "SQUARED_DIFFERENCE", "SQUEEZE", "SUB", "TANH", "TRANSPOSE"),
            *_LSTM,
        ),
        (),
    ),
    "TRANSPOSE_CONV": (_WEIGHTS,),
}

EDGETPU = register(
    Delegate(
        name="edgetpu",
        source="Coral, TensorFlow models on the Edge TPU (runtime 14 and later, undated), as Axis republishes it",
        rule=by_table(TABLE, fixed_sizes, _quantized, _inner),
        most=1,
        in_order=True,
        remedy="It runs one piece, up to the first operation that it does not have; all after that stays on the CPU. "
        "Convert with precision='int8' or 'uint8' and a static batch of 1, and write what stops it with other "
        "operations or put it at the end.",
        note="Pass the file through edgetpu_compiler, whose log has the last word.",
    )
)
