"""Metadata for one file: what each of its inputs and outputs gets, refused where it does not fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tflite_export.app.golden import is_class_number
from tflite_export.app.metadata_fields import FIRST_VERSION, Metadata, Normalization, TensorText
from tflite_export.app.metadata_schema import ColorSpace, ContentKind, ModelNotes, TensorNotes
from tflite_export.runtime.model import TensorInfo, TFLiteModel

_COLORS = {3: ColorSpace.RGB, 1: ColorSpace.GRAYSCALE}


def planned(file: TFLiteModel, metadata: Metadata) -> tuple[ModelNotes, dict[str, bytes]]:
    """What goes into the metadata of a file, and the files that go behind it.

    Raises: ValueError for what does not fit the file, with both numbers and the name of the input or output.
    """
    labels = _by_name("labels", metadata.labels, file.outputs, "output")
    for info in file.outputs:
        if info.name in labels:
            _check_labels(info, labels[info.name])
    names = [info.name for info in file.outputs if info.name in labels]
    files = dict(zip(names, _file_names(len(names)), strict=True))
    notes = ModelNotes(
        name=metadata.name,
        description=metadata.description,
        version=metadata.version,
        author=metadata.author,
        license=metadata.license,
        min_parser_version=FIRST_VERSION,
        inputs=_inputs(file.inputs, metadata),
        outputs=_outputs(file.outputs, metadata, files),
    )
    return notes, {files[name]: "\n".join(labels[name]).encode() for name in names}


def _file_names(count: int) -> list[str]:
    """`labels.txt`, `labels_2.txt`, ..."""
    return [f"labels{'' if number == 1 else f'_{number}'}.txt" for number in range(1, count + 1)]


def _inputs(infos: Sequence[TensorInfo], metadata: Metadata) -> tuple[TensorNotes, ...]:
    normalizations = _by_name("normalization", metadata.normalization, infos, "input")
    colors = {info.name: color for info in infos if metadata.image and (color := _color(info)) is not None}
    if metadata.image and not colors:
        raise ValueError(
            f"`image=True` needs an input of shape (1, height, width, 3 or 1); the file has {_listed(infos)}. Pass "
            "`image=False`."
        )
    for info in infos:
        if info.name in normalizations:
            _check_normalization(info, normalizations[info.name])
    return tuple(
        TensorNotes(
            name=text.name or info.name,
            description=text.description,
            content=ContentKind.IMAGE if info.name in colors else ContentKind.NONE,
            color_space=colors.get(info.name, ColorSpace.UNKNOWN),
            normalization=normalizations.get(info.name),
        )
        for info, text in zip(infos, _texts("inputs", metadata.inputs, infos), strict=True)
    )


def _outputs(infos: Sequence[TensorInfo], metadata: Metadata, files: Mapping[str, str]) -> tuple[TensorNotes, ...]:
    if metadata.score_range is not None and not files and len(infos) > 1:
        raise ValueError(
            f"`score_range` is that of the outputs with labels, and none of {_names(infos)} has some. Pass "
            f"`labels={{{infos[0].name!r}: [...]}}`, or leave the range out."
        )
    ranged = set(files) or {infos[0].name}
    return tuple(
        TensorNotes(
            name=text.name or info.name,
            description=text.description,
            content=ContentKind.FEATURE if info.name in files else ContentKind.NONE,
            score_range=metadata.score_range if info.name in ranged else None,
            labels_file=files.get(info.name, ""),
        )
        for info, text in zip(infos, _texts("outputs", metadata.outputs, infos), strict=True)
    )


def _by_name(what: str, value: Any, infos: Sequence[TensorInfo], kind: str) -> dict[str, Any]:
    """Name of an input or output -> its value."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        if len(infos) != 1:
            raise ValueError(
                f"The file has {len(infos)} {kind}s, {_names(infos)}: say which one `{what}` belongs to, as "
                f"`{what}={{{infos[0].name!r}: ...}}`."
            )
        return {infos[0].name: value}
    if unknown := [name for name in value if name not in {info.name for info in infos}]:
        raise ValueError(f"`{what}` names the {kind}s {unknown}; the file has {_names(infos)}.")
    return dict(value)


def _texts(what: str, texts: Sequence[TensorText], infos: Sequence[TensorInfo]) -> Sequence[TensorText]:
    if texts and len(texts) != len(infos):
        raise ValueError(
            f"`{what}` must have a TensorText for each of the file's {len(infos)} {what}, {_names(infos)}; got "
            f"{len(texts)}."
        )
    return texts or [TensorText()] * len(infos)


def _check_labels(info: TensorInfo, labels: Sequence[str]) -> None:
    size = info.shape[-1] if info.shape else 1
    if size != len(labels) and not is_class_number(info):
        raise ValueError(
            f"Output {info.name!r} has {'any number of' if size is None else size} scores, shape "
            f"{_shape(info)}, and there are {len(labels)} labels. Give one label for each, in the order of the classes."
        )
    for place, label in enumerate(labels):
        if not label.strip() or "\n" in label or "\r" in label:
            raise ValueError(
                f"Label {place} of output {info.name!r} is {label!r}; each must be one line of text that is not empty, "
                "for they are kept as lines."
            )
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        places = [place for place, label in enumerate(labels) if label == repeated[0]]
        raise ValueError(
            f"Label {repeated[0]!r} of output {info.name!r} is there {len(places)} times, for classes {places}: an app "
            f"could not tell them apart. Make them different, e.g. {repeated[0] + ' (2)'!r}."
        )


def _check_normalization(info: TensorInfo, normalization: Normalization) -> None:
    if not info.dtype.startswith("float"):
        raise ValueError(f"`normalization` is for float inputs; {_without_normalization(info)}")
    channels = info.shape[-1] if len(info.shape) > 1 else 1
    count = len(normalization.mean)
    if count not in (1, channels):
        raise ValueError(
            f"Input {info.name!r} has {'any number of' if channels is None else channels} channels, shape "
            f"{_shape(info)}, and the normalization {count}. Give a mean and a std for each channel, or one for all."
        )


def _without_normalization(info: TensorInfo) -> str:
    """Why an input of integers has none."""
    if info.scale is None or info.dtype not in ("uint8", "int8"):
        return f"input {info.name!r} is {info.dtype}. Leave it out."
    shift = 128 if info.dtype == "int8" else 0
    enters = "pixel - 128" if shift else "pixel"
    return (
        f"input {info.name!r} is {info.dtype}: {enters} goes in as it is, and the file's own scale and zero point say "
        f"what it stands for, (pixel - {shift + (info.zero_point or 0)}) / {1 / info.scale:.6g} here. Leave "
        "`normalization` out, as MediaPipe does. If the model was trained on other numbers, convert it with "
        "representative data from pixels of 0 to 255."
    )


def _color(info: TensorInfo) -> ColorSpace | None:
    """The color space of an image; None for what is none."""
    if len(info.shape) != 4 or info.shape[0] not in (1, None):
        return None
    return _COLORS.get(info.shape[3] or 0)


def _names(infos: Sequence[TensorInfo]) -> list[str]:
    return [info.name for info in infos]


def _listed(infos: Sequence[TensorInfo]) -> str:
    return ", ".join(f"{info.name!r} of shape {_shape(info)}" for info in infos)


def _shape(info: TensorInfo) -> str:
    return f"({', '.join('any' if size is None else str(size) for size in info.shape)})"
