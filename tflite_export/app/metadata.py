"""Metadata of a file: written into it, and read from it."""

from collections.abc import Callable, Sequence
from typing import Any

from tflite_export.app.attached import attach, attached
from tflite_export.app.metadata_fields import Metadata, TensorText
from tflite_export.app.metadata_plan import planned
from tflite_export.app.metadata_reader import unpacked
from tflite_export.app.metadata_schema import BUFFER_NAME, ContentKind, ModelNotes, TensorNotes
from tflite_export.app.metadata_writer import packed
from tflite_export.runtime.model import TFLiteModel
from tflite_export.tflite import flatbuffer, soundness
from tflite_export.tflite.content import TFLite, content_of
from tflite_export.tflite.objects import FileObjects


def set_metadata(tflite: Any, metadata: Metadata) -> TFLiteModel:
    """A file with metadata in the form of TensorFlow Lite Support, as MediaPipe Tasks and Android Studio read it.

    The metadata is a buffer of the file named TFLITE_METADATA; labels lie in a zip archive behind the file, which
    `unzip` opens and runtimes do not see. What the file computes stays, to the bit. Old metadata and an old archive go.

    MediaPipe's ImageClassifier takes files with one input (1, height, width, 3):

    | input | what it needs |
    |---|---|
    | float32 (`"float32"`, `"float16"`, `"dynamic"`, `"int8_float_io"`) | `normalization`, the same for all channels |
    | uint8 (`"uint8"`) | nothing: pixels go in as they are. Convert with data from pixels of 0 to 255 |
    | int8, int16 | refused; convert to `"uint8"` instead |
    | one channel | refused |

    Args:
        tflite: `TFLiteModel`, path of a `.tflite` file, or bytes. It stays as it is.
        metadata: What to say.

    Returns: a new `TFLiteModel`, loaded on ai_edge_litert.
    Raises: ValueError if labels, normalization, images or texts do not fit the file; ValueError, TypeError,
        FileNotFoundError for what is no file.

    Example:
    ```
    file = tflite_export.convert(model, "float16")
    said = Metadata("Pets", labels=["cat", "dog"], normalization=Normalization(mean=127.5, std=127.5), image=True)
    tflite_export.set_metadata(file, said).save("pets.tflite")
    ```
    """
    if not isinstance(metadata, Metadata):
        raise TypeError(f"`metadata` must be a tflite_export.Metadata; got {type(metadata).__name__}.")
    file = TFLiteModel.load(tflite)
    notes, files = planned(file, metadata)
    objects = FileObjects(file.content)
    objects.set_named_buffer(BUFFER_NAME, packed(notes))
    content = attach(objects.content(), files)
    soundness.check(content, "The file with metadata")
    return TFLiteModel.from_content(content, file.precision, file.calibrated, trusted=True)


def read_metadata(tflite: TFLite) -> Metadata | None:
    """What a file says about itself, whoever wrote it.

    Of metadata that others wrote, it gives what `Metadata` has: labels of the last axis in their first language, the
    first normalization of an input, score ranges of whole outputs.

    Args:
        tflite: `TFLiteModel`, path or bytes; it is read, not run.

    Returns: a `Metadata` with the names of all inputs and outputs; None if the file has no metadata. Labels and
        normalization are a dict only where the file has several outputs or inputs.
    Raises: FileNotFoundError; ValueError for what is no sound file, damaged metadata, or labels that are not there.

    Example:
    ```
    tflite_export.read_metadata("pets.tflite").labels       # ("cat", "dog")
    ```
    """
    content = content_of(tflite)
    buffers = flatbuffer.metadata(content)
    if BUFFER_NAME not in buffers:
        return None
    notes = unpacked(buffers[BUFFER_NAME])
    inputs, outputs = flatbuffer.names(content)

    def labels(tensor: TensorNotes) -> tuple[str, ...] | None:
        return _lines(content, tensor.labels_file) if tensor.labels_file else None

    made = Metadata(
        name=notes.name,
        description=notes.description,
        version=notes.version,
        author=notes.author,
        license=notes.license,
        labels=_each(outputs, notes.outputs, labels),
        score_range=_score_range(notes),
        normalization=_each(inputs, notes.inputs, lambda tensor: tensor.normalization),
        image=any(tensor.content == ContentKind.IMAGE for tensor in notes.inputs),
        inputs=tuple(TensorText(tensor.name, tensor.description) for tensor in notes.inputs),
        outputs=tuple(TensorText(tensor.name, tensor.description) for tensor in notes.outputs),
    )
    object.__setattr__(made, "min_parser_version", notes.min_parser_version)
    return made


def _each(names: Sequence[str], tensors: Sequence[TensorNotes], value: Callable[[TensorNotes], Any]) -> Any:
    """The value of the only tensor; of several, name -> value of those that have one."""
    found = {name: value(tensor) for name, tensor in zip(names, tensors, strict=False)}
    found = {name: one for name, one in found.items() if one is not None}
    if not found:
        return None
    return found if len(names) > 1 else next(iter(found.values()))


def _score_range(notes: ModelNotes) -> Sequence[float] | None:
    """That of the first output with labels, or of the only one."""
    labeled = [tensor for tensor in notes.outputs if tensor.labels_file]
    found = (labeled or notes.outputs)[:1] if labeled or len(notes.outputs) == 1 else ()
    return found[0].score_range if found else None


def _lines(content: bytes, name: str) -> tuple[str, ...]:
    """Labels in a file behind a `.tflite`, one a line; an empty line at the end is none."""
    try:
        text = attached(content, name).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"The labels in {name!r} must be UTF-8: {error}.") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    return tuple(lines[:-1] if lines[-1] == "" else lines)
