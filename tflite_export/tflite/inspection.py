"""What is in a file: layers with their operations, bytes, grids and zeros."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tflite_export.files import gzip_size, write_atomic
from tflite_export.tflite import flatbuffer, op_versions, records
from tflite_export.tflite.content import TFLite, content_of
from tflite_export.tflite.work import macs


@dataclass(frozen=True)
class LayerPart:
    """What a file has of one layer.

    Attributes:
        layer: Path of the layer's scope, without the model's name; empty for operations of no layer.
        ops: Names of its operations, in order.
        weight_bytes: Bytes of its constants. One that several layers share counts in the first.
        macs: Multiply-accumulates of one run.
        dtypes: Of its outputs and constants.
        sparsity: Fraction in [0, 1] of zeros in its weights (constants of two dimensions or more).
        scales: Smallest and largest step of its weights; None for float ones.
    """

    layer: str
    ops: tuple[str, ...]
    weight_bytes: int
    macs: int
    dtypes: tuple[str, ...]
    sparsity: float
    scales: tuple[float, float] | None


@dataclass(frozen=True)
class Inspection:
    """What is in a file.

    Attributes:
        size_bytes: Of the file.
        gzip_bytes: After gzip at level 9.
        precision: As its tensors show.
        min_runtime: First TensorFlow Lite release with all its operations; None if one is not known.
        signatures: Names of its signatures.
        inputs, outputs: `name: dtype (shape)` of those of the main graph.
        ops: Operation -> how many, loops' bodies included.
        custom_ops: Names of operations that are not built in.
        layers: In the order in which they run.
        macs: Multiply-accumulates of one run.
        dtype_bytes: dtype -> bytes of constants.
        sparsity: Fraction in [0, 1] of zeros in all weights.
        metadata: Names of its named buffers.
    """

    size_bytes: int
    gzip_bytes: int
    precision: str
    min_runtime: str | None
    signatures: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    ops: dict[str, int]
    custom_ops: tuple[str, ...]
    layers: tuple[LayerPart, ...]
    macs: int
    dtype_bytes: dict[str, int]
    sparsity: float
    metadata: tuple[str, ...]

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(asdict(self), indent=1)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes a picture (`.png`, `.svg`, `.pdf`) of bytes and multiply-accumulates by layer; `.json` for all of it.

        Raises: ImportError with the pip line, if matplotlib is missing for a picture.
        """
        if Path(path).suffix == ".json":
            return write_atomic(path, (self.to_json() + "\n").encode())
        from tflite_export.tflite.picture import drawn

        return write_atomic(path, drawn(self, Path(path).suffix.lstrip(".") or "png"))

    def __str__(self) -> str:
        ops = ", ".join(f"{count} {name}" for name, count in sorted(self.ops.items(), key=lambda item: -item[1]))
        kinds = ", ".join(f"{dtype} {size:,}" for dtype, size in self.dtype_bytes.items())
        lines = [
            f"{self.precision} .tflite, {self.size_bytes:,} bytes ({self.gzip_bytes:,} after gzip), TensorFlow Lite "
            f">= {self.min_runtime or '?'}",
            *(f"  input  {text}" for text in self.inputs),
            *(f"  output {text}" for text in self.outputs),
            f"  {sum(self.ops.values())} operations: {ops}",
            f"  constants in bytes: {kinds or 'none'}; {self.sparsity:.0%} of the weights are zero; {self.macs:,} MACs",
        ]
        if len(self.signatures) > 1:
            lines.append(
                f"  signatures: {', '.join(self.signatures)}; inputs and outputs above are those of the first graph"
            )
        if self.custom_ops:
            lines.append(f"  not built in: {', '.join(self.custom_ops)}")
        return "\n".join([*lines, *_table(self.layers)])


def inspect(tflite: TFLite) -> Inspection:
    """Reads a file without running it: no TensorFlow, no runtime.

    Args:
        tflite: `TFLiteModel`, path or bytes.

    Returns: an `Inspection`; print it.
    Raises: FileNotFoundError; ValueError for what is no sound `.tflite` file; TypeError.

    Example:
    ```
    print(tflite_export.inspect("model.tflite"))
    tflite_export.inspect("model.tflite").save("model.png")
    ```
    """
    content = content_of(tflite)
    ops, borders = records.ops(content), records.borders(content)
    constants = {tensor.buffer: tensor for op in ops for tensor in op.inputs if tensor.data is not None}
    sizes: Counter[str] = Counter()
    for tensor in constants.values():
        sizes[tensor.dtype] += tensor.stored_bytes
    return Inspection(
        size_bytes=len(content),
        gzip_bytes=gzip_size(content),
        precision=records.precision_of(content),
        min_runtime=op_versions.min_runtime(content),
        signatures=flatbuffer.signatures(content),
        inputs=tuple(_border(name, tensor) for name, _, tensor in borders[0]),
        outputs=tuple(_border(name, tensor) for name, _, tensor in borders[1]),
        ops=dict(Counter(op.name for op in ops)),
        custom_ops=tuple(dict.fromkeys(op.name for op in ops if op.custom)),
        layers=_layers(ops),
        macs=sum(macs(op) for op in ops),
        dtype_bytes=dict(sizes.most_common()),
        sparsity=_zeros(list(constants.values())),
        metadata=tuple(flatbuffer.metadata(content)),
    )


