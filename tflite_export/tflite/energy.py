"""What an inference might cost in joules: an estimate from work and bytes, not a measurement."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tflite_export.tflite import records
from tflite_export.tflite.content import TFLite, content_of
from tflite_export.tflite.work import macs

# Picojoules in 45 nm at 0.9 V (Horowitz 2014, figure 1.1.9): a multiplication, and the addition to the sum.
# Four-bit kernels are unpacked to eight bits; the table has no 16-bit integer multiplication, so the 32-bit one stands.
MAC_PICOJOULES: Mapping[str, float] = {
    "float32": 3.7 + 0.9,
    "float16": 1.1 + 0.4,
    "int8": 0.2 + 0.1,
    "int16": 3.1 + 0.1,
}
# A byte from a cache of 1 MB (100 pJ for 64 bits), and from DRAM (1.3 to 2.6 nJ for 64 bits, the upper end).
CACHE_PICOJOULES, DRAM_PICOJOULES = 100 / 8, 2600 / 8
_BITS = {"int2": 2, "int4": 4, "uint4": 4}


@dataclass(frozen=True)
class EnergyEstimate:
    """Work and bytes of one inference, times stated constants. For comparing files; no chip needs just this.

        joules_low  = sum over types of macs * energy of one + bytes * energy of a byte from a 1 MB cache
        joules_high = the same with every byte from DRAM

    Attributes:
        macs: Arithmetic type (`"float32"`, `"float16"`, `"int8"`, `"int16"`) -> multiply-accumulates.
        weight_bytes: Of constants read, each time an operation reads them.
        activation_bytes: Of other tensors, read and written by each operation.
        compute_joules: Of the multiply-accumulates alone.
        joules_low: If everything comes from a cache of 1 MB.
        joules_high: If everything comes from DRAM.
        not_counted: Operation -> how many of them, whose arithmetic is left out: all but convolutions and products
            of matrices. Their bytes count. The body of a loop counts once.
    """

    macs: dict[str, int]
    weight_bytes: int
    activation_bytes: int
    compute_joules: float
    joules_low: float
    joules_high: float
    not_counted: dict[str, int]

    def __str__(self) -> str:
        work = ", ".join(f"{count:,} {kind}" for kind, count in self.macs.items()) or "0"
        low, high, compute = (1e6 * joules for joules in (self.joules_low, self.joules_high, self.compute_joules))
        return (
            f"energy, estimated and not measured: {low:.3g} - {high:.3g} microjoules ({compute:.3g} of them in {work} "
            f"MACs; {self.weight_bytes + self.activation_bytes:,} bytes moved)"
        )


def energy_estimate(tflite: TFLite) -> EnergyEstimate:
    """Estimates the energy of one inference from a file, without running it.

    A real device needs more: fetching instructions, waiting and the rest of the board are not in it. The constants
    are those of a 45 nm process; on a newer one all are smaller, those of arithmetic more than those of memory.

    Args:
        tflite: `TFLiteModel`, path or bytes. A file with any batch size counts as one sample.

    Returns: an `EnergyEstimate`.
    Raises: FileNotFoundError; ValueError for what is no sound `.tflite` file; TypeError.
    Example:
    ```
    ratio = energy_estimate(int8).joules_high / energy_estimate(float32).joules_high
    ```
    Reference: Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC 2014, figure 1.1.9.
    """
    ops = records.ops(content_of(tflite))
    work: Counter[str] = Counter()
    for op in ops:
        if macs(op):
            work[arithmetic(op)] += macs(op)
    weights, activations = _moved(ops)
    compute = 1e-12 * sum(count * MAC_PICOJOULES[kind] for kind, count in work.items())
    return EnergyEstimate(
        macs=dict(work.most_common()),
        weight_bytes=weights,
        activation_bytes=activations,
        compute_joules=compute,
        joules_low=compute + 1e-12 * CACHE_PICOJOULES * (weights + activations),
        joules_high=compute + 1e-12 * DRAM_PICOJOULES * (weights + activations),
        not_counted=dict(Counter(op.name for op in ops if not macs(op)).most_common()),
    )


def arithmetic(op: records.OpRecord) -> str:
    """The type in which a convolution or product multiplies; float inputs of integer kernels are made int8 first."""
    kernel, made = op.inputs[1].dtype, op.outputs[0].dtype
    if kernel in ("float32", "float16"):
        return "float16" if made == "float16" else "float32"
    return "int16" if made == "int16" else "int8"


def _moved(ops: tuple[records.OpRecord, ...]) -> tuple[int, int]:
    """(bytes of constants, bytes of activations) that the operations read and write.

    What is made of constants alone, e.g. dequantized weights, is made once and is a constant from then on.
    """
    constant: set[int] = set()
    weights = activations = 0
    for op in ops:
        fixed = [tensor.data is not None or id(tensor) in constant for tensor in op.inputs]
        if fixed and all(fixed):
            constant |= {id(tensor) for tensor in op.outputs}
            continue
        weights += sum(_bytes(tensor) for tensor, is_fixed in zip(op.inputs, fixed, strict=True) if is_fixed)
        activations += sum(_bytes(tensor) for tensor, is_fixed in zip(op.inputs, fixed, strict=True) if not is_fixed)
        activations += sum(_bytes(tensor) for tensor in op.outputs)
    return weights, activations


def _bytes(tensor: records.TensorRecord) -> int:
    """As stored; 0 for what has no fixed size, as strings and resources."""
    if tensor.data is not None:
        return tensor.stored_bytes
    try:
        bits = _BITS.get(tensor.dtype) or 8 * np.dtype(tensor.dtype).itemsize
    except TypeError:
        return 0
    return -(-bits * math.prod(tensor.shape) // 8)
