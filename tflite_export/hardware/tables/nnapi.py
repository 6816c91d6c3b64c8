"""Android's Neural Networks API, deprecated from Android 15 on.

Source: LiteRT f674577 (2026-08-21), https://github.com/google-ai-edge/LiteRT
    tflite/delegates/nnapi/nnapi_delegate.cc (2026-05-29), NNAPIDelegateKernel::Validate: operations, versions, dtypes;
    tflite/delegates/nnapi/nnapi_delegate.h: 3 pieces by default, those with the most operations; no dynamic sizes;
and https://developer.android.com/ndk/guides/neuralnetworks/migration-guide (2025): the deprecation.

The conditions are those of the newest NNAPI (feature level 7 and up) with a driver of the phone, not NNAPI's own CPU.
Left out: what the driver of a phone then takes of it, which differs from phone to phone.
"""

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import (
    Table,
    activations,
    by_table,
    constant,
    fixed_sizes,
    input_rank,
    makes,
    rank,
    reads,
    same_shapes,
    values,
    version,
    when,
)

_BITS = ("uint8", "int8")
_FLOAT = reads(0, "float32")
_FLOAT_OR_8 = reads(0, "float32", *_BITS)
_FLOAT_8_OR_INT = reads(0, "float32", *_BITS, "int32")
_FOUR = rank(4)
_INPUT_OF_FOUR = input_rank(0, 4)
_NO_SCALAR = when(lambda node: node.outputs[0].shape, "makes a single number")
_NO_INT_ACTIVATION = when(
    lambda node: node.given[0].dtype != "int32" or activations()(node) is None, "an activation fused into integers"
)
_PLAIN = activations()
_FIXED = constant(1, "the second input is")
_NOT_HYBRID = when(
    lambda node: node.given[0].dtype != "float32" or not {t.dtype for t in node.constants} & set(_BITS),
    "8-bit weights with float inputs",
)


def _matmul(node: Node) -> str | None:
    left, right = node.given[0], node.given[1]
    if left.dtype != right.dtype:
        return f"{left.dtype} with {right.dtype}"
    return None if left.shape[:-2] == right.shape[:-2] else "batches that differ"


def _unpacked(node: Node) -> str | None:
    last = len(node.given[0].shape) - 1
    return None if int(node.option("axis")) not in (-1, last) else "along the last axis"


def _no_int16(node: Node) -> str | None:
    """The delegate takes int16 as a quantized type in the state of an LSTM only."""
    if node.op in ("LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"):
        return None
    wide = any(tensor.dtype == "int16" for tensor in (*node.running, *node.outputs))
    return "int16, which it does not take" if wide else None


_SOME_SIZES = when(lambda node: 0 not in values(node, 1), "a part of size 0")
_EDGES = (version(2), _FLOAT_OR_8)
_UNARY_FLOAT = (version(1), _FLOAT)
_LOGICAL = (version(1), reads(0, "bool"))
_COMPARISON = (version(2), reads(0, "float32", *_BITS, "bool", "int32"))
_REDUCE = (version(2), _FLOAT_OR_8, when(lambda node: node.given[0].shape, "reads a single number"))
_RESIZE = (version(3), _FLOAT_OR_8, constant(1, "the size is"))
_ARG = (
    version(2),
    reads(0, "float16", "float32", "int32", *_BITS),
    reads(1, "int32", "int64"),
    makes("int32"),
)

