"""From what the converter says to which layer it is about and what to do."""

import re

from tflite_export import precisions
from tflite_export.errors import ConversionError
from tflite_export.sources.protocol import Source
from tflite_export.tflite.records import layer_of

_FUSED = re.compile(r'fused\["(\w+):", "([^"]+)"')
_NOT_BUILTIN = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op")
_WRAPPERS = ("StatefulPartitionedCall", "PartitionedCall")


def conversion_error(
    error: Exception, source: Source, precision: str, batch: int | None, chatter: str
) -> ConversionError:
    """The error for the user: layers and operations first, then what to do, then the converter's last words."""
    text = str(error)
    places = failing_layers(text, source)
    headline = f"{source.label} does not convert to {precision}"
    if places:
        headline += ": " + "; ".join(f"layer {layer!r} ({', '.join(kinds)})" for layer, kinds in places.items())
    elif not _FUSED.search(text):
        headline += f": {_first_line(text)}"
    return ConversionError(
        f"{headline}.\n{_way_out(text, batch, precision)}\nThe converter said:\n{_tail(chatter or text)}"
    )


def failing_layers(text: str, source: Source) -> dict[str, list[str]]:
    """Layer -> TensorFlow operations that the converter's message complains about."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _FUSED.search(line) if "error:" in line else None
        if match is None or match[1] in _WRAPPERS:
            continue
        layer = layer_of(match[2], source.layers, scopes_numbered=source.scopes_numbered)
        kinds = found.setdefault(layer or match[2].split("@")[0], [])
        if match[1] not in kinds:
            kinds.append(match[1])
    return found


def _way_out(text: str, batch: int | None, precision: str) -> str:
    if "TensorList" in text and batch is None:
        return (
            "A recurrent layer needs a static batch (`batch=1`, the default) or `unroll=True` to be made of builtin "
            "operations."
        )
    if "xf16>" in text and precision != "float16":  # there the converter itself writes them
        return (
            "The model computes in float16, which no builtin operation does. Rebuild it under "
            '`keras.config.set_dtype_policy("float32")`, `set_weights(model.get_weights())`, and convert that; float16 '
            "storage is `precision='float16'`."
        )
    missing = list(dict.fromkeys(_NOT_BUILTIN.findall(text)))
    if missing:
        ships = "convert to 'float32', 'float16' or 'dynamic' with" if precisions.get(precision).integer else "pass"
        return (
            f"No builtin TensorFlow Lite operation exists for {', '.join('tf.' + name for name in missing)}, and "
            "operations from outside (Flex) do not run on the standard runtimes. Write the layer with other "
            "operations, leave it out of the model and compute it in the app, or, for an app that ships them, "
            f"{ships} custom_ops={['Flex' + name for name in missing]}."
        )
    return "Convert parts of the model to find what it is about, or pass verbose=True for all the converter says."


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()] or ["no message"]
    return lines[0].rstrip(".")[:300]


def _tail(text: str, lines: int = 8, width: int = 180) -> str:
    said = [line[:width] for line in text.splitlines() if line.strip()]
    return "\n".join(f"  {line}" for line in said[-lines:])
