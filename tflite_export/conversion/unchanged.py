"""What the converter does without a word: kernels left as they were, ranges that are guesses."""

from collections.abc import Iterator, Sequence

from tflite_export.runtime.model import TFLiteModel
from tflite_export.sources.protocol import Source
from tflite_export.tflite import records

_HYBRID = ("dynamic", "int4")
_LEAST = 1024  # weights of a kernel, of TensorFlow's quantizer
_KERNELS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D")


def unchanged(model: TFLiteModel, source: Source) -> Iterator[str]:
    """Which kernels of a file with dynamically quantized activations stayed float, and why."""
    if model.precision not in _HYBRID:
        return
    ops = records.ops(model.content, source.layers, scopes_numbered=source.scopes_numbered)
    kernels = [
        (op, tensor) for op in ops if op.name in _KERNELS for tensor in op.inputs[1:2] if tensor.data is not None
    ]
    left = [op.layer or op.name for op, tensor in kernels if tensor.dtype == "float32"]
    if left:
        named = _some(list(dict.fromkeys(left)))
        share = "all" if len(left) == len(kernels) else f"{len(left)} of {len(kernels)}"
        yield (
            f"{share} kernels stayed float32 ({named}): TensorFlow's quantizer leaves those with fewer than "
            f"{_LEAST:,} weights, and kinds that have no such kernel; 'weight_int8' narrows every one"
        )


def ranges(unseen: Sequence[str], masked: Sequence[str]) -> Iterator[str]:
    """Which layers gave nothing but zeros on the representative data, and which have scores that a mask spreads."""
    if unseen:
        yield (
            f"nothing but zeros came out of {_some(unseen)} on the representative data, so the range there is a guess: "
            "give more varied data, or remove what is dead"
        )
    if masked:
        yield (
            f"scores masked in {_some(masked)} reach from a few to minus thousands or more before a softmax, so that "
            "8 bits hardly tell them apart: mask with about -30, or by adding `(1 - mask) * -1e9` or by `where`, which "
            "is put right here if only softmaxes read it"
        )


def _some(layers: Sequence[str]) -> str:
    return ", ".join(layers[:5]) + (", ..." if len(layers) > 5 else "")
