"""`keras.ops` nodes as the tf_keras layers tfmot knows."""

from typing import Any

import keras

from kdopt.graph.inline import Call, Ref
from kdopt.quantization.tfmot.steps import Step

_MERGES = {"Add", "Subtract", "Multiply", "Maximum", "Minimum"}


def translate_operation(call: Call) -> list[Step]:
    """The step for `call`; empty if it is no such node or has operands that are not tensors."""
    operation = call.operation
    if not type(operation).__module__.startswith("keras.src.ops."):
        return []
    kind, flat = type(operation).__name__, keras.tree.flatten((call.args, call.kwargs))
    if not flat or not all(isinstance(leaf, Ref) for leaf in flat):
        return []
    found = _op_layer(kind, operation, call, len(flat))
    return [Step(call.name, call.name, *found, call.inputs(), call.outputs)] if found else []


def _op_layer(kind: str, operation: Any, call: Call, operands: int) -> tuple[str, dict[str, Any]] | None:
    if kind in _MERGES and operands == 2:
        return kind, {}
    if kind == "Concatenate":
        return "Concatenate", {"axis": operation.axis}
    if kind in ("Relu", "Relu6"):
        return "ReLU", {"max_value": 6.0} if kind == "Relu6" else {}
    if kind in ("Sigmoid", "Tanh", "Silu"):
        return "Activation", {"activation": {"Silu": "swish"}.get(kind, kind.lower())}
    if kind == "Softmax" and operation.axis == -1:
        return "Softmax", {"axis": -1}
    if kind == "Reshape":
        shape = tuple(operation.newshape)
        if len(shape) > 1 and shape[0] in (-1, None) and all(isinstance(n, int) and n > 0 for n in shape[1:]):
            return "Reshape", {"target_shape": shape[1:]}
    if (
        kind == "Mean"
        and tuple(operation.axis or ()) == (1, 2)
        and len(call.shapes[0]) == (4 if operation.keepdims else 2)
    ):
        return "GlobalAveragePooling2D", {"keepdims": operation.keepdims, "data_format": "channels_last"}
    return None
