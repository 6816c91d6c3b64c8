"""Files that store kernels without their zeros: TensorFlow Lite's sparse encoding, where runtimes get it right."""

from tflite_export.conversion.explain import conversion_error
from tflite_export.conversion.job import Job
from tflite_export.errors import ConversionError
from tflite_export.silence import silenced
from tflite_export.tflite import records

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
    """The file with kernels stored sparsely, where that is shorter.

    Raises: ConversionError for a file without such a kernel, and for combinations that runtimes get wrong.
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
    sparse = [(op, tensor) for op in ops for tensor in op.inputs if tensor.block is not None]
    if not sparse or len(made) >= len(content):
        raise ConversionError(
            f"`sparse`: {job.source.label} has too few zeros for a {job.precision.name!r} file that is shorter without "
            f"them ({len(made):,} bytes, {len(content):,} with them). {_zeros(job, ops)}Prune it first, or leave "
            "`sparse` out."
        )
    readers = {tensor.name: op for op in ops for tensor in op.inputs}
    for op, tensor in sparse:
        reader = op
        while reader.name in ("DENSIFY", "DEQUANTIZE") and reader.outputs[0].name in readers:
            reader = readers[reader.outputs[0].name]
        layer = op.layer or reader.layer
        if job.precision.name in _WITHOUT_BLOCKS and (tensor.block or 1) > 1:
            raise ConversionError(
                f"`sparse`: the kernel of layer {layer!r} has zeros in blocks of {tensor.block}, and stored so "
                f"as {job.precision.name!r} it makes ai_edge_litert 2.3 compute NaN or something else. Choose "
                "'float32', or prune single weights instead of blocks."
            )
        if job.precision.integer and reader.name == "FULLY_CONNECTED" and not reader.is_float:
            raise ConversionError(
                f"`sparse`: {layer!r} is a dense layer, and ai_edge_litert 2.3 does not load (or gets wrong) a "
                f"sparse dense kernel in an {job.precision.name!r} file; those of convolutions it does. Choose "
                "'weight_int8' or 'float32', or leave `sparse` out."
            )
    return made


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
