"""The GPU delegate of TensorFlow Lite / LiteRT: OpenCL and OpenGL on Android, Metal on iOS.

Source: LiteRT f674577 (2026-08-21), https://github.com/google-ai-edge/LiteRT
    tflite/delegates/gpu/common/model_builder.cc (2026-06-11): operations, their last versions, dtypes, 4 dimensions;
    tflite/tools/versioning/gpu_compatibility.cc (2026-06-22): conditions of each operation;
    tflite/delegates/gpu/delegate_options.cc: 8-bit files allowed, one piece by default;
    tflite/delegates/utils.cc: the largest piece, float16 weights read without their DEQUANTIZE;
and tensorflow/lite/g3doc/performance/gpu.md: 8-bit files are computed in floating point.

Left out: limits of single GPUs (sizes of buffers and images), which no document lists, and the newer GPU accelerator of
LiteRT (ML Drift), which is another delegate.
"""

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import (
    activations,
    by_table,
    constant,
    counts,
    fixed_sizes,
    input_rank,
    makes,
    rank,
    reads,
    version,
    when,
)

_FLOATS = ("float32", "float16")
_NUMBERS = (*_FLOATS, "int8", "uint8")
_MORE_READ = {
    "CAST": ("bool", "int32"),
    "GATHER": ("int32",),
    "LOGICAL_AND": ("bool",),
    "ONE_HOT": ("int32",),
    "SELECT": ("bool",),
    "SELECT_V2": ("bool",),
}
_COMPARISONS = ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
_MORE_MADE = {"CAST": ("bool", "int32"), "LOGICAL_AND": ("bool",)} | dict.fromkeys(_COMPARISONS, ("bool",))


def _dtypes(node: Node) -> str | None:
    wanted = (*_NUMBERS, *_MORE_READ.get(node.op, ()))
    for tensor in node.running:
        if tensor.dtype not in wanted:
            return f"reads {tensor.dtype}; it computes in float16 and float32"
    return makes(*_NUMBERS, *_MORE_MADE.get(node.op, ()))(node)


def _broadcast(node: Node) -> str | None:
    """Of two shapes of different rank, both of 2 or more: 4 dimensions with batch 1 and 3, 1x1, or batch x channels."""
    long, short = sorted((tensor.shape for tensor in node.given), key=len, reverse=True)
    if len(short) < 2 or len(short) == len(long):
        return None
    three = len(long) == 4 and len(short) == 3 and long[0] == 1
    ones = len(long) == 4 and short == (1, 1) and long[0] == 1
    channels = len(long) == 4 and len(short) == 2 and (long[0], long[3]) == short
    return None if three or ones or channels else f"shapes {long} and {short} of different ranks"


def _depthwise(node: Node) -> str | None:
    kernel, made, read = node.given[1].shape, node.outputs[0].shape, node.given[0].shape
    if any(len(shape) != 4 for shape in (kernel, made, read)):
        return "not 4 dimensions"
    fits = read[0] == made[0] and kernel[3] == made[3] == read[3] * int(node.option("depthMultiplier"))
    return None if fits else f"shapes {read}, {kernel} and {made} that do not belong together"


def _matmul(node: Node) -> str | None:
    if len(node.running) == 2:
        return None
    second = node.given[-1]
    fits = len(node.running) == 1 and second.data is not None and len(second.shape) == 2
    return None if fits else "a constant that is not the second input, or not of 2 dimensions"


def _cast(node: Node) -> str | None:
    read, made = node.given[0].dtype, node.outputs[0].dtype
    fits = {read, made} <= {"float32", "int32"} or ("bool" in (read, made) and {read, made} & set(_FLOATS))
    return None if fits else f"from {read} to {made}"


def _one_hot(node: Node) -> str | None:
    sizes = node.given[0].shape
    inner = sizes[1:-1] if len(sizes) > 3 else sizes[:-1]
    scalars = all(t.data is not None and t.dtype == "float32" and t.data.size == 1 for t in node.given[2:])
    fits = node.given[0].dtype == "int32" and node.option("axis", -1) == -1 and scalars and set(inner) <= {1}
    return None if fits else "more than batch and last axis, or on and off values that are no float constants"


def _select(node: Node) -> str | None:
    made = node.outputs[0].shape
    for tensor in node.given[1:]:
        if tensor.shape and tensor.shape != made and (len(tensor.shape) > 1 or tensor.shape[0] > 1):
            return f"shapes {tensor.shape} and {made}"
    return None


def _padding(node: Node) -> str | None:
    table = node.given[1].shape
    return None if table in ((3, 2), (4, 2)) else f"a tensor of {table[0] if table else 0} dimensions, not 3 or 4"


def _compared(node: Node) -> str | None:
    fits = node.readers in (("CAST",), ("SELECT",), ("SELECT_V2",))
    return None if fits else "its result is not read by one CAST or SELECT alone"


def _gathered(node: Node) -> str | None:
    indices = node.given[1]
    if len(indices.shape) != 1:
        return f"indices of {len(indices.shape)} dimensions, not 1"
    return None if indices.dtype == "int32" else f"indices of {indices.dtype}, not int32"


