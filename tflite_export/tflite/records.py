"""What is inside a file: tensors with their grids, operators, and the Keras layer each comes from."""

import re
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from tflite_export.tflite import flatbuffer, sparsity

_BORDER = ("QUANTIZE", "DEQUANTIZE")
_STORED = (*_BORDER, "DENSIFY")
_NO_LAYER = ("StatefulPartitionedCall", "PartitionedCall", "tfl.")
_INTEGERS = ("int4", "int8", "uint8", "int16")


@dataclass(frozen=True)
class TensorRecord:
    """One tensor of a file.

    Attributes:
        name: As the converter wrote it: a scope path, or several joined by `;`.
        dtype: NumPy's name.
        shape: As stored.
        scales: One for the tensor, or one for each channel; empty if not quantized. value = scale * (q - zero_point).
        zero_points: As many as scales.
        axis: Channel axis of the scales.
        data: Constant values in `dtype` (int4 as int8; bytes of strings), or None.
        stored_bytes: Of a constant in the file.
        buffer: Number of what it is stored in, which tensors of several graphs may share.
        block: Of a constant stored without its zeros: how many values are left out together, e.g. 1; else None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: np.ndarray | None
    stored_bytes: int = 0
    buffer: int = 0
    block: int | None = None


@dataclass(frozen=True)
class OpRecord:
    """One operator of a file: name, whether custom, its tensors, and the path of the layer it comes from."""

    name: str
    custom: bool
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    layer: str

    @property
    def is_float(self) -> bool:
        """Whether it computes in floating point; quantizing, dequantizing and unpacking is not computing."""
        touched = (*(tensor for tensor in self.inputs if tensor.data is None), *self.outputs)
        return self.name not in _STORED and any(tensor.dtype in ("float32", "float16") for tensor in touched)


def tensors(content: bytes, subgraph: int = 0) -> tuple[TensorRecord, ...]:
    """All tensors of one graph of a `.tflite` file, by number."""
    model = flatbuffer.read(content)
    graph = model.Subgraphs(subgraph)
    return tuple(_tensor(model, graph.Tensors(index)) for index in range(graph.TensorsLength()))


def ops(content: bytes, layers: Collection[str] = (), *, scopes_numbered: bool = False) -> tuple[OpRecord, ...]:
    """All operators of a `.tflite` file, those of inner graphs (loops) included.

    Args:
        content: The file.
        layers: Names of the Keras layers of its source, to name the one an operator comes from.
        scopes_numbered: As in `Source`.
    """
    model = flatbuffer.read(content)
    found = []
    for number in range(model.SubgraphsLength()):
        graph, records = model.Subgraphs(number), tensors(content, number)
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            name, custom = flatbuffer.operator_name(model, operator)
            inputs = tuple(records[i] for i in numbers(operator.InputsAsNumpy()) if i >= 0)
            outputs = tuple(records[i] for i in numbers(operator.OutputsAsNumpy()) if i >= 0)
            layer = _origin(inputs, outputs, layers, scopes_numbered)
            found.append(OpRecord(name, custom, inputs, outputs, layer))
    return _with_ends(found, content, layers)


def _with_ends(found: list[OpRecord], content: bytes, layers: Collection[str]) -> tuple[OpRecord, ...]:
    """The operations, where what makes an output comes from the layer of the output's name, if from no other."""
    graph, records = flatbuffer.read(content).Subgraphs(0), tensors(content)
    ends = zip(numbers(graph.OutputsAsNumpy()), flatbuffer.names(content)[1], strict=True)
    named = {records[place].name: name for place, name in ends if name in layers}
    for place, op in reversed([*enumerate(found)] if named else []):
        layer = next((named[tensor.name] for tensor in op.outputs if tensor.name in named), "")
        if layer and not op.layer and op.name not in _BORDER:
            found[place] = replace(op, layer=layer)
        if layer and op.name in _BORDER:
            named[op.inputs[0].name] = layer
    return tuple(found)


def constants(content: bytes) -> dict[str, bytes]:
    """Name -> stored bytes of every constant of a file, inner graphs included."""
    model = flatbuffer.read(content)
    found = {}
    for number in range(model.SubgraphsLength()):
        graph = model.Subgraphs(number)
        for index in range(graph.TensorsLength()):
            tensor = graph.Tensors(index)
            buffer = model.Buffers(tensor.Buffer())
            if buffer is not None and buffer.DataLength():
                found[f"{number}/{tensor.Name().decode()}" if number else tensor.Name().decode()] = (
                    buffer.DataAsNumpy().tobytes()
                )
    return found


def borders(content: bytes) -> list[list[tuple[str, tuple[int | None, ...], TensorRecord]]]:
    """Inputs and outputs of the main graph, each as (name in the signature, shape with None for open sizes, tensor)."""
    graph, records = flatbuffer.read(content).Subgraphs(0), tensors(content)
    found = []
    for names, places in zip(flatbuffer.names(content), (graph.InputsAsNumpy(), graph.OutputsAsNumpy()), strict=True):
        entries = []
        for name, place in zip(names, numbers(places), strict=True):
            told = numbers(graph.Tensors(place).ShapeSignatureAsNumpy()) or list(records[place].shape)
            entries.append((name, tuple(None if size < 0 else size for size in told), records[place]))
        found.append(entries)
    return found


def is_nameless(path: str) -> bool:
    """Whether it is the name of an output of the model, or of what the converter put in, which tells no layer."""
    return path.startswith(_NO_LAYER)