TABLE: Table = {
    "ADD": (version(2), _FLOAT_8_OR_INT, _NO_INT_ACTIVATION, _FOUR),
    "ARG_MAX": _ARG,
    "ARG_MIN": _ARG,
    "AVERAGE_POOL_2D": _EDGES,
    "BATCH_MATMUL": (version(2), reads(0, "float32", "int32", "int8"), input_rank(0, 4, 2), _matmul),
    "BATCH_TO_SPACE_ND": (version(2), when(lambda n: values(n, 2) == [0, 0, 0, 0], "cropped, or not 2 axes")),
    "BIDIRECTIONAL_SEQUENCE_LSTM": (version(1), _NOT_HYBRID),
    "CAST": (version(1), _FLOAT_8_OR_INT, makes("float32", "int32", *_BITS)),
    "CONCATENATION": (version(2), _PLAIN, _INPUT_OF_FOUR, reads(0, "float16", "float32", *_BITS)),
    "CONV_2D": (version(5), when(lambda node: len(node.inputs) == 3, "no bias")),
    "DENSIFY": (constant(0, "the weights are"),),
    "DEPTHWISE_CONV_2D": (version(3),),
    "DEPTH_TO_SPACE": (_FLOAT_OR_8,),
    "DEQUANTIZE": (version(2), reads(0, *_BITS)),
    "DIV": (version(1), _FLOAT, _FOUR),
    "ELU": _UNARY_FLOAT,
    "EMBEDDING_LOOKUP": (version(1), reads(1, "float32")),
    "EXPAND_DIMS": (version(1), reads(0, "float32", "float16", "int32", *_BITS), reads(1, "int32"), _FIXED),
    "FILL": (version(1), constant(0, "the shape is"), reads(1, "float32", "int32", "int64")),
    "FLOOR": (version(1),),
    "FULLY_CONNECTED": (version(5), makes("float32", *_BITS, "int32")),
    "GATHER": (
        version(2),
        reads(0, "float32", "float16", "int32", *_BITS),
        reads(1, "int32"),
        when(lambda node: node.given[1].shape, "a single index"),
    ),
    "HARD_SWISH": (_FLOAT_OR_8,),
    "HASHTABLE_LOOKUP": (version(1), makes("float32")),
    "L2_NORMALIZATION": (version(2), _PLAIN),
    "L2_POOL_2D": _UNARY_FLOAT,
    "LOCAL_RESPONSE_NORMALIZATION": (version(1),),
    "LOG_SOFTMAX": _UNARY_FLOAT,
    "LSTM": (version(3),),
    "MAX_POOL_2D": _EDGES,
    "MEAN": (version(2), _FLOAT_OR_8, _NO_SCALAR, _INPUT_OF_FOUR),
    "MIRROR_PAD": (version(2), _FLOAT_8_OR_INT),
    "MUL": (version(3), _FLOAT_8_OR_INT, _NO_INT_ACTIVATION, _FOUR),
    "NEG": (version(2), reads(0, "float32", "int32")),
    "PACK": (version(2), _FLOAT_8_OR_INT),
    "PAD": _EDGES,
    "PADV2": _EDGES,
    "QUANTIZE": (version(2), _FLOAT_OR_8, makes(*_BITS)),
    "REDUCE_ANY": (version(2), _NO_SCALAR),
    "REDUCE_MAX": _REDUCE,
    "REDUCE_MIN": _REDUCE,
    "REDUCE_PROD": (*_UNARY_FLOAT, _NO_SCALAR),
    "RESHAPE": (
        version(1),
        _FLOAT_8_OR_INT,
        _FOUR,
        constant(1, "the shape is"),
    ),
    "RESIZE_BILINEAR": (*_RESIZE, input_rank(0, 4, 4)),
    "RESIZE_NEAREST_NEIGHBOR": _RESIZE,
    "REVERSE_V2": (version(3), _FLOAT_8_OR_INT),
    "RSQRT": _EDGES,
    "SELECT": (version(2), reads(1, "float32", "int32", *_BITS), same_shapes),
    "SLICE": (version(2), _FLOAT_8_OR_INT, reads(1, "int32"), reads(2, "int32")),
    "SOFTMAX": (version(2), _FLOAT_OR_8, makes("float32", *_BITS), _INPUT_OF_FOUR),
    "SPACE_TO_BATCH_ND": (version(2),),
    "SPACE_TO_DEPTH": _EDGES,
    "SPLIT": (version(3), reads(0, "int32"), reads(1, "float32", *_BITS, "int32"), constant(0, "the axis is")),
    "SPLIT_V": (version(2), _FLOAT_8_OR_INT, _FIXED, constant(2, "the axis is"), _SOME_SIZES),
    "SQUARED_DIFFERENCE": (version(2), _FLOAT_8_OR_INT, _FOUR),
    "SQUEEZE": (version(1),),
    "STRIDED_SLICE": _EDGES,
    "SUB": (version(3), _FLOAT_8_OR_INT, _NO_INT_ACTIVATION, _FOUR),
    "SUM": (*_UNARY_FLOAT, _NO_SCALAR),
    "SVDF": (version(1), reads(1, "float32")),
    "TANH": _EDGES,
    "TILE": (version(1), _FLOAT_8_OR_INT, reads(1, "int32")),
    "TOPK_V2": (version(2), _FLOAT_8_OR_INT, reads(1, "int32"), _FIXED),
    "TRANSPOSE": (version(2), constant(1, "the order of axes is")),
    "TRANSPOSE_CONV": (version(4), constant(0, "the output shape is"), constant(1, "weights are")),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (
        version(2),
        _NOT_HYBRID,
        when(lambda node: len(node.inputs) in (20, 24), "other than 20 or 24 inputs"),
    ),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (version(1), _NOT_HYBRID),
    "UNPACK": (version(2), _FLOAT_OR_8, input_rank(0, 4, 2), _unpacked),
    **dict.fromkeys(("ABS", "COS", "EXP", "LOG", "POW", "SIN", "SQRT"), _UNARY_FLOAT),
    **dict.fromkeys(("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL"), _COMPARISON),
    **dict.fromkeys(("LEAKY_RELU", "PRELU"), (version(1), _FLOAT_OR_8)),
    **dict.fromkeys(("LOGICAL_AND", "LOGICAL_NOT", "LOGICAL_OR"), _LOGICAL),
    **dict.fromkeys(("LOGISTIC", "RELU", "RELU6", "RELU_N1_TO_1"), _EDGES),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), (version(3), _FLOAT_8_OR_INT)),
}

NNAPI = register(
    Delegate(
        name="nnapi",
        source="LiteRT f674577 (2026-08-21): tflite/delegates/nnapi/nnapi_delegate.cc; NNAPI migration guide (2025)",
        rule=by_table(TABLE, fixed_sizes, _no_int16),
        most=3,
        reads_float16=True,
        remedy="It takes the 3 pieces with the most operations by default.",
        note="Deprecated from Android 15 on: take the GPU or the maker's delegate. The driver of a phone decides how "
        "much of this it takes.",
    )
)
