"""Operations without an integer kernel, written with those that have one."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tflite_export.tflite.objects import FileObjects


def as_multiplications(content: bytes, *, sixteen: bool) -> bytes:
    """The float file with NEG written as MUL by -1 and SQUARE as MUL by itself: the same numbers.

    Args:
        content: A `.tflite` file, with or without ranges.
        sixteen: Whether also what has a kernel for 8 bits, but none or a bad one for 16: SQUARED_DIFFERENCE becomes SUB
            and MUL, HARD_SWISH ADD and two MUL, SUM (whose output gets the step of its input) MEAN and MUL.
    """
    file = FileObjects(content)
    rules = _EVERYWHERE | _SIXTEEN if sixteen else _EVERYWHERE
    changed = [_rewrite(file, rules) for _ in file.each_graph()]
    return file.content() if any(changed) else content


def _rewrite(file: FileObjects, rules: Mapping[str, Callable[[FileObjects, Any], None]]) -> bool:
    found = [one for one in file.operators if file.kind(one) in rules and file.dtype(int(one.inputs[0])) == "float32"]
    for operator in found:
        rules[file.kind(operator)](file, operator)
    return bool(found)


def _negative(file: FileObjects, operator: Any) -> None:
    file.become(operator, "MUL", [int(operator.inputs[0]), file.new_constant("minus_one", np.array(-1, np.float32))])


def _square(file: FileObjects, operator: Any) -> None:
    file.become(operator, "MUL", [int(operator.inputs[0])] * 2)


def _squared_difference(file: FileObjects, operator: Any) -> None:
    difference = file.insert_before(operator, "SUB", [int(number) for number in operator.inputs])
    squares = file.range_of(int(operator.outputs[0]))
    if squares is not None:
        file.set_range(difference, -np.sqrt(squares[1]), np.sqrt(squares[1]))
    file.become(operator, "MUL", [difference, difference])


def _hard_swish(file: FileObjects, operator: Any) -> None:
    """x relu6(x + 3) / 6."""
    x = int(operator.inputs[0])
    three = file.new_constant("three", np.array(3, np.float32))
    sixth = file.new_constant("sixth", np.array(1 / 6, np.float32))
    six = file.insert_before(operator, "ADD", [x, three], "RELU6")
    gate = file.insert_before(operator, "MUL", [six, sixth])
    if file.range_of(x) is not None:
        file.set_range(six, 0.0, 6.0)
        file.set_range(gate, 0.0, 1.0)
    file.become(operator, "MUL", [x, gate])


def _sum(file: FileObjects, operator: Any) -> None:
    x, axes = map(int, operator.inputs)
    if not file.is_constant(axes):
        return
    places = np.frombuffer(bytes(file.model.buffers[file.graph.tensors[axes].buffer].data), np.int32)
    count = float(np.prod([file.shape(x)[place] for place in places]))
    mean = file.insert_before(operator, "MEAN", [x, axes])
    own = file.range_of(int(operator.outputs[0]))
    if own is not None:
        file.set_range(mean, own[0] / count, own[1] / count)
    file.become(operator, "MUL", [mean, file.new_constant("count", np.array(count, np.float32))])


_EVERYWHERE = {"NEG": _negative, "SQUARE": _square}
_SIXTEEN = {"SQUARED_DIFFERENCE": _squared_difference, "HARD_SWISH": _hard_swish, "SUM": _sum}