def precision_of(content: bytes) -> str:
    """The precision a file from elsewhere has, by its tensors: a name of `tflite_export.precisions`."""
    found = [op for op in ops(content) if op.name not in _BORDER]
    constants = {tensor.dtype for op in ops(content) for tensor in op.inputs if tensor.data is not None}
    if any(tensor.scales and tensor.dtype in _INTEGERS for op in found for tensor in op.outputs):
        graph, border = flatbuffer.read(content).Subgraphs(0), tensors(content)
        edges = [*numbers(graph.InputsAsNumpy()), *numbers(graph.OutputsAsNumpy())]
        return _of_integers({border[number].dtype for number in edges}, "int4" in constants)
    if any(tensor.scales and tensor.dtype in _INTEGERS for op in ops(content) for tensor in op.inputs):
        computed = {tensor.dtype for op in found for tensor in op.inputs if tensor.data is not None}
        return "weight_int8" if not computed & {*_INTEGERS} else "int4" if "int4" in computed else "dynamic"
    return "float16" if "float16" in constants else "float32"


def _of_integers(edges: set[str], has_int4: bool) -> str:
    """By the types of inputs and outputs, and of kernels."""
    if "float32" in edges:
        return "int8_int4" if has_int4 else "int8_float_io"
    return "uint8" if "uint8" in edges and "int8" not in edges else "int16x8" if "int16" in edges else "int8"


def output_steps(content: bytes) -> tuple[float, ...]:
    """Step of each output of the main graph, in the unit of the output: 0 where it was never quantized."""
    graph, records = flatbuffer.read(content).Subgraphs(0), tensors(content)
    restored = {op.outputs[0].name: op.inputs[0] for op in ops(content) if op.name == "DEQUANTIZE"}
    outputs = [records[number] for number in numbers(graph.OutputsAsNumpy())]
    return tuple(max(restored.get(tensor.name, tensor).scales, default=0.0) for tensor in outputs)


def layer_of(path: str, layers: Collection[str] = (), *, scopes_numbered: bool = False) -> str:
    """The Keras layer behind a scope path, as `outer/inner` for a nested model.

    Args:
        path: E.g. `"functional_1/block_1/conv_1/Relu"`, or several joined by `;` (the last one that names a layer).
        layers: Names of the layers.
        scopes_numbered: Whether scopes carry a call number after the layer name (`conv_1` is a call of `conv`).

    Returns: the layers' names joined by `/`; the path without its last part if no layer is known; `""` if there are
        layers but none is in the path.
    """
    for single in reversed(path.split(";")):
        parts = single.split("@")[0].split("/")
        if not layers:
            return "/".join(parts[:-1]) or parts[0]
        known = [name for part in parts if (name := _known(part, layers, scopes_numbered))]
        if known:
            return "/".join(known)
    return ""


def layers_in(path: str, layers: Collection[str], scopes_numbered: bool) -> set[str]:
    """All layers in a path, `outer/inner` for those in nested models: a fused operation has several."""
    singles = [layer_of(single, layers, scopes_numbered=scopes_numbered) for single in path.split(";")]
    return {layer for layer in singles if layer}


def _known(part: str, layers: Collection[str], numbered: bool) -> str | None:
    bare = re.sub(r"_\d+$", "", part)
    for candidate in (bare, part) if numbered else (part, bare):
        if candidate in layers:
            return candidate
    return None


def _origin(
    inputs: tuple[TensorRecord, ...], outputs: tuple[TensorRecord, ...], layers: Collection[str], numbered: bool
) -> str:
    constants = [tensor for tensor in inputs if tensor.data is not None]
    named = [tensor.name for tensor in (*outputs, *constants)]
    if not layers:  # the name of an output of the model, or of what the converter put in, says nothing
        named = [name for name in named if not is_nameless(name)] or named[:1]
    return next((layer for name in named if (layer := layer_of(name, layers, scopes_numbered=numbered))), "")


def _tensor(model: object, tensor: object) -> TensorRecord:
    quantization = tensor.Quantization()  # type: ignore[attr-defined]
    scales = quantization.ScaleAsNumpy() if quantization is not None and quantization.ScaleLength() else []
    zeros = quantization.ZeroPointAsNumpy() if quantization is not None and quantization.ZeroPointLength() else []
    dtype = flatbuffer.dtype_name(tensor.Type())  # type: ignore[attr-defined]
    shape = tuple(int(size) for size in numbers(tensor.ShapeAsNumpy()))  # type: ignore[attr-defined]
    buffer = model.Buffers(tensor.Buffer())  # type: ignore[attr-defined]
    data, stored, block = None, 0, sparsity.block_size(tensor)
    if buffer is not None and buffer.DataLength():
        raw, stored = buffer.DataAsNumpy(), buffer.DataLength()
        try:
            data = _unpacked(raw, int(np.prod(shape))) if dtype == "int4" else raw.view(dtype)
            data = data.reshape(shape) if block is None else sparsity.densified(tensor, data, shape)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError):  # strings, a wrong description
            data = raw
    return TensorRecord(
        name=tensor.Name().decode(),  # type: ignore[attr-defined]
        dtype=dtype,
        shape=shape,
        scales=tuple(float(value) for value in scales),
        zero_points=tuple(int(value) for value in zeros),
        axis=int(quantization.QuantizedDimension()) if quantization is not None else 0,
        data=data,
        stored_bytes=stored,
        buffer=int(tensor.Buffer()),  # type: ignore[attr-defined]
        block=block,
    )


def _unpacked(raw: np.ndarray, count: int) -> np.ndarray:
    """Integers of four bits, two in a byte, the lower half first, as int8."""
    halves = np.stack([raw & 15, raw >> 4], axis=-1).reshape(-1)[:count].astype(np.int8)
    return np.where(halves > 7, halves - 16, halves).astype(np.int8)


def numbers(values: object) -> list[int]:
    """A list of numbers; `AsNumpy` of the generated schema gives 0 for an absent one."""
    return [] if isinstance(values, int) else [int(value) for value in values]  # type: ignore[attr-defined]
