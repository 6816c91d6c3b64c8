"""Files that store kernels without their zeros: TensorFlow Lite's sparse encoding, where runtimes get it right."""

from collections.abc import Iterator, Mapping

from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.errors import ConversionError
from tflite_export.silence import silenced
from tflite_export.tflite import records
from tflite_export.tflite.whole import with_whole_kernels

PRECISIONS = ("float32", "float16", "weight_int8", "int8", "uint8", "int8_float_io")
_WITHOUT_BLOCKS = ("float16", "weight_int8")


def check_sparse(precision: str) -> None:
    """Refuses precisions whose sparse files no runtime gets right.

    Raises: ValueError.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"`sparse` goes with {', '.join(map(repr, PRECISIONS))}; got precision {precision!r}: ai_edge_litert 2.3 "
            "does not load such a file, or computes something else. Choose 'weight_int8', or leave the zeros in the "
            "file: compression (gzip, an APK) saves them, too."
        )


def sparsified(job: Job, content: bytes) -> bytes:
    """The file with kernels stored sparsely, but for those that runtimes get wrong then, which `job.whole` tells.

    Raises: ConversionError for a file that is no shorter so.
    """
    failure: Exception | None = None
    with silenced(job.verbose) as said:
        from tensorflow.lite.python.convert import mlir_sparsify

        try:
            made = bytes(mlir_sparsify(content))
        except Exception as error:
            failure = error
    if failure is not None:
        raise conversion_error(failure, job.source, job.precision.name, job.batch, said.text) from failure
    ops = records.ops(made, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    before = records.ops(content, job.source.layers, scopes_numbered=job.source.scopes_numbered)
    wrong = dict(_wrong(job, ops, _layers(before, ops)))
    if wrong:
        made = with_whole_kernels(made, frozenset(wrong))
    if len(made) >= len(content) or not any(
        tensor.block for op in ops for tensor in op.inputs if tensor.name not in wrong
    ):
        why = " ".join(dict.fromkeys(wrong.values())) or _zeros(job, ops)
        raise ConversionError(
            f"`sparse`: a {job.precision.name!r} file of {job.source.label} without its zeros has {len(made):,} bytes, "
            f"with them {len(content):,}. {why}Leave `sparse` out."
        )
    job.whole.extend(f"stored with its zeros: {why.strip()}" for why in dict.fromkeys(wrong.values()))
    return made


def renamed(before: bytes, after: bytes, names: frozenset[str]) -> frozenset[str]:
    """Names of tensors, after the step that gave tensors other names and put DENSIFY in."""
    one, other = (
        [op.outputs[0].name for op in records.ops(content) if op.name != "DENSIFY"] for content in (before, after)
    )
    return frozenset(new for old, new in zip(one, other, strict=True) if old in names)


def _layers(before: tuple[records.OpRecord, ...], after: tuple[records.OpRecord, ...]) -> dict[str, str]:
    """Name of what an operation makes -> its layer, which the file before still tells."""
    own = [op.layer for op in before if op.name != "DENSIFY"]
    return {
        op.outputs[0].name: layer for op, layer in zip((op for op in after if op.name != "DENSIFY"), own, strict=True)
    }


def _wrong(job: Job, ops: tuple[records.OpRecord, ...], layers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name of a sparse kernel that runtimes get wrong -> which layer, why, and the way out."""
    readers = {tensor.name: op for op in ops for tensor in op.inputs}
    for op in ops:
        reader = op
        while reader.name in ("DENSIFY", "DEQUANTIZE") and reader.outputs[0].name in readers:
            reader = readers[reader.outputs[0].name]
        layer, name = op.layer or layers.get(reader.outputs[0].name, ""), job.precision.name
        for tensor in op.inputs:
            if tensor.block is None:
                continue
            if name in _WITHOUT_BLOCKS and tensor.block > 1:
                yield (
                    tensor.name,
                    f"The kernel of layer {layer!r} has zeros in blocks of {tensor.block}; stored so as {name!r}, "
                    "ai_edge_litert 2.3 computes NaN or wrong numbers: choose 'float32', or prune single weights. ",
                )
            elif job.precision.integer and reader.name == "FULLY_CONNECTED" and not reader.is_float:
                yield (
                    tensor.name,
                    f"{layer!r} is a dense layer, whose sparse kernel in an {name!r} file ai_edge_litert 2.3 does not "
                    "load or gets wrong: choose 'weight_int8' or 'float32'. ",
                )


def _zeros(job: Job, ops: tuple[records.OpRecord, ...]) -> str:
    """What share of their kernels is zero."""
    shares = {
        op.layer: float((tensor.data == 0).mean())
        for op in ops
        for tensor in op.inputs
        if tensor.data is not None and len(tensor.shape) > 1 and op.layer
    }
    most = sorted(shares.items(), key=lambda pair: -pair[1])[:3]
    return f"Most zeros: {', '.join(f'{layer!r} {share:.0%}' for layer, share in most)}. " if most else ""
