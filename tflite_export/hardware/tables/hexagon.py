"""The Hexagon delegate of TensorFlow Lite: 8-bit files on the DSP of older Qualcomm chips.

Deprecated: the address of its guide, https://www.tensorflow.org/lite/performance/hexagon_delegate, now shows the NNAPI
migration guide. The guide named Snapdragon 660, 710, 820, 821, 835, 845 and 855.

Source: LiteRT f674577 (2026-08-21), https://github.com/google-ai-edge/LiteRT
    tflite/delegates/hexagon/utils.cc (2026-08-14): operations, versions, dtypes, 4 dimensions, options;
    tflite/delegates/hexagon/hexagon_delegate.cc: at most 4 pieces, of 2 operations and more;
    tflite/delegates/hexagon/README.md: the same in words.
"""

from collections.abc import Sequence

from tflite_export.hardware.nodes import Node
from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import (
    Rule,
    Table,
    activations,
    by_table,
    constant,
    fixed_sizes,
    rank,
    reads,
    strides,
    undilated,
    version,
    when,
)

_BITS = ("uint8", "int8")
_NEWEST = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"), 3),
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), 3),
    "FULLY_CONNECTED": 4,
    "HARD_SWISH": 1,
    "NEG": 1,
    "RESHAPE": 1,
}
_LARGEST_WINDOW = 12


def _typed(*wanted: Sequence[str]) -> Rule:
    """One entry for each input; one that is left out passes."""

    def rule(node: Node) -> str | None:
        if len(node.inputs) != len(wanted):
            return f"{len(node.inputs)} inputs; it takes {len(wanted)}"
        for tensor, dtypes in zip(node.inputs, wanted, strict=True):
            if tensor is not None and tensor.dtype not in dtypes:
                return f"reads {tensor.dtype}; it computes in int8 and uint8"
        return None

    return rule


def _all_eight_bits(node: Node) -> str | None:
    found = next((tensor.dtype for tensor in node.given if tensor.dtype not in _BITS), None)
    return None if found is None else f"reads {found}; it computes in int8 and uint8"


def _versions(node: Node) -> str | None:
    return version(_NEWEST.get(node.op, 2))(node)


def _depthwise(node: Node) -> str | None:
    if undilated(node) and strides(1)(node):
        return "dilated and strided"
    one = int(node.option("depthMultiplier")) == 1 or (not undilated(node) and node.given[0].shape[3:] == (1,))
    if not one:
        return "several outputs for each channel"
    return "a kernel of height 1" if node.given[1].shape[1] < 2 else None


def _pooled(node: Node) -> str | None:
    large = max(int(node.option("filterHeight")), int(node.option("filterWidth"))) > _LARGEST_WINDOW
    return "a window above 12 with padding SAME" if large and not node.option("padding") else None


_INT, _ANY_INT = ("int32",), ("int32", "int64")
_RELUS = activations("RELU", "RELU6", "RELU_N1_TO_1")
_ONE = (_typed(_BITS),)
_TWO = (_typed(_BITS, _BITS),)
_CONV = (_typed(_BITS, _BITS, _INT), _RELUS, strides(3))
_AXES = (_typed(_BITS, _INT), constant(1, "the second input is"))

TABLE: Table = {
    "ADD": (*_TWO, _RELUS),
    "ARG_MAX": (_typed(_BITS, _INT),),
    "ARG_MIN": (_typed(_BITS, _INT),),
    "AVERAGE_POOL_2D": (*_ONE, activations()),
    "CONCATENATION": (_all_eight_bits,),
    "CONV_2D": (*_CONV, undilated),
    "DEPTHWISE_CONV_2D": (*_CONV, _depthwise),
    "FULLY_CONNECTED": (
        _typed(_BITS, _BITS, _INT),
        when(lambda node: len(node.given[1].scales) < 2, "weights with a step for each channel"),
        constant(2, "the bias is"),
        _RELUS,
        when(lambda node: not node.option("keepNumDims"), "keep_num_dims"),
        when(lambda node: not node.option("weightsFormat"), "shuffled weights"),
    ),
    "L2_NORMALIZATION": (*_ONE, activations()),
    "MAXIMUM": _TWO,
    "MAX_POOL_2D": (*_ONE, _pooled, activations()),
    "MEAN": _AXES,
    "MINIMUM": _TWO,
    "MIRROR_PAD": _AXES,
    "MUL": (*_TWO, _RELUS),
    "PACK": (_all_eight_bits,),
    "PAD": _AXES,
    "RESHAPE": (
        when(lambda node: len(node.inputs) < 3, "more than two inputs"),
        reads(0, *_BITS),
    ),
    "RESIZE_BILINEAR": _AXES,
    "RESIZE_NEAREST_NEIGHBOR": _AXES,
    "RSQRT": (_typed(("int8",)),),
    "SLICE": (_typed(_BITS, _ANY_INT, _ANY_INT), constant(1, "the begin is"), constant(2, "the size is")),
    "SPLIT": (_typed(_INT, _BITS), constant(0, "the axis is")),
    "SQUARED_DIFFERENCE": (_typed(("int8",), ("int8",)),),
    "STRIDED_SLICE": (
        _typed(_BITS, _INT, _INT, _INT),
        *(constant(place, "the range is") for place in (1, 2, 3)),
        when(lambda node: not node.option("ellipsisMask") and not node.option("newAxisMask"), "ellipsis or new axis"),
    ),
    "SUB": (*_TWO, _RELUS),
    "TRANSPOSE": (_typed(_BITS, _INT),),
    "TRANSPOSE_CONV": (
        when(lambda node: node.given[0].dtype == "int32", "its output shape is not int32"),
        when(lambda node: {tensor.dtype for tensor in node.given[1:3]} <= set(_BITS), "not 8 bits"),
        strides(3),
    ),
    **dict.fromkeys(
        (
            *("DEPTH_TO_SPACE", "HARD_SWISH", "LOGISTIC", "NEG", "QUANTIZE", "RELU", "RELU6", "SOFTMAX"),
            *("SPACE_TO_DEPTH", "TANH"),
        ),
        _ONE,
    ),
}

HEXAGON = register(
    Delegate(
        name="hexagon",
        source="LiteRT f674577 (2026-08-21): tflite/delegates/hexagon/utils.cc, hexagon_delegate.cc",
        rule=by_table(TABLE, fixed_sizes, rank(4), _versions),
        most=4,
        smallest=2,
        remedy="Convert with precision='int8'; it has neither float operations nor dense layers with a step for each "
        "channel.",
        note="Deprecated; its guide named Snapdragon 660 to 855. For newer chips see 'qualcomm'.",
    )
)
