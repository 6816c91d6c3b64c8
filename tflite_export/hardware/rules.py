"""The conditions that the tables of delegates are made of.

A rule takes an operation and returns None if it runs, else the reason why not.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tflite_export.hardware.nodes import Node
from tflite_export.tflite.records import TensorRecord

Rule = Callable[[Node], str | None]
Table = Mapping[str, Sequence[Rule]]

ABSENT = "not among its operations"
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")


def by_table(table: Table, *always: Rule) -> Rule:
    """The rule of a table: the operation is in it, and passes the rules for all operations and its own."""

    def rule(node: Node) -> str | None:
        if node.custom or node.op not in table:
            return ABSENT
        try:
            return first(node, (*always, *table[node.op]))
        except IndexError:
            return "fewer inputs than it takes"

    return rule


def first(node: Node, rules: Sequence[Rule]) -> str | None:
    """The first reason against an operation."""
    return next((reason for rule in rules if (reason := rule(node)) is not None), None)


def when(holds: Callable[[Node], object], reason: str) -> Rule:
    """Runs if `holds(node)` is true."""
    return lambda node: None if holds(node) else reason


def fixed_sizes(node: Node) -> str | None:
    """No size of its tensors is left open."""
    return "a size is left open" if node.open else None


def version(last: int) -> Rule:
    """Knows the operation up to this version."""
    return lambda node: f"version {node.version}, newer than {last}" if node.version > last else None


def rank(most: int) -> Rule:
    """Most dimensions of any of its tensors."""

    def rule(node: Node) -> str | None:
        found = max((len(tensor.shape) for tensor in (*node.given, *node.outputs)), default=0)
        return f"a tensor of {found} dimensions, more than {most}" if found > most else None

    return rule


def input_rank(place: int, most: int, least: int = 0) -> Rule:
    """Dimensions of an input, if it is there."""

    def rule(node: Node) -> str | None:
        tensor = node.input(place)
        if tensor is None or least <= len(tensor.shape) <= most:
            return None
        return f"reads {len(tensor.shape)} dimensions; it takes {_or(range(least, most + 1))}"

    return rule


def reads(place: int, *dtypes: str) -> Rule:
    """dtype of an input, if it is there."""
    return lambda node: _outside([tensor for tensor in [node.input(place)] if tensor is not None], dtypes)


def makes(*dtypes: str) -> Rule:
    """dtype of its outputs."""
    return lambda node: _outside(node.outputs, dtypes)


def constant(place: int, what: str) -> Rule:
    """An input that must be stored in the file, if it is there."""

    def rule(node: Node) -> str | None:
        tensor = node.input(place)
        return f"{what} computed, not constant" if tensor is not None and tensor.data is None else None

    return rule


def counts(computed: Sequence[int], stored: Sequence[int] | None = None, outputs: int = 1) -> Rule:
    """How many inputs are computed, how many constant (None: any number), how many outputs."""

    def rule(node: Node) -> str | None:
        if len(node.running) not in computed:
            return f"{len(node.running)} computed inputs; it takes {_or(computed)}"
        if stored is not None and len(node.constants) not in stored:
            return f"{len(node.constants)} constant inputs; it takes {_or(stored)}"
        return None if len(node.outputs) == outputs else f"{len(node.outputs)} outputs; it makes {outputs}"

    return rule


def activation(node: Node) -> str:
    """The activation fused into an operation, `"NONE"` for none."""
    number = int(node.option("fusedActivationFunction"))
    return _ACTIVATIONS[number] if number < len(_ACTIVATIONS) else str(number)


def activations(*allowed: str) -> Rule:
    """Which activations may be fused into it, besides none."""

    def rule(node: Node) -> str | None:
        found = activation(node)
        return None if found == "NONE" or found in allowed else f"{found} fused into it"

    return rule


def strides(most: int) -> Rule:
    """Largest stride of a convolution."""

    def rule(node: Node) -> str | None:
        found = max(int(node.option("strideH", 1)), int(node.option("strideW", 1)))
        return f"stride {found}, more than {most}" if found > most else None

    return rule


def undilated(node: Node) -> str | None:
    """A convolution without gaps between what it reads."""
    return None if dilation(node) == (1, 1) else "dilated: {} x {}".format(*dilation(node))


def dilation(node: Node) -> tuple[int, int]:
    """Of a convolution, height and width."""
    return int(node.option("dilationHFactor", 1)), int(node.option("dilationWFactor", 1))


def same_shapes(node: Node) -> str | None:
    """All inputs of one shape: no broadcasting."""
    shapes = dict.fromkeys(tensor.shape for tensor in node.given)
    return f"shapes that differ: {' and '.join(map(_size, shapes))}" if len(shapes) > 1 else None


def values(node: Node, place: int) -> list[int]:
    """Integers of a constant input; none if it is computed or left out."""
    tensor = node.input(place)
    return [] if tensor is None or tensor.data is None else [int(value) for value in np.ravel(tensor.data)]


def axes(node: Node, place: int, rank_of: int = 0) -> list[int]:
    """Values of a constant input as axes of an input, counted from 0."""
    tensor = node.input(rank_of)
    size = len(tensor.shape) if tensor is not None else 0
    return [value % size if size else value for value in values(node, place)]


def one_dimensional(tensor: TensorRecord) -> bool:
    """Whether only the last size is above 1."""
    return all(size == 1 for size in tensor.shape[:-1])


def _outside(tensors: Sequence[TensorRecord], dtypes: Sequence[str]) -> str | None:
    found = next((tensor.dtype for tensor in tensors if tensor.dtype not in dtypes), None)
    return None if found is None else f"{found}; it takes {_or(dtypes)}"


def _or(choices: Sequence[object]) -> str:
    words = [str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
