"""Whether bytes are a `.tflite` file that can be read and run without leaving its bounds.

Runtimes trust their files: an offset beyond the end or a tensor number that does not exist ends the process. So bytes
from elsewhere are walked here first, every offset, length and number, before anything else reads them.
"""

import math
import struct
from typing import Any

IDENTIFIER = b"TFL3"
_MAX_RANK = 8

# Of each table of the schema, by number of the field: bytes of a scalar, "string", a table, or [what is in a vector].
_TABLES: dict[str, dict[int, Any]] = {
    "Model": {
        0: 4,
        1: ["OperatorCode"],
        2: ["SubGraph"],
        3: "string",
        4: ["Buffer"],
        5: [4],
        6: ["Metadata"],
        7: ["SignatureDef"],
    },
    "OperatorCode": {0: 1, 1: "string", 2: 4, 3: 4},
    "SubGraph": {0: ["Tensor"], 1: [4], 2: [4], 3: ["Operator"], 4: "string"},
    "Tensor": {0: [4], 1: 1, 2: 4, 3: "string", 4: "Quantization", 5: 1, 6: "Sparsity", 7: [4], 8: 1},
    "Quantization": {0: [4], 1: [4], 2: [4], 3: [8], 4: 1, 5: "Any", 6: 4},
    "Sparsity": {0: [4], 1: [4], 2: ["Dimension"]},
    "Dimension": {0: 1, 1: 4, 2: 1, 3: "Any", 4: 1, 5: "Any"},
    "Operator": {0: 4, 1: [4], 2: [4], 3: 1, 4: "Any", 5: [1], 6: 1, 7: [1], 8: [4], 9: 8, 10: 8, 11: 1, 12: "Any"},
    "Buffer": {0: [1], 1: 8, 2: 8},
    "Metadata": {0: "string", 1: 4},
    "SignatureDef": {0: ["TensorMap"], 1: ["TensorMap"], 2: "string", 4: 4},
    "TensorMap": {0: "string", 1: 4},
    "Any": {},
}
# Bytes of an element, of the tensor types whose constants have no other layout.
_SIZES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 8: 8, 9: 1, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}


def check(content: bytes | bytearray | memoryview, label: str = "The file") -> None:
    """Refuses bytes that are no sound `.tflite` file.

    Raises: ValueError that says what is wrong.
    """
    if len(content) < 8 or bytes(content[4:8]) != IDENTIFIER:
        raise ValueError(f"{label} is not a .tflite file: {len(content)} bytes without the mark 'TFL3' at byte 4.")
    try:
        _Walk(bytes(content)).model()
        _numbers(content)
    except (_Unsound, struct.error, IndexError, ValueError, UnicodeDecodeError, OverflowError, TypeError) as error:
        raise ValueError(f"{label} is a damaged .tflite file: {error}.") from error


class _Unsound(Exception):
    pass


class _Walk:
    """Follows every offset of a flatbuffer; each place must lie in the bytes."""

    def __init__(self, content: bytes) -> None:
        self._content, self._size = content, len(content)
        self._seen: set[tuple[int, str]] = set()

    def model(self) -> None:
        self._table(self._offset(0), "Model")

    def _table(self, place: int, name: str) -> None:
        if (place, name) in self._seen:
            return
        self._seen.add((place, name))
        vtable = place - struct.unpack_from("<i", self._content, self._within(place, 4, name))[0]
        length, table = struct.unpack_from("<HH", self._content, self._within(vtable, 4, name))
        self._within(vtable, length, name)
        self._within(place, max(table, 4), name)
        if length < 4 or length % 2:
            raise _Unsound(f"a {name} has a table of fields of {length} bytes")
        for number, kind in _TABLES[name].items():
            if 4 + 2 * number + 2 > length:
                continue
            offset = struct.unpack_from("<H", self._content, vtable + 4 + 2 * number)[0]
            if offset:
                self._field(place + offset, kind, name)

    def _field(self, place: int, kind: Any, owner: str) -> None:
        if isinstance(kind, int):
            self._within(place, kind, owner)
            return
        target = self._offset(place)
        if isinstance(kind, list):
            self._vector(target, kind[0], owner)
        elif kind == "string":
            self._vector(target, 1, owner)
        else:
            self._table(target, kind)

    def _vector(self, place: int, kind: Any, owner: str) -> None:
        count = struct.unpack_from("<I", self._content, self._within(place, 4, owner))[0]
        self._within(place + 4, count * (kind if isinstance(kind, int) else 4), owner)
        if isinstance(kind, str):
            for number in range(count):
                self._table(self._offset(place + 4 + 4 * number), kind)

    def _offset(self, place: int) -> int:
        return place + struct.unpack_from("<I", self._content, self._within(place, 4, "offset"))[0]

    def _within(self, place: int, size: int, owner: str) -> int:
        if place < 0 or place + size > self._size:
            raise _Unsound(f"a {owner} points to byte {place + size} of {self._size}")
        return place