def _layers(ops: tuple[records.OpRecord, ...]) -> tuple[LayerPart, ...]:
    by: dict[str, list[records.OpRecord]] = {}
    for op, layer in zip(ops, owners(ops), strict=True):
        by.setdefault(shown(layer), []).append(op)
    counted: set[int] = set()
    parts = []
    for layer, own in by.items():
        held = {tensor.buffer: tensor for op in own for tensor in op.inputs if tensor.data is not None}
        new = [tensor for key, tensor in held.items() if key not in counted]
        counted |= set(held)
        scales = [scale for tensor in new if _is_weight(tensor) for scale in tensor.scales]
        kinds = dict.fromkeys(tensor.dtype for op in own for tensor in (*op.outputs, *op.inputs))
        parts.append(
            LayerPart(
                layer=layer,
                ops=tuple(op.name for op in own),
                weight_bytes=sum(tensor.stored_bytes for tensor in new),
                macs=sum(macs(op) for op in own),
                dtypes=tuple(kinds),
                sparsity=_zeros(new),
                scales=(min(scales), max(scales)) if scales else None,
            )
        )
    return tuple(parts)


def owners(ops: tuple[records.OpRecord, ...]) -> list[str]:
    """The layer of each operation; a DEQUANTIZE of weights belongs to what reads them, and may tell its layer."""
    unpacked = {
        op.outputs[0].name: op.layer
        for op in ops
        if op.outputs and op.inputs and all(tensor.data is not None for tensor in op.inputs)
    }
    own: list[str] = []
    readers: dict[str, str] = {}
    for op in ops:
        told = [unpacked[tensor.name] for tensor in op.inputs if tensor.name in unpacked]
        layer = next((name for name in told if not records.is_nameless(name)), op.layer)
        own.append(layer if records.is_nameless(op.layer) else op.layer)
        readers |= {tensor.name: own[-1] for tensor in op.inputs}
    return [
        readers.get(op.outputs[0].name, layer) if op.outputs and op.outputs[0].name in unpacked else layer
        for op, layer in zip(ops, own, strict=True)
    ]


def shown(path: str) -> str:
    """Without the model's name, which is in every scope."""
    parts = [part for part in path.split("/") if part != "StatefulPartitionedCall"]
    return "/".join(parts[1:] or parts)


def _is_weight(tensor: records.TensorRecord) -> bool:
    return len(tensor.shape) >= 2


def _zeros(tensors: list[records.TensorRecord]) -> float:
    weights = [tensor.data for tensor in tensors if _is_weight(tensor) and tensor.data is not None]
    count = sum(data.size for data in weights)
    return sum(int(data.size - np.count_nonzero(data)) for data in weights) / count if count else 0.0


def _border(name: str, tensor: records.TensorRecord) -> str:
    grid = f", scale {tensor.scales[0]:.6g}, zero point {tensor.zero_points[0]}" if tensor.scales else ""
    return f"{name}: {tensor.dtype} ({', '.join(map(str, tensor.shape))}){grid}"


def _table(layers: tuple[LayerPart, ...]) -> list[str]:
    rows = [("layer", "operations", "weights", "MACs", "types", "zeros", "steps")]
    for part in layers:
        ops = ", ".join(f"{name} x{count}" if count > 1 else name for name, count in Counter(part.ops).items())
        steps = "" if part.scales is None else "{:.3g} - {:.3g}".format(*part.scales)
        rows.append(
            (
                part.layer or "?",
                ops,
                f"{part.weight_bytes:,}",
                f"{part.macs:,}",
                " ".join(part.dtypes),
                f"{part.sparsity:.0%}" if part.weight_bytes else "",
                steps,
            )
        )
    widths = [min(44, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    right = (2, 3, 5)
    return [
        "  "
        + "  ".join(
            cell[:width].rjust(width) if column in right else cell[:width].ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
