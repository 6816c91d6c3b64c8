"""The operations of a file as a delegate sees them: tensors in place, options, version, who reads whom."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from tflite_export.tflite import records
from tflite_export.tflite.inspection import owners, shown
from tflite_export.tflite.objects import FileObjects
from tflite_export.tflite.records import TensorRecord
from tflite_export.tflite.work import macs


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes:
        number: Place in its graph, which is the order in which it runs.
        op: Name, e.g. `"CONV_2D"`.
        custom: Whether it is not built in.
        version: Of the operation, as stored.
        inputs: In place; None for one that is left out.
        outputs: In place.
        reads: Numbers of the tensors it reads.
        makes: Numbers of the tensors it makes.
        readers: Names of the operations that read what it makes.
        open: Whether a size of one of its tensors is left open.
        layer: Path of the layer it comes from, as `inspect` shows it; empty if its name tells none.
        macs: Multiply-accumulates of one run, those of the body of a loop or branch included.
        options: Object of the generated schema; None if nothing is stored.
    """

    number: int
    op: str
    custom: bool
    version: int
    inputs: tuple[TensorRecord | None, ...]
    outputs: tuple[TensorRecord, ...]
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    readers: tuple[str, ...]
    open: bool
    layer: str
    macs: int
    options: Any = None

    def option(self, name: str, default: Any = 0) -> Any:
        """An option by its name in the schema, e.g. `"strideH"`; the default where none is stored."""
        return getattr(self.options, name, default)

    def input(self, place: int) -> TensorRecord | None:
        """An input; None if it is left out or there is no such place."""
        return self.inputs[place] if place < len(self.inputs) else None

    @property
    def given(self) -> tuple[TensorRecord, ...]:
        """Inputs that are there, constants included."""
        return tuple(tensor for tensor in self.inputs if tensor is not None)

    @property
    def running(self) -> tuple[TensorRecord, ...]:
        """Inputs that are computed, not constant."""
        return tuple(tensor for tensor in self.given if tensor.data is None)

    @property
    def constants(self) -> tuple[TensorRecord, ...]:
        """Inputs that the file holds."""
        return tuple(tensor for tensor in self.given if tensor.data is not None)


@dataclass(frozen=True)
class Graph:
    """The operations of a file.

    Attributes:
        nodes: Of the main graph, in the order in which they run. Delegates take these only.
        inner: Of the bodies of loops and branches.
    """

    nodes: tuple[Node, ...]
    inner: tuple[Node, ...] = ()

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(node.macs for node in self.nodes)

    def unpackers(self) -> dict[int, Node]:
        """Tensor number -> the DEQUANTIZE that makes it of a float16 constant."""
        return {
            node.makes[0]: node
            for node in self.nodes
            if node.op == "DEQUANTIZE" and any(tensor.dtype == "float16" for tensor in node.constants)
        }

    def reading_float16(self) -> tuple[Node, ...]:
        """The nodes without those unpackers: each reads the float16 constant itself."""
        stored = {number: node.inputs[0] for number, node in self.unpackers().items()}
        gone = {node.number for node in self.unpackers().values()}
        return tuple(
            replace(
                node,
                inputs=tuple(stored.get(n, old) for n, old in zip(node.reads, node.inputs, strict=True)),
                reads=tuple(-1 if n in stored else n for n in node.reads),
            )
            for node in self.nodes
            if node.number not in gone
        )


def graph_of(content: bytes) -> Graph:
    """Reads a sound `.tflite` file."""
    ops = records.ops(content)
    layers = owners(ops)
    model = FileObjects(content).model
    parts: list[tuple[Node, ...]] = []
    start = 0
    for number, subgraph in enumerate(model.subgraphs):
        tensors, end = records.tensors(content, number), start + len(subgraph.operators)
        told = list(zip(ops[start:end], layers[start:end], strict=True))
        parts.append(tuple(_nodes(model, subgraph, tensors, told)))
        start = end
    main = tuple(replace(node, macs=node.macs + _held(node, parts)) for node in parts[0])
    return Graph(main, tuple(node for part in parts[1:] for node in part))


def _nodes(
    model: Any, subgraph: Any, tensors: tuple[TensorRecord, ...], told: list[tuple[records.OpRecord, str]]
) -> Iterator[Node]:
    read_by: dict[int, list[str]] = {}
    for operator, (op, _) in zip(subgraph.operators, told, strict=True):
        for number in _numbers(operator.inputs):
            read_by.setdefault(number, []).append(op.name)
    for place, (operator, (op, layer)) in enumerate(zip(subgraph.operators, told, strict=True)):
        reads, makes = _numbers(operator.inputs), _numbers(operator.outputs)
        yield Node(
            number=place,
            op=op.name,
            custom=op.custom,
            version=int(model.operatorCodes[operator.opcodeIndex].version),
            inputs=tuple(tensors[number] if number >= 0 else None for number in reads),
            outputs=op.outputs,
            reads=reads,
            makes=makes,
            readers=tuple(name for number in makes for name in read_by.get(number, [])),
            open=any(_is_open(subgraph.tensors[number]) for number in (*reads, *makes) if number >= 0),
            layer="" if records.is_nameless(layer) else shown(layer),
            macs=macs(op),
            options=operator.builtinOptions or operator.builtinOptions2,
        )


def _held(node: Node, parts: list[tuple[Node, ...]], above: frozenset[int] = frozenset({0})) -> int:
    """Multiply-accumulates of the graphs that a loop or branch holds, one run of each."""
    if node.options is None:
        return 0
    named = {int(value) for name, value in vars(node.options).items() if name.endswith("SubgraphIndex")}
    held = [n for n in named - above if n < len(parts)]
    return sum(one.macs + _held(one, parts, above | {n}) for n in held for one in parts[n])


def _numbers(values: Any) -> tuple[int, ...]:
    return () if values is None else tuple(int(value) for value in values)


def _is_open(tensor: Any) -> bool:
    signature = tensor.shapeSignature
    return signature is not None and any(int(size) < 0 for size in signature)
