"""A calibrated float file, made ready for TensorFlow's quantizer of 16-bit activations."""

from tflite_export.tflite.kernels import biases
from tflite_export.tflite.objects import FileObjects


def prepared(content: bytes, headroom: float) -> bytes:
    """The file in which the quantizer finds what it needs.

    - Ranges are wider by a factor, against clipping of larger values in use; but for inputs of RSQRT (the variance in
      a normalization), which are clipped as before: its table has 128 places for positive numbers, so that small ones
      would lose by what large ones gain.
    - No two operations share a bias, as calls of one layer do: the step of an integer bias depends on the input's, and
      the quantizer gives all the step of the first.
    - Integers (words that are looked up) have a range, which the quantizer asks for and then ignores.

    Args:
        content: A float `.tflite` file with ranges.
        headroom: The factor, at least 1.
    """
    file = FileObjects(content)
    tensors = {int(number) for operator in file.operators for number in (*operator.inputs, *operator.outputs)} - {-1}
    steep = {int(operator.inputs[0]) for operator in file.operators if file.kind(operator) == "RSQRT"}
    for number in tensors:
        own = file.range_of(number)
        if own is not None and number not in steep:
            file.set_range(number, headroom * own[0], headroom * own[1])
        elif file.dtype(number) != "float32" and not file.is_constant(number):
            file.set_range(number, 0.0, 1.0)
    for operator, place in biases(file):
        file.own_constant(operator, place)
    return file.content()
