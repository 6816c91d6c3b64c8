"""Integer files in which some layers keep another precision."""

from collections.abc import Mapping
from difflib import get_close_matches

from tflite_export.errors import ConversionError
from tflite_export.sources.protocol import Source
from tflite_export.tflite import records

PRECISIONS = ("float32", "int8", "int4")
OF = ("int8", "uint8", "int8_float_io", "int8_int4")


def check_layers(layers: Mapping[str, str] | None, source: Source, precision: str) -> dict[str, str]:
    """The map layer -> precision, if it can be.

    Raises: TypeError, ValueError.
    """
    if layers is None:
        return {}
    if not isinstance(layers, Mapping):
        raise TypeError(f"`layers` must be a dict layer name -> precision; got {type(layers).__name__}.")
    if layers and precision not in OF:
        raise ValueError(f"`layers` goes with {', '.join(map(repr, OF))}; got precision {precision!r}.")
    if layers and (source.has_ranges or source.kernels):
        raise ValueError(
            f"{source.label} was trained with quantization; choose the precision of its layers there, not by `layers`."
        )
    known = {*source.layers}
    for name, wanted in layers.items():
        if name.split("/")[-1] not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"`layers` names {name!r}, which is no layer of {source.label}.{hint}")
        if wanted not in PRECISIONS:
            choice = ", ".join(map(repr, PRECISIONS))
            raise ValueError(f"`layers`: the precision of {name!r} must be one of {choice}; got {wanted!r}.")
    return dict(layers)


def check_found(name: str, ops: list[records.OpRecord], source: Source) -> None:
    """Refuses a layer of which nothing is in the file.

    Raises: ConversionError.
    """
    if not ops:
        raise ConversionError(
            f"`layers`: {name!r} of {source.label} makes no operation of its own (it does nothing in inference, or was "
            "folded away), so it has no precision. Leave it out; of a model inside, name the layers in it."
        )


def of_layers(op: records.OpRecord, wanted: set[str], source: Source) -> bool:
    """Whether an operation computes one of these layers, alone or fused with others."""
    names = [tensor.name for tensor in op.outputs]
    names += [tensor.name for tensor in op.inputs if tensor.data is not None]
    found = {path for name in names for path in records.layers_in(name, source.layers, source.scopes_numbered)}
    return any(path == name or path.endswith(f"/{name}") for path in found for name in wanted)
