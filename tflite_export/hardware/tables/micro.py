"""TensorFlow Lite Micro, for microcontrollers: a file runs whole or not at all.

Source: tflite-micro 90b983c2 (2026-08-20), https://github.com/tensorflow/tflite-micro
    tensorflow/lite/micro/micro_mutable_op_resolver.h: operations;
    tensorflow/lite/micro/kernels/*.cc: dtypes and limits of each kernel, no hybrid (float inputs, 8-bit weights) ones;
    tensorflow/lite/micro/docs/porting_reference_ops.md: no tensors whose size is open;
    tensorflow/lite/kernels/internal/runtime_shape.h: 6 dimensions.

Left out: the memory of a board, and which operations an application registers: all are meant here.
"""

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import (
    Table,
    by_table,
    constant,
    fixed_sizes,
    input_rank,
    makes,
    rank,
    reads,
    when,
)

_PAIRS = {  # what a convolution or matrix product reads -> dtypes of its weights
    "float32": ("float32",),
    "int8": ("int8", "int4"),
    "int16": ("int8",),
}
_REQUANTIZE = {
    "float32": ("int8", "int16"),
    "int32": ("int8", "int16"),
    "int16": ("int8", "int16", "int32"),
    "int8": ("int8", "uint8", "int16", "int32"),
    "uint8": ("int8",),
}


def _weights(node: Node) -> str | None:
    read, kernel = node.given[0], node.given[1]
    if node.op == "TRANSPOSE_CONV":
        read = node.given[2]
    if read.dtype not in _PAIRS:
        return f"{read.dtype}; it takes float32, int8 or int16"
    fits = kernel.dtype in _PAIRS[read.dtype] and not (node.op == "TRANSPOSE_CONV" and kernel.dtype == "int4")
    return None if fits else f"{kernel.dtype} weights with {read.dtype} inputs"


def _quantize(node: Node) -> str | None:
    read, made = node.given[0].dtype, node.outputs[0].dtype
    return None if made in _REQUANTIZE.get(read, ()) else f"from {read} to {made}"


_F = (reads(0, "float32"),)
_F8 = (reads(0, "float32", "int8"),)
_F816 = (reads(0, "float32", "int8", "int16"),)
_F81632 = (reads(0, "float32", "int8", "int16", "int32"),)
_BOOL = (reads(0, "bool"),)
_COMPARED = (reads(0, "float32", "int8", "int32", "int64"),)
_ARG = (*_F8, reads(1, "int32"), makes("int32"))
_CASTABLE = ("int8", "int16", "int32", "uint32", "float32")

