"""Reads a `.tflite` file without TensorFlow, and puts its inputs and outputs in order."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_IDENTIFIER = b"TFL3"


def read(content: bytes | bytearray, label: str = "The file") -> Any:
    """The root `Model` of the flatbuffer schema, reading from `content` in place.

    Raises: ValueError if the bytes are no `.tflite` file.
    """
    from ai_edge_litert import schema_py_generated as schema

    if len(content) < 8 or bytes(content[4:8]) != _IDENTIFIER:
        raise ValueError(f"{label} is not a .tflite file: {len(content)} bytes without the mark 'TFL3' at byte 4.")
    try:
        model = schema.Model.GetRootAs(content, 0)
        subgraph = model.Subgraphs(0)
        if subgraph is None or subgraph.TensorsLength() == 0:
            raise ValueError("no tensors")
    except Exception as error:
        raise ValueError(f"{label} is a damaged .tflite file: {error}") from error
    return model


def order(content: bytes, inputs: Sequence[str], outputs: Sequence[str]) -> bytes:
    """The same file with the inputs and outputs of its main graph in the order of these signature names.

    The converter lists them in an order of its own, so that a reader by position (`get_input_details()[0]`) would get
    the wrong one. Only the two index lists are permuted, in place; signatures refer to tensors by number and stay.

    Args:
        content: A `.tflite` file with one signature.
        inputs: Signature names of all inputs, in the wanted order.
        outputs: Signature names of all outputs, in the wanted order.

    Raises: ValueError if the names are not those of the signature.
    """
    signature = read(content).SignatureDefs(0)
    return order_signatures(content, {signature.SignatureKey().decode(): (inputs, outputs)})


def order_signatures(content: bytes, wanted: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> bytes:
    """As `order`, for the graph of each signature: signature name -> (inputs, outputs).

    Raises: ValueError if the names are not those of the signatures.
    """
    buffer = bytearray(content)
    model = read(buffer)
    signatures = [model.SignatureDefs(number) for number in range(model.SignatureDefsLength())]
    by_name = {signature.SignatureKey().decode(): signature for signature in signatures}
    if set(by_name) != set(wanted):
        raise ValueError(f"The file's signatures are {sorted(by_name)}; expected {sorted(wanted)}.")
    for name, (inputs, outputs) in wanted.items():
        _order_graph(by_name[name], model.Subgraphs(by_name[name].SubgraphIndex()), inputs, outputs)
    return bytes(buffer)


def _order_graph(signature: Any, subgraph: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    tables = {
        "inputs": (inputs, _names(signature.Inputs, signature.InputsLength()), _list(subgraph.InputsAsNumpy())),
        "outputs": (outputs, _names(signature.Outputs, signature.OutputsLength()), _list(subgraph.OutputsAsNumpy())),
    }
    for what, (wanted, tensors, indices) in tables.items():
        if set(wanted) != set(tensors):
            raise ValueError(f"The file's {what} are {sorted(tensors)}; expected {list(wanted)}.")
        permuted = np.array([tensors[name] for name in wanted], indices.dtype)
        if sorted(permuted) != sorted(indices):
            raise ValueError(f"The file's {what} and its signature disagree: tensors {indices} and {permuted}.")
        indices[:] = permuted


def operator_name(model: Any, operator: Any) -> tuple[str, bool]:
    """Name of an operator, e.g. `"CONV_2D"`, and whether it is a custom (or Flex) one."""
    from ai_edge_litert import schema_py_generated as schema

    code = model.OperatorCodes(operator.OpcodeIndex())
    if code.CustomCode() is not None:
        return code.CustomCode().decode(), True
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return _names_of(schema.BuiltinOperator).get(number, f"BUILTIN_{number}"), False


def signatures(content: bytes) -> tuple[str, ...]:
    """Names of the signatures of a file."""
    model = read(content)
    found = (model.SignatureDefs(number).SignatureKey() for number in range(model.SignatureDefsLength()))
    return tuple((name or b"").decode() for name in found)


def assigning(content: bytes) -> frozenset[str]:
    """Names of the signatures that change variables of the file."""
    model = read(content)
    found = set()
    for signature in (model.SignatureDefs(number) for number in range(model.SignatureDefsLength())):
        graph = model.Subgraphs(signature.SubgraphIndex())
        kinds = {operator_name(model, graph.Operators(place))[0] for place in range(graph.OperatorsLength())}
        if "ASSIGN_VARIABLE" in kinds:
            found.add((signature.SignatureKey() or b"").decode())
    return frozenset(found)


def custom_operations(content: bytes) -> tuple[str, ...]:
    """Names of the operations of a file that are not builtin."""
    model = read(content)
    codes = (model.OperatorCodes(place).CustomCode() for place in range(model.OperatorCodesLength()))
    return tuple(dict.fromkeys(code.decode() for code in codes if code is not None))


def versions(content: bytes) -> list[tuple[str, int]]:
    """(name, version) of every operator of a file that is no custom one, inner graphs included."""
    model = read(content)
    found = []
    for graph in (model.Subgraphs(number) for number in range(model.SubgraphsLength())):
        for place in range(graph.OperatorsLength()):
            operator = graph.Operators(place)
            name, custom = operator_name(model, operator)
            if not custom:
                found.append((name, int(model.OperatorCodes(operator.OpcodeIndex()).Version())))
    return found


def metadata(content: bytes) -> dict[str, bytes]:
    """The named buffers of a file, e.g. `"min_runtime_version"`; of two with one name the first, as runtimes do."""
    model = read(content)
    found: dict[str, bytes] = {}
    for entry in (model.Metadata(place) for place in range(model.MetadataLength())):
        if entry.Name() is not None:
            found.setdefault(entry.Name().decode(), _bytes(model.Buffers(entry.Buffer())))
    return found


def names(content: bytes) -> tuple[list[str], list[str]]:
    """Names of the inputs and of the outputs of the main graph, in its order: the signature's if there is one."""
    model = read(content)
    graph = model.Subgraphs(0)
    signature = model.SignatureDefs(0) if model.SignatureDefsLength() == 1 else None

    def listed(numbers: Any, entries: dict[str, int]) -> list[str]:
        known = {number: name for name, number in entries.items()}
        numbers = [] if isinstance(numbers, int) else [int(number) for number in numbers]
        return [known.get(number) or (graph.Tensors(number).Name() or b"").decode() for number in numbers]

    inputs = {} if signature is None else _names(signature.Inputs, signature.InputsLength())
    outputs = {} if signature is None else _names(signature.Outputs, signature.OutputsLength())
    return listed(graph.InputsAsNumpy(), inputs), listed(graph.OutputsAsNumpy(), outputs)