_ALL = activations("RELU", "RELU_N1_TO_1", "RELU6", "TANH")
_ONE = counts((1,))
_CONVOLUTION = (counts((1, 2)), _ALL)
_POOL = (version(2), _ONE, _ALL)
_UNARY = (version(2), counts((1,), (0,)))
_BINARY = (when(lambda node: len(node.given) == 2 and node.running, "inputs that are not two"), _ALL)
_REDUCE = (counts((1,), (1,)), reads(1, "int32"))
_BLOCK = when(lambda node: int(node.option("blockSize")) > 1, "blocks of 1")
_RESIZE = (
    version(3),
    _ONE,
    when(lambda node: not (node.option("alignCorners") and node.option("halfPixelCenters")), "both corner modes"),
)
_SLICED = input_rank(0, 4, 3)

TABLE = {
    "ADD": (version(2), *_BINARY, _broadcast),
    "ADD_N": (version(2), when(lambda node: len(node.given) == 2, "other than two inputs")),
    "AVERAGE_POOL_2D": _POOL,
    "BATCH_MATMUL": (_matmul,),
    "CAST": (_ONE, _cast),
    "CONCATENATION": (version(2), _ALL),
    "CONV_2D": (version(6), *_CONVOLUTION),
    "CUMSUM": (version(1), reads(0, *_FLOATS), reads(1, "int32"), constant(1, "the axis is")),
    "DENSIFY": (version(1), counts((0,))),
    "DEPTHWISE_CONV_2D": (version(6), *_CONVOLUTION, _depthwise),
    "DEPTH_TO_SPACE": (_ONE, _BLOCK),
    "DEQUANTIZE": (version(3), when(lambda node: node.given[0].dtype != "int16", "from int16")),
    "FULLY_CONNECTED": (
        version(9),
        counts((1, 2)),
        when(lambda node: node.given[0].data is None, "a constant input"),
        when(lambda node: not node.option("weightsFormat"), "shuffled weights"),
        when(
            lambda node: not node.option("keepNumDims") or len(node.given[0].shape) == len(node.outputs[0].shape),
            "dimensions kept, yet other than those of the input",
        ),
    ),
    "GATHER": (version(1), when(lambda node: len(node.given) == 2 and node.running, "two constants"), _gathered),
    "HARD_SWISH": (_ONE,),
    "LSTM": (version(4),),
    "MAX_POOL_2D": _POOL,
    "MEAN": _REDUCE,
    "MIRROR_PAD": (version(2), _ONE, when(lambda node: not node.option("mode"), "not REFLECT"), _padding),
    "MUL": (version(3), *_BINARY, _broadcast),
    "ONE_HOT": (version(1), _one_hot),
    "PACK": (),
    "PAD": (version(2), _ONE, _padding),
    "PADV2": (version(2), _ONE, _padding),
    "PRELU": (version(1),),
    "QUANTIZE": (version(2), _ONE),
    "RESHAPE": (version(1), _ONE),
    "RESIZE_BILINEAR": _RESIZE,
    "RESIZE_NEAREST_NEIGHBOR": _RESIZE,
    "SELECT": (version(1), _select),
    "SELECT_V2": (version(1), _select),
    "SLICE": (version(2), _SLICED),
    "SOFTMAX": (version(2), when(lambda node: node.option("beta", 1.0) == 1, "beta is not 1")),
    "SPACE_TO_DEPTH": (version(2), _ONE, _BLOCK),
    "SPLIT": (),
    "SPLIT_V": (),
    "STRIDED_SLICE": (
        version(4),
        when(lambda node: not node.option("ellipsisMask"), "ellipsis_mask"),
        when(lambda node: not node.option("newAxisMask"), "new_axis_mask"),
        when(lambda node: not node.option("shrinkAxisMask"), "an axis indexed away (shrink_axis_mask)"),
        _SLICED,
    ),
    "TILE": (_ONE,),
    "TRANSPOSE": (version(4), _ONE),
    "TRANSPOSE_CONV": (version(3), counts((1, 2))),
    "UNPACK": (),
    **dict.fromkeys(("LEAKY_RELU", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"), (version(2),)),
    **dict.fromkeys(("REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM"), _REDUCE),
    **dict.fromkeys(
        (
            *("ABS", "COS", "ELU", "EXP", "FLOOR", "GELU", "LOG", "LOGISTIC", "NEG", "RSQRT", "SIGN", "SIN", "SQRT"),
            *("SQUARE", "TANH"),
        ),
        _UNARY,
    ),
    **dict.fromkeys(
        ("DIV", "FLOOR_DIV", "FLOOR_MOD", "LOGICAL_AND", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "SUB"),
        (version(2), *_BINARY),
    ),
    **dict.fromkeys(_COMPARISONS, (version(2), _compared)),
}

GPU = register(
    Delegate(
        name="gpu",
        source="LiteRT f674577 (2026-08-21): tflite/delegates/gpu/common/model_builder.cc, gpu_compatibility.cc",
        rule=by_table(TABLE, fixed_sizes, rank(4), _dtypes),
        most=1,
        reads_float16=True,
        remedy="Convert with precision='float16' and fixed sizes. It takes one piece by default, the one with the most "
        "operations. Copies between GPU and CPU often cost more than the GPU gains: replace what stays on the CPU, or "
        "move it to an end of the net.",
        note="It computes 8-bit files in floating point, too; a GPU needs no quantization to be fast.",
    )
)