TABLE: Table = {
    "ARG_MAX": _ARG,
    "ARG_MIN": _ARG,
    "BATCH_MATMUL": (
        *_F816,
        input_rank(0, 4, 2),
        input_rank(1, 4, 2),
        when(lambda node: node.given[0].dtype == node.given[1].dtype, "two dtypes"),
    ),
    "BROADCAST_TO": (constant(1, "the shape is"),),
    "CAST": (reads(0, *_CASTABLE, "bool"), makes(*_CASTABLE)),
    "CONCATENATION": (reads(0, "float32", "int8", "int16", "int32", "int64", "bool"),),
    "CONV_2D": (_weights, input_rank(0, 4, 4)),
    "CUMSUM": (*_F8, reads(1, "int32")),
    "DEPTHWISE_CONV_2D": (_weights, input_rank(0, 4, 4)),
    "DEQUANTIZE": (reads(0, "int8", "int16", "uint8"), makes("float32")),
    "DIV": _F8,
    "DYNAMIC_UPDATE_SLICE": _F81632,
    "EMBEDDING_LOOKUP": (reads(0, "int32"), reads(1, "float32", "int8")),
    "EQUAL": (reads(0, "float32", "int8", "int32", "int64", "bool"),),
    "FILL": (constant(0, "the shape is"), makes("float32", "int32", "int8")),
    "FULLY_CONNECTED": (_weights,),
    "GATHER": (*_F8, reads(1, "int32")),
    "GATHER_ND": (*_F8, reads(1, "int32")),
    "GREATER": (reads(0, "float32", "int8", "int16", "int32", "int64"),),
    "IF": _BOOL,
    "MUL": _F81632,
    "NOT_EQUAL": (reads(0, "float32", "int8", "int32", "int64", "bool"),),
    "PACK": (reads(0, "float32", "int8", "int16", "int32", "int64"),),
    "QUANTIZE": (_quantize,),
    "REDUCE_ALL": _BOOL,
    "RESIZE_BILINEAR": (*_F8, constant(1, "the size is")),
    "RESIZE_NEAREST_NEIGHBOR": (*_F816, constant(1, "the size is")),
    "REVERSE_V2": (reads(0, "float32", "int8", "uint8", "int16", "int32", "int64", "bool"), reads(1, "int32")),
    "SELECT_V2": (reads(0, "bool"), reads(1, "float32", "int8", "int16")),
    "SLICE": (reads(0, "float32", "int8", "int16", "int32", "bool"),),
    "SPLIT": (reads(1, "float32", "int8", "int16", "int32"), constant(0, "the axis is")),
    "STRIDED_SLICE": (
        reads(0, "float32", "int8", "int16", "int32", "bool"),
        input_rank(0, 4),
        *(constant(place, "the range is") for place in (1, 2, 3)),
    ),
    "SVDF": _F8,
    "TRANSPOSE": (*_F816, input_rank(0, 5), constant(1, "the order of axes is")),
    "TRANSPOSE_CONV": (_weights,),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (
        *_F816,
        when(lambda n: n.given[0].dtype == "float32" or n.given[1].dtype == "int8", "weights that are not int8"),
        when(lambda n: n.given[0].dtype != "float32" or n.given[1].dtype == "float32", "8-bit weights, float inputs"),
    ),
    "ZEROS_LIKE": (reads(0, "float32", "int8", "int32", "int64"),),
    **dict.fromkeys(("ADD", "PAD", "PADV2", "SPLIT_V", "SQUARED_DIFFERENCE", "SUB", "UNPACK"), _F81632),
    **dict.fromkeys(
        (
            *("ABS", "AVERAGE_POOL_2D", "EXPAND_DIMS", "LEAKY_RELU", "LOGISTIC", "MAX_POOL_2D", "MEAN", "PRELU"),
            *("RELU", "RELU6", "SOFTMAX", "SUM", "TANH"),
        ),
        _F816,
    ),
    **dict.fromkeys(
        (
            *("ADD_N", "BATCH_TO_SPACE_ND", "DEPTH_TO_SPACE", "ELU", "HARD_SWISH", "L2_NORMALIZATION", "LOG_SOFTMAX"),
            *("MIRROR_PAD", "REDUCE_MAX", "REDUCE_MIN", "RSQRT", "SPACE_TO_BATCH_ND", "SPACE_TO_DEPTH"),
        ),
        _F8,
    ),
    **dict.fromkeys(
        (
            *("CEIL", "COS", "EXP", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "L2_POOL_2D", "LOG", "NEG", "ROUND", "SIN"),
            *("SQRT", "SQUARE"),
        ),
        _F,
    ),
    **dict.fromkeys(("GREATER_EQUAL", "LESS", "LESS_EQUAL"), _COMPARED),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR"), _BOOL),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), (reads(0, "float32", "int8", "int16", "int32", "int64"),)),
    **dict.fromkeys(
        (
            *("ASSIGN_VARIABLE", "BROADCAST_ARGS", "CALL_ONCE", "READ_VARIABLE", "RESHAPE", "SHAPE", "SQUEEZE"),
            *("VAR_HANDLE", "WHILE"),
        ),
        (),
    ),
}

# Custom operations that come with it, by their names in a file.
CUSTOM = (
    *("CIRCULAR_BUFFER", "TFLM_DECODE", "TFLite_Detection_PostProcess", "ethos-u"),
    *("SignalDelay", "SignalEnergy", "SignalFftAutoScale", "SignalFilterBank", "SignalFilterBankLog"),
    *("SignalFilterBankSpectralSubtraction", "SignalFilterBankSquareRoot", "SignalFramer", "SignalIrfft"),
    *("SignalOverlapAdd", "SignalPCAN", "SignalRfft", "SignalStacker", "SignalWindow"),
)

_built_in = by_table(TABLE, fixed_sizes, rank(6))


def runs_on_micro(node: Node) -> str | None:
    """The rule of TensorFlow Lite Micro."""
    return None if node.custom and node.op in CUSTOM else _built_in(node)


MICRO = register(
    Delegate(
        name="micro",
        source="tflite-micro 90b983c2 (2026-08-20): micro_mutable_op_resolver.h, tensorflow/lite/micro/kernels",
        rule=runs_on_micro,
        needs=runs_on_micro,
        remedy="A file runs whole there or does not load: write these layers with other operations; convert with "
        "precision='int8' or 'float32' and a static batch.",
        note="Register in the application the operations that `inspect` lists.",
    )
)