def check_inside(model: Any) -> None:
    """Refuses a file (as objects) that has data behind its flatbuffer, as those of more than 2 GB: a new one would
    not keep their places.

    Raises: ValueError.
    """
    places = [buffer.offset for buffer in model.buffers if getattr(buffer, "size", 0)]
    places += [op.largeCustomOptionsOffset for graph in model.subgraphs for op in graph.operators or []]
    if any(places):
        raise ValueError(
            f"The file keeps data behind its flatbuffer, at byte {max(places):,}, and cannot be written anew. Convert "
            "the model to a precision whose file has less than 2 GB."
        )


def dtype_name(number: int) -> str:
    """NumPy's name of a tensor type, e.g. `"int8"`."""
    from ai_edge_litert import schema_py_generated as schema

    return _names_of(schema.TensorType).get(number, f"type{number}").lower()


@functools.cache
def _names_of(kinds: type) -> dict[int, str]:
    """Number -> name in an enumeration of the schema."""
    return {value: name for name, value in vars(kinds).items() if not name.startswith("_")}


def _list(values: Any) -> np.ndarray:
    """`AsNumpy` of the generated schema gives 0 for an absent list."""
    return np.zeros(0, np.int32) if isinstance(values, int) else values


def _bytes(buffer: Any) -> bytes:
    return buffer.DataAsNumpy().tobytes() if buffer is not None and buffer.DataLength() else b""


def _names(entry: Any, count: int) -> dict[str, int]:
    """Signature name -> tensor number."""
    entries = [entry(index) for index in range(count)]
    return {item.Name().decode(): int(item.TensorIndex()) for item in entries}
