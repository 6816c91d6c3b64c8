"""A `.tflite` file as objects that can be changed, and written again."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tflite_export.tflite import flatbuffer
from tflite_export.tflite.constants import aligned, packed_4_bits
from tflite_export.tflite.op_versions import number, runtime_of
from tflite_export.tflite.versioning import version_of


class FileObjects:
    """A file, to change constants and to put operations in: of its main graph, or of each in turn.

    Args:
        content: A `.tflite` file.

    Raises: ValueError for one with data behind the flatbuffer.
    """

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        flatbuffer.read(content)
        self._schema = schema
        self.model = schema.ModelT.InitFromPackedBuf(content, 0)
        flatbuffer.check_inside(self.model)
        for graph in self.model.subgraphs:
            graph.operators = graph.operators or []  # the generated code gives None for a graph without any
        self.graph = self.model.subgraphs[0]
        self._kinds = {number: name for name, number in vars(schema.BuiltinOperator).items() if name[0] != "_"}
        self._dequantized: dict[int, int] = {}
        self._integers: dict[bytes, int] = {}

    def each_graph(self) -> Iterator[None]:
        """Makes everything about one graph after another: the main one, those of other signatures, those of loops."""
        for graph in self.model.subgraphs:
            self.graph, self._dequantized = graph, {}
            yield

    @property
    def operators(self) -> list[Any]:
        """In the order in which they run."""
        return self.graph.operators

    def kind(self, operator: Any) -> str:
        """Name of an operation, e.g. `"CONV_2D"`."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self._kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def name(self, number: int) -> str:
        """Name of a tensor."""
        return str(self.graph.tensors[number].name.decode())

    def shape(self, number: int) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(map(int, () if (told := self.graph.tensors[number].shape) is None else told))

    def steps(self, number: int) -> np.ndarray | None:
        """Scales of a tensor, None for a float one."""
        quantization = self.graph.tensors[number].quantization
        found = None if quantization is None else quantization.scale
        return None if found is None or len(found) == 0 else np.asarray(found, np.float32)

    def range_of(self, number: int) -> tuple[float, float] | None:
        """Smallest and largest value of a calibrated tensor, None for one without."""
        told = self.graph.tensors[number].quantization
        if told is None or told.min is None or told.max is None or len(told.min) != 1:
            return None
        return float(told.min[0]), float(told.max[0])

    def set_range(self, number: int, low: float, high: float) -> None:
        """Gives a tensor another range."""
        told = self.graph.tensors[number].quantization or self._schema.QuantizationParametersT()
        self.graph.tensors[number].quantization = told
        told.min, told.max = np.array([low], np.float32), np.array([high], np.float32)

    def values(self, number: int) -> np.ndarray | None:
        """What a constant of int8, int32 or float32 stands for; None for anything else."""
        tensor = self.graph.tensors[number]
        data = self.model.buffers[tensor.buffer].data
        kinds = self._schema.TensorType
        dtype = {kinds.INT8: "int8", kinds.INT32: "int32", kinds.FLOAT32: "float32"}.get(tensor.type)
        if data is None or len(data) == 0 or dtype is None:
            return None
        stored = np.frombuffer(bytes(data), dtype).reshape(self.shape(number))
        steps = self.steps(number)
        if dtype == "float32" or steps is None:
            return stored if dtype == "float32" else None
        shape = [1] * stored.ndim
        if len(steps) > 1:
            shape[tensor.quantization.quantizedDimension] = -1
        return stored.astype(np.float32) * steps.reshape(shape)

    def float_values(self, number: int) -> np.ndarray | None:
        """A constant of float32; None for anything else."""
        return self.values(number) if self.graph.tensors[number].type == self._schema.TensorType.FLOAT32 else None

    def is_constant(self, number: int) -> bool:
        """Whether a tensor has values of its own."""
        data = self.model.buffers[self.graph.tensors[number].buffer].data
        return data is not None and len(data) > 0

    def dtype(self, number: int) -> str:
        """NumPy's name of the type of a tensor."""
        return flatbuffer.dtype_name(self.graph.tensors[number].type)

    def readers(self, number: int) -> list[Any]:
        """The operations that read a tensor."""
        return [operator for operator in self.operators if number in operator.inputs]

    def remove(self, operator: Any) -> None:
        """Takes an operation out."""
        del self.operators[next(i for i, one in enumerate(self.operators) if one is operator)]

    def become(self, operator: Any, kind: str, inputs: list[int]) -> None:
        """Makes an operation the ADD, SUB or MUL of two tensors."""
        operator.opcodeIndex, operator.inputs = self._code(kind), np.array(inputs, np.int32)
        self._set_options(operator, kind, "NONE")

    def insert_before(self, operator: Any, kind: str, inputs: list[int], activation: str = "NONE") -> int:
        """Puts an ADD, SUB or MUL, or the MEAN of what this sums, before an operation; the number of what it makes."""
        made = self._float_like(int(operator.outputs[0]), kind.lower())
        place = next(i for i, one in enumerate(self.operators) if one is operator)
        self._insert(kind, inputs, [made], place)
        new = self.operators[place]
        if kind == "MEAN":
            new.builtinOptionsType, new.builtinOptions = operator.builtinOptionsType, operator.builtinOptions
        else:
            self._set_options(new, kind, activation)
        return made

    def store_whole(self, number: int, values: np.ndarray) -> None:
        """Stores a sparse constant with its zeros."""
        tensor = self.graph.tensors[number]
        tensor.sparsity, tensor.buffer = None, self._new_buffer(np.ascontiguousarray(values).tobytes())

    def set_step(self, number: int, step: float) -> None:
        """Gives a tensor this step, and the zero point 0."""
        self._set_grid(self.graph.tensors[number], np.array([step], np.float32), 0)

    def like(self, number: int) -> int:
        """The number of a new tensor of the same name, type and shape."""
        tensor = self.graph.tensors[number]
        return self._new_tensor(tensor.name, tensor.type, tensor.shape)

    def set_integers(self, number: int, integers: np.ndarray, steps: np.ndarray, axis: int, bits: int) -> None:
        """Makes a constant these integers, of 8 bits or of 4, with a step for each entry along an axis."""
        tensor = self.graph.tensors[number]
        tensor.type = self._schema.TensorType.INT4 if bits == 4 else self._schema.TensorType.INT8
        data = packed_4_bits(integers) if bits == 4 else integers.astype(np.int8).tobytes()
        if data not in self._integers:  # other graphs have the same
            self._integers[data] = self._new_buffer(data)
        tensor.buffer = self._integers[data]
        self._set_grid(tensor, steps, axis)

    def set_bias(self, operator: Any, place: int, integers: np.ndarray, steps: np.ndarray) -> None:
        """Gives an operation a bias of its own, int32."""
        old = self.graph.tensors[operator.inputs[place]]
        number = self._new_tensor(old.name, old.type, old.shape)
        self.graph.tensors[number].buffer = self._new_buffer(integers.astype(np.int32).tobytes())
        self._set_grid(self.graph.tensors[number], steps, 0)
        self.set_input(operator, place, number)

    def widen(self, number: int) -> None:
        """Stores a constant of int32 as int64."""
        tensor = self.graph.tensors[number]
        if tensor.type == self._schema.TensorType.INT32:
            data = np.frombuffer(bytes(self.model.buffers[tensor.buffer].data), np.int32)
            tensor.type = self._schema.TensorType.INT64
            tensor.buffer = self._new_buffer(data.astype(np.int64).tobytes())

    def set_input(self, operator: Any, place: int, number: int) -> None:
        """Gives an operation another tensor as input number `place`."""
        operator.inputs = np.array([number if i == place else old for i, old in enumerate(operator.inputs)], np.int32)

    def own_constant(self, operator: Any, place: int) -> None:
        """Gives an operation a copy of its float32 constant number `place`, if others read it too."""
        number = int(operator.inputs[place])
        if len(self.readers(number)) > 1 and (values := self.float_values(number)) is not None:
            self.set_input(operator, place, self.new_constant(self.name(number), values))

    def new_constant(self, name: str, values: np.ndarray) -> int:
        """A float32 constant; its number."""
        number = self._new_tensor(name, self._schema.TensorType.FLOAT32, np.array(values.shape, np.int32))
        self.graph.tensors[number].buffer = self._new_buffer(values.astype(np.float32).tobytes())
        return number

    def dequantized_before(self, operator: Any, number: int) -> int:
        """A tensor in floating point, made right before an operation; its number."""
        if number not in self._dequantized:
            made = self._float_like(number, "dequantized")
            self._insert("DEQUANTIZE", [number], [made], self.operators.index(operator))
            self._dequantized[number] = made
        return self._dequantized[number]

    def quantized_after(self, operator: Any) -> str:
        """Lets an operation make its output in floating point, quantized right after it; the name of that tensor."""
        number = int(operator.outputs[0])
        made = self._float_like(number, "float")
        operator.outputs = np.array([made, *operator.outputs[1:]], np.int32)
        options = operator.builtinOptions
        if hasattr(options, "quantizedBiasType"):
            options.quantizedBiasType = self._schema.TensorType.FLOAT32
        place = next(i for i, one in enumerate(self.operators) if one is operator)
        self._insert("QUANTIZE", [made], [number], place + 1)
        return str(self.graph.tensors[made].name.decode())

    def dequantized_after(self, operator: Any, steps: np.ndarray) -> None:
        """Lets an operation make its float output as int8 with these steps, made float right after it."""
        number = int(operator.outputs[0])
        tensor = self.graph.tensors[number]
        made = self._new_tensor(tensor.name + b"/integers", self._schema.TensorType.INT8, tensor.shape)
        self.graph.tensors[made].shapeSignature = tensor.shapeSignature
        self._set_grid(self.graph.tensors[made], steps, 0)
        operator.outputs = np.array([made, *operator.outputs[1:]], np.int32)
        place = next(i for i, one in enumerate(self.operators) if one is operator)
        self._insert("DEQUANTIZE", [made], [number], place + 1)

    def dequantized_constant(self, number: int, integers: np.ndarray, steps: np.ndarray, axis: int, bits: int) -> None:
        """Makes a float constant the output of a DEQUANTIZE of these integers."""
        tensor = self.graph.tensors[number]
        stored = self._new_tensor(tensor.name + b"/integers", tensor.type, tensor.shape)
        self.set_integers(stored, integers, steps, axis, bits)
        tensor.buffer = 0
        self._insert("DEQUANTIZE", [stored], [number], 0)

    def set_named_buffer(self, name: str, data: bytes) -> None:
        """Puts a buffer into the file's metadata, in the place of an old one of that name."""
        entries = self.model.metadata or []
        kept = [entry for entry in entries if entry.name != name.encode()]
        taken = {entry.buffer for entry in kept}
        taken |= {tensor.buffer for graph in self.model.subgraphs for tensor in graph.tensors} | {0}
        free = [entry.buffer for entry in entries if entry.name == name.encode() and entry.buffer not in taken]
        entry = self._schema.MetadataT()
        entry.name = name
        entry.buffer = free[0] if free else self._new_buffer(data)
        self.model.buffers[entry.buffer].data = np.frombuffer(data, np.uint8)
        self.model.metadata = [*kept, entry]

    def content(self) -> bytes:
        """The file, without constants that nothing uses any longer."""
        import flatbuffers

        self._drop_unused()
        self._set_versions()
        # Constants on addresses that every kernel can read; the generated code aligns nothing.
        for place, buffer in enumerate(self.model.buffers):
            self.model.buffers[place] = aligned(buffer)
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _set_grid(self, tensor: Any, steps: np.ndarray, axis: int) -> None:
        tensor.quantization = self._schema.QuantizationParametersT()
        tensor.quantization.scale = np.asarray(steps, np.float32)
        tensor.quantization.zeroPoint = np.zeros(len(steps), np.int64)
        tensor.quantization.quantizedDimension = axis

    def _float_like(self, number: int, what: str) -> int:
        tensor = self.graph.tensors[number]
        made = self._new_tensor(tensor.name + b"/" + what.encode(), self._schema.TensorType.FLOAT32, tensor.shape)
        self.graph.tensors[made].shapeSignature = tensor.shapeSignature
        return made

    def _new_tensor(self, name: bytes | str, kind: int, shape: Any) -> int:
        tensor = self._schema.TensorT()
        tensor.name = name.encode() if isinstance(name, str) else name
        tensor.type, tensor.shape = kind, np.asarray(shape, np.int32)
        tensor.hasRank = True
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def _new_buffer(self, data: bytes) -> int:
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(data, np.uint8)
        self.model.buffers.append(buffer)
        return len(self.model.buffers) - 1

    def _insert(self, kind: str, inputs: list[int], outputs: list[int], place: int) -> None:
        operator = self._schema.OperatorT()
        operator.opcodeIndex = self._code(kind)
        operator.inputs, operator.outputs = np.array(inputs, np.int32), np.array(outputs, np.int32)
        self.operators.insert(place, operator)

    def _set_options(self, operator: Any, kind: str, activation: str) -> None:
        options = getattr(self._schema, f"{kind.title()}OptionsT")()
        options.fusedActivationFunction = getattr(self._schema.ActivationFunctionType, activation)
        operator.builtinOptions = options
        operator.builtinOptionsType = getattr(self._schema.BuiltinOptions, f"{kind.title()}Options")

    def _code(self, kind: str, version: int | None = None) -> int:
        number = getattr(self._schema.BuiltinOperator, kind)
        for place, code in enumerate(self.model.operatorCodes):
            same = max(code.builtinCode, code.deprecatedBuiltinCode) == number
            if same and version in (None, code.version):
                return place
        code = self._schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version = version or 1
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def _set_versions(self) -> None:
        """The versions of operations whose types were changed, and the runtime that the file says it needs."""
        for _ in self.each_graph():
            for operator in self.operators:
                self._set_version(operator)
        needs = [
            runtime_of(self._kinds[max(c.builtinCode, c.deprecatedBuiltinCode)], c.version) for c in self._drop_codes()
        ]
        for entry in self.model.metadata or []:
            if entry.name == b"min_runtime_version" and None not in needs:
                newest = max((need or "1.5" for need in needs), key=number, default="1.5")
                full = newest if newest.count(".") > 1 else f"{newest}.0"
                self.model.buffers[entry.buffer].data = np.frombuffer(full.encode().ljust(16, b"\0"), np.uint8)

    def _drop_codes(self) -> list[Any]:
        """Leaves out the kinds that no operation is any longer: a runtime refuses a file for each it does not know."""
        operators = [operator for graph in self.model.subgraphs for operator in graph.operators]
        used = sorted({operator.opcodeIndex for operator in operators})
        self.model.operatorCodes = [self.model.operatorCodes[place] for place in used]
        for operator in operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
        return self.model.operatorCodes

    def _set_version(self, operator: Any) -> None:
        kind, sides = self.kind(operator), (operator.inputs, operator.outputs)
        inputs, outputs = ([self.dtype(int(i)) for i in side if i >= 0] for side in sides)
        per_channel = any(
            (found := self.steps(int(i))) is not None and len(found) > 1 for i in operator.inputs if i >= 0
        )
        version = version_of(kind, inputs, outputs, per_channel)
        if version is not None:
            operator.opcodeIndex = self._code(kind, version)

    def _drop_unused(self) -> None:
        """Empties the buffers of tensors that no operation reads."""
        used = set()
        for graph in self.model.subgraphs:
            read = {int(i) for operator in graph.operators for i in operator.inputs} | {int(i) for i in graph.outputs}
            used |= {graph.tensors[number].buffer for number in read if number >= 0}
        used |= {entry.buffer for entry in self.model.metadata or []}
        for place, buffer in enumerate(self.model.buffers):
            if place not in used:
                buffer.data = None
