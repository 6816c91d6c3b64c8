"""Qualcomm's NPU through LiteRT's compiler plugin for AI Engine Direct (QNN).

Source: LiteRT f674577 (2026-08-21), https://github.com/google-ai-edge/LiteRT
    litert/vendors/qualcomm/compiler/Qualcomm_QNN_Compiler.md (2026-07-23): operations, dtypes, quantization;
    litert/vendors/qualcomm/compiler/qnn_compose_graph.cc (2026-08-17): LOG_SOFTMAX and SCATTER_ND besides; open sizes
    are read as 1, so a file must have fixed ones;
    litert/vendors/qualcomm/core/builders/*_op_builder.cc: int64 biases that become int32.

Left out: what the QNN library of each chip then refuses. The plugin asks it about every operation, and no document says
which dtypes and sizes it takes. Custom operations run with an op package of one's own.
"""

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import Table, by_table, constant, fixed_sizes, reads

_ALONE = ("int4", "int2")  # stored integers of fewer bits have a type in QNN when they are quantized only
_UNKNOWN = ("string", "complex64", "complex128", "resource", "variant")
_NORMS = (b"odml.rms_norm", b"odml.group_norm", b"odml.l2_norm")
_NARROWED = ("CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")  # the plugin turns their int64 bias into int32
_ON_OFF = ("int8", "uint8", "int16", "uint16", "float32")


def _dtypes(node: Node) -> str | None:
    for tensor in (*node.given, *node.outputs):
        if tensor.dtype in _UNKNOWN or (tensor.dtype in _ALONE and not tensor.scales):
            return f"{tensor.dtype}, which QNN does not have"
    wide = [tensor for tensor in node.constants if tensor.scales and tensor.dtype == "int64"]
    return "a quantized int64 bias" if wide and node.op not in _NARROWED else None


def _one_hot(node: Node) -> str | None:
    if any(tensor.data is None for tensor in node.given[1:]):
        return "depth or values computed, not constant"
    made = node.outputs[0].dtype
    return None if made in _ON_OFF and {t.dtype for t in node.given[2:]} == {made} else f"values of {made}"


def _composite(node: Node) -> str | None:
    name = node.option("name", b"") or b""
    return None if name in _NORMS else f"the composite {name.decode()!r}, no normalization that it knows"


TABLE: Table = {
    "BATCH_TO_SPACE_ND": (constant(1, "the block is"), constant(2, "the crops are")),
    "FLOOR_MOD": (reads(0, "int32"),),
    "ONE_HOT": (_one_hot,),
    "SPACE_TO_BATCH_ND": (constant(1, "the block is"), constant(2, "the paddings are")),
    "SPLIT_V": (constant(1, "the sizes are"),),
    "STABLEHLO_COMPOSITE": (_composite,),
    **dict.fromkeys(
        (
            *("ABS", "ADD", "ARG_MAX", "ARG_MIN", "AVERAGE_POOL_2D", "BATCH_MATMUL", "BROADCAST_TO", "CAST", "CEIL"),
            *("CONCATENATION", "CONV_2D", "CONV_3D", "COS", "CUMSUM", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE"),
            *("DEQUANTIZE", "DIV", "DYNAMIC_UPDATE_SLICE", "ELU", "EMBEDDING_LOOKUP", "EQUAL", "EXP", "FLOOR"),
            *("FLOOR_DIV", "FULLY_CONNECTED", "GATHER", "GATHER_ND", "GELU", "GREATER", "GREATER_EQUAL", "HARD_SWISH"),
            *("L2_NORMALIZATION", "L2_POOL_2D", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG", "LOGICAL_AND"),
            *("LOGICAL_NOT", "LOGICAL_OR", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM"),
            *("MIRROR_PAD", "MUL", "NEG", "NOT_EQUAL", "PACK", "PAD", "PADV2", "POW", "PRELU", "QUANTIZE"),
            *("REDUCE_ALL", "REDUCE_ANY", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"),
            *("RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "ROUND", "RSQRT", "SCATTER_ND"),
            *("SELECT", "SELECT_V2", "SIGN", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQRT", "SQUARE"),
            *("SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TOPK_V2", "TRANSPOSE"),
            *("TRANSPOSE_CONV", "UNPACK"),
        ),
        (),
    ),
}

QUALCOMM = register(
    Delegate(
        name="qualcomm",
        source="LiteRT f674577 (2026-08-21): litert/vendors/qualcomm/compiler/Qualcomm_QNN_Compiler.md",
        rule=by_table(TABLE, fixed_sizes, _dtypes),
        remedy="Write what stays on the CPU with other operations: each piece is a graph of its own on the NPU.",
        note="The QNN library of each chip is asked about every operation and may refuse more.",
    )
)
