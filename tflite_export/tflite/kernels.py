"""Puts the very integers of a source's kernels into a file, whose converter derives others from the same values.

TensorFlow's converter knows one grid for weights: the largest of a channel becomes 127. Kernels on another one (few
bits, learned steps, powers of two, one step for all channels), kernels that stay float, and files in which kernels
alone are integers are put right here, after it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tflite_export.errors import ConversionError
from tflite_export.tflite.objects import FileObjects

# Operation -> axis of the output channels in its kernel, which is always its second input.
_CHANNELS = {"FULLY_CONNECTED": 0, "CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "TRANSPOSE_CONV": 0}
_BIAS = {"TRANSPOSE_CONV": 3}


@dataclass(frozen=True)
class Kernel:
    """A kernel as its source has it.

    Attributes:
        layer: Name.
        bits: Of its integers, in [2, 8]; 0 for a kernel that stays float.
        values: Array (channels, weights of a channel), float32, on the grid.
        steps: Array (channels,); None for a float kernel.
        bias: Array (channels,), not rounded; None for none.
        plain: Whether the file has its integers anyway: it is only told so that it is not taken for another one.
    """

    layer: str
    bits: int
    values: np.ndarray
    steps: np.ndarray | None
    bias: np.ndarray | None
    plain: bool = False

    @property
    def integers(self) -> np.ndarray:
        """The integers of its values, int8."""
        assert self.steps is not None
        return np.rint(self.values / self.steps[:, None]).astype(np.int8)


def patch(content: bytes, kernels: Iterable[Mapping[str, Any]], integer: bool) -> tuple[bytes, frozenset[str]]:
    """The file with these kernels.

    Args:
        content: A `.tflite` file.
        kernels: What `Kernel` takes, each as a dict.
        integer: Whether activations are integers in the file.

    Returns: The file, and the names of the tensors that operations left float make.
    Raises: ConversionError that names a layer whose kernel is not in the file.
    """
    wanted = [Kernel(**entry) for entry in kernels]
    if not wanted:
        return content, frozenset()
    file = FileObjects(content)
    made: dict[tuple[int, int], int] = {}
    floats: set[str] = set()
    missing = {id(kernel): kernel.layer for kernel in wanted if not kernel.plain}
    for operator in list(file.operators):
        axis = _CHANNELS.get(file.kind(operator))
        found = None if axis is None else _match(file, operator, axis, wanted)
        if found is None or axis is None:
            continue
        kernel, number = _with_room(file, operator, found[1]), int(operator.inputs[1])
        for same in wanted:  # a layer that is called again
            if np.array_equal(same.values, found[0].values):
                missing.pop(id(same), None)
        key = number, id(found[0])
        if kernel.plain:
            continue
        if not integer:
            _store_beside(file, number, axis, kernel, file.kind(operator))
        elif kernel.steps is None:
            floats.add(_leave_float(file, operator, axis, kernel))
        else:
            if key not in made:
                made[key] = _stored(file, number, axis, kernel, file.kind(operator))
            file.set_input(operator, 1, made[key])
            _store_bias(file, operator, kernel)
    if missing:
        names = ", ".join(dict.fromkeys(map(repr, missing.values())))
        raise ConversionError(
            f"The kernel of layer {names} is not in the file as it was trained: the converter has joined it with "
            "another operation. Way out: leave this layer on plain 8 bits."
        )
    return file.content(), frozenset(floats)


def widen_biases(content: bytes) -> bytes:
    """The file with biases of 64 bits, which kernels of 16-bit activations demand; of fake quantization the converter
    makes 32."""
    file = FileObjects(content)
    for operator, place in biases(file):
        file.widen(int(operator.inputs[place]))
    return file.content()


def biases(file: FileObjects) -> Iterator[tuple[Any, int]]:
    """Operations with a bias, and which of their inputs it is."""
    for operator in file.operators:
        place = _BIAS.get(file.kind(operator), 2)
        if file.kind(operator) in _CHANNELS and len(operator.inputs) > place and operator.inputs[place] >= 0:
            yield operator, place


def narrow_dense(content: bytes, outputs: Collection[str]) -> bytes:
    """The file with the kernels of dense layers that make these outputs, which have 8 bits in it, on 4 bits.

    Each channel gets the step with the least square error: the few largest weights are cut off a little, and all the
    others become finer.
    """
    file = FileObjects(content)
    made: dict[int, int] = {}
    for operator in list(file.operators):
        own = file.kind(operator) == "FULLY_CONNECTED" and file.name(int(operator.outputs[0])) in outputs
        number = int(operator.inputs[1]) if own else -1
        stored = file.values(number) if number >= 0 and file.steps(number) is not None else None
        if stored is None or stored.ndim != 2:
            continue
        steps = _least_square_steps(stored, 7)
        values = np.clip(np.rint(stored / steps[:, None]), -7, 7) * steps[:, None]
        kernel = _with_room(file, operator, Kernel(f"tensor {number}", 4, values, steps, None))
        if number not in made:
            made[number] = _stored(file, number, 0, kernel, "FULLY_CONNECTED")
        file.set_input(operator, 1, made[number])
        _store_bias(file, operator, kernel)
    return file.content()


def _least_square_steps(matrix: np.ndarray, largest: int) -> np.ndarray:
    """For each row the step, out of 40 between 0.4 and 1 times max|w| / largest, of the least square error."""
    whole = np.maximum(np.abs(matrix).max(axis=1), 1e-12).astype(np.float32) / largest
    best, steps = np.full(len(matrix), np.inf), whole.copy()
    for factor in np.linspace(0.4, 1.0, 40, dtype=np.float32):
        tried = whole * factor
        rounded = np.clip(np.rint(matrix / tried[:, None]), -largest, largest) * tried[:, None]
        error = np.sum((matrix - rounded) ** 2, axis=1)
        better = error < best
        best, steps = np.where(better, error, best), np.where(better, tried, steps)
    return steps.astype(np.float32)


def _match(file: FileObjects, operator: Any, axis: int, wanted: list[Kernel]) -> tuple[Kernel, Kernel] | None:
    """The kernel whose values an operation has, each within half of its step in the file; and as it is there, where a
    rescaling before or behind the operation may have become a factor of it. Of several, that with the nearest bias."""
    number = int(operator.inputs[1])
    stored = file.values(number)
    if stored is None:
        return None
    matrix = np.moveaxis(stored, axis, 0).reshape(stored.shape[axis], -1)
    found = []
    for kernel in wanted:
        as_there = _as_there(kernel, matrix, file.steps(number)) if kernel.values.shape == matrix.shape else None
        if as_there is not None:
            found.append((kernel, as_there))
    bias = _bias(file, operator)
    there = np.zeros(len(matrix)) if bias is None else bias

    def distance(pair: tuple[Kernel, Kernel]) -> float:
        return float(np.abs(there - (0 if pair[0].bias is None else pair[0].bias)).max(initial=0))

    return min(found, key=distance, default=None)


def _as_there(kernel: Kernel, matrix: np.ndarray, steps: np.ndarray | None) -> Kernel | None:
    if _near(kernel.values, matrix, steps):
        return kernel
    factors = _factors(kernel.values, matrix)
    moved = kernel.values * factors[:, None]
    if not np.all(factors) or matrix.shape[1] == 1 or not _near(moved, matrix, steps):
        return None
    own = None if kernel.steps is None else kernel.steps * np.abs(factors)
    return replace(kernel, values=moved, steps=own, bias=None)


def _bias(file: FileObjects, operator: Any) -> np.ndarray | None:
    place = _BIAS.get(file.kind(operator), 2)
    has = len(operator.inputs) > place and operator.inputs[place] >= 0
    return file.values(int(operator.inputs[place])) if has else None


def _exact(kernel: Kernel, there: np.ndarray, steps: np.ndarray | None) -> np.ndarray:
    """The bias before rounding; that of the file where the converter has added something to it."""
    if kernel.bias is None or steps is None:
        return there
    return kernel.bias if np.all(np.abs(there - kernel.bias) <= 1.01 * steps) else there


def _factors(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """What each channel of a kernel has to be multiplied by to come nearest to another one; 1 for one of zeros."""
    own, other = values.astype(np.float64), matrix.astype(np.float64)
    sizes = np.sum(own**2, axis=1)
    return np.where(sizes == 0, 1.0, np.sum(own * other, axis=1) / np.where(sizes == 0, 1.0, sizes))


def _near(values: np.ndarray, matrix: np.ndarray, steps: np.ndarray | None) -> bool:
    if steps is None:
        return bool(np.allclose(values, matrix, rtol=1e-4, atol=1e-6 * float(np.abs(matrix).max(initial=0.0))))
    return bool(np.all(np.abs(values - matrix) <= 0.51 * np.reshape(steps, (-1, 1)) + 1e-12))


def _arranged(file: FileObjects, number: int, axis: int, matrix: np.ndarray) -> np.ndarray:
    """(channels, weights) in the layout of a kernel of the file."""
    shape = file.shape(number)
    moved = (shape[axis], *(size for place, size in enumerate(shape) if place != axis))
    return np.ascontiguousarray(np.moveaxis(matrix.reshape(moved), 0, axis))


def _stored(file: FileObjects, number: int, axis: int, kernel: Kernel, kind: str) -> int:
    """The number of a constant with the integers of a kernel, in place of another one."""
    made = file.like(number)
    integers = _arranged(file, number, axis, kernel.integers)
    file.set_integers(made, integers, _steps(file.steps(number), kernel), axis, _stored_bits(kernel, kind))
    return made


def _stored_bits(kernel: Kernel, kind: str) -> int:
    """4 for dense kernels that fit; convolutions of 4 bits are slow."""
    return 4 if kernel.bits <= 4 and kind == "FULLY_CONNECTED" and np.abs(kernel.integers).max() <= 7 else 8


def _steps(before: np.ndarray | None, kernel: Kernel) -> np.ndarray:
    """The steps of a kernel; where all integers of a channel are zero, one that its bias fits.

    The converter chooses such a step so that the bias has 31 bits; kernels of 4 bits leave it 28.
    """
    assert kernel.steps is not None
    if before is None:
        return kernel.steps
    return np.where(kernel.integers.any(axis=1), kernel.steps, before * np.float32(2**10))


def _with_room(file: FileObjects, operator: Any, kernel: Kernel) -> Kernel:
    """The kernel with larger steps for channels whose bias would not fit otherwise: such weights are next to nothing
    beside the bias, and so is what their rounding changes."""
    data = 2 if file.kind(operator) == "TRANSPOSE_CONV" else 0
    there, step = _bias(file, operator), file.steps(int(operator.inputs[data]))
    if kernel.steps is None or there is None or step is None:
        return kernel
    room = 2.0 ** (26 if _stored_bits(kernel, file.kind(operator)) == 4 else 30)  # XNNPACK shifts 4 bits by 4 more
    steps = np.maximum(kernel.steps, (np.abs(there) / (room * step[0])).astype(np.float32))
    return kernel if np.array_equal(steps, kernel.steps) else replace(kernel, steps=steps)


def _store_bias(file: FileObjects, operator: Any, kernel: Kernel) -> None:
    """The bias in whole products of the new steps and that of the input."""
    place, data = _BIAS.get(file.kind(operator), 2), 2 if file.kind(operator) == "TRANSPOSE_CONV" else 0
    there, steps = _bias(file, operator), file.steps(int(operator.inputs[1]))
    step = file.steps(int(operator.inputs[data]))
    if there is None or step is None or steps is None:
        return
    scale = steps * np.float32(step[0])
    exact = _exact(kernel, there, file.steps(int(operator.inputs[place])))
    integers = np.rint(exact / scale.astype(np.float64))
    file.set_bias(operator, place, integers, scale)


def _leave_float(file: FileObjects, operator: Any, axis: int, kernel: Kernel) -> str:
    """An operation in floating point between a DEQUANTIZE and a QUANTIZE; the name of what it makes."""
    kind = file.kind(operator)
    place = _BIAS.get(kind, 2)
    there = _bias(file, operator)
    if there is not None:
        bias = _exact(kernel, there, file.steps(int(operator.inputs[place])))
        file.set_input(operator, place, file.new_constant(f"{kernel.layer}/float_bias", np.asarray(bias, np.float32)))
    values = _arranged(file, int(operator.inputs[1]), axis, kernel.values.astype(np.float32))
    file.set_input(operator, 1, file.new_constant(f"{kernel.layer}/float_kernel", values))
    data = 2 if kind == "TRANSPOSE_CONV" else 0
    file.set_input(operator, data, file.dequantized_before(operator, int(operator.inputs[data])))
    return file.quantized_after(operator)


def _store_beside(file: FileObjects, number: int, axis: int, kernel: Kernel, kind: str) -> None:
    """Integers, and a DEQUANTIZE that gives what was a float constant."""
    if kernel.steps is None or not file.is_constant(number):
        return
    integers = _arranged(file, number, axis, kernel.integers)
    file.dequantized_constant(number, integers, kernel.steps, axis, _stored_bits(kernel, kind))
