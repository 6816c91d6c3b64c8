"""Inputs of bytes in an integer file, without a way through floating point."""

from tflite_export.tflite.objects import FileObjects


def take_bytes(content: bytes) -> bytes:
    """The file in which a uint8 input, made float and then quantized, is quantized as it is: a byte stands for itself.

    Args:
        content: A `.tflite` file.
    """
    file = FileObjects(content)
    changed = [_quantize_directly(file) for _ in file.each_graph()]
    return file.content() if any(changed) else content


def _quantize_directly(file: FileObjects) -> bool:
    changed = False
    for cast in [one for one in file.operators if file.kind(one) == "CAST"]:
        number = int(cast.inputs[0])
        readers = file.readers(int(cast.outputs[0]))
        if file.dtype(number) != "uint8" or number not in file.graph.inputs or file.readers(number) != [cast]:
            continue
        if not readers or any(
            file.kind(one) != "QUANTIZE" or file.dtype(int(one.outputs[0])) != "int8" for one in readers
        ):
            continue
        file.set_step(number, 1.0)
        for reader in readers:
            file.set_input(reader, 0, number)
        file.remove(cast)
        changed = True
    return changed
