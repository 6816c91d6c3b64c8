"""Sparse kernels that are stored with their zeros again."""

from collections.abc import Collection

from tflite_export.tflite import records
from tflite_export.tflite.objects import FileObjects


def with_whole_kernels(content: bytes, names: Collection[str]) -> bytes:
    """The file in which the constants of these names are stored whole.

    Args:
        content: A `.tflite` file.
        names: Of constants in the main graph.
    """
    file = FileObjects(content)
    for number, tensor in enumerate(records.tensors(content)):
        if tensor.name not in names or tensor.block is None or tensor.data is None:
            continue
        file.store_whole(number, tensor.data)
        for reader in file.readers(number):
            if file.kind(reader) == "DENSIFY":
                for after in file.readers(int(reader.outputs[0])):
                    place = [int(one) for one in after.inputs].index(int(reader.outputs[0]))
                    file.set_input(after, place, number)
                file.remove(reader)
    return file.content()