def _numbers(content: bytes | bytearray | memoryview) -> None:
    """Every tensor, buffer, operation and graph that is named by its number exists; constants have their size."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(content, 0)
    graphs = [model.Subgraphs(number) for number in range(model.SubgraphsLength())]
    if not graphs or graphs[0].TensorsLength() == 0:
        raise _Unsound("it has no tensors")
    for graph in graphs:
        _graph(model, graph, len(content))
    for number in range(model.MetadataLength()):
        _in_range("a buffer of metadata", [model.Metadata(number).Buffer()], model.BuffersLength())
    for number in range(model.SignatureDefsLength()):
        signature = model.SignatureDefs(number)
        _in_range("a signature's graph", [signature.SubgraphIndex()], len(graphs))
        entries = [signature.Inputs(place) for place in range(signature.InputsLength())]
        entries += [signature.Outputs(place) for place in range(signature.OutputsLength())]
        numbers = [entry.TensorIndex() for entry in entries]
        _in_range("a signature's tensor", numbers, graphs[signature.SubgraphIndex()].TensorsLength())
        for entry in entries:
            _text(entry.Name())


def _graph(model: Any, graph: Any, size: int) -> None:
    count = graph.TensorsLength()
    for number in range(count):
        _tensor(model, graph.Tensors(number), size)
    _in_range("a graph's input", graph.InputsAsNumpy(), count)
    _in_range("a graph's output", graph.OutputsAsNumpy(), count)
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        _in_range("an operation's kind", [operator.OpcodeIndex()], model.OperatorCodesLength())
        _in_range("an operation's input", operator.InputsAsNumpy(), count, low=-1)
        _in_range("an operation's output", operator.OutputsAsNumpy(), count)
        _in_range("an operation's intermediate", operator.IntermediatesAsNumpy(), count, low=-1)


def _tensor(model: Any, tensor: Any, size: int) -> None:
    _in_range("a tensor's buffer", [tensor.Buffer()], model.BuffersLength())
    shape = [int(value) for value in _listed(tensor.ShapeAsNumpy())]
    if len(shape) > _MAX_RANK or any(value < 0 for value in shape):
        raise _Unsound(f"a tensor has the shape {shape}")
    buffer = model.Buffers(tensor.Buffer())
    if buffer.Size() and buffer.Offset() + buffer.Size() > size:
        raise _Unsound(f"a buffer ends at byte {buffer.Offset() + buffer.Size()} of {size}")
    stored, element = buffer.DataLength(), _SIZES.get(tensor.Type())
    if stored and element and tensor.Sparsity() is None and stored != element * math.prod(shape):
        raise _Unsound(f"a constant of shape {shape} and {element} bytes a number has {stored} bytes")
    _text(tensor.Name())


def _in_range(what: str, values: Any, high: int, low: int = 0) -> None:
    for value in _listed(values):
        if not low <= value < high:
            raise _Unsound(f"{what} is number {value} of {high}")


def _listed(values: Any) -> Any:
    """`AsNumpy` of the generated schema gives 0 for an absent list."""
    return [] if isinstance(values, int) else values


def _text(name: bytes | None) -> None:
    if name is not None:
        name.decode()
