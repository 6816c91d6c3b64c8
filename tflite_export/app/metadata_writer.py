"""Metadata as a flatbuffer."""

from collections.abc import Mapping, Sequence
from typing import Any

from tflite_export.app.metadata_fields import Normalization
from tflite_export.app.metadata_schema import (
    AXIS_LABELS,
    COLOR_SPACE_FIELD,
    IDENTIFIER,
    NORMALIZATION_UNIT,
    ContentKind,
    FileField,
    ModelField,
    ModelNotes,
    NormalizationField,
    StatsField,
    SubgraphField,
    TensorField,
    TensorNotes,
    UnionField,
)


def packed(notes: ModelNotes) -> bytes:
    """The bytes of the metadata buffer."""
    return _Writer().model(notes)


class _Writer:
    """Writes what a table refers to before the table, as a flatbuffer has it; a method gives the place of its table."""

    def __init__(self) -> None:
        import flatbuffers

        self._builder: Any = flatbuffers.Builder(1024)

    def model(self, notes: ModelNotes) -> bytes:
        graph = {
            SubgraphField.INPUTS: self._tables([self._tensor(tensor) for tensor in notes.inputs]),
            SubgraphField.OUTPUTS: self._tables([self._tensor(tensor) for tensor in notes.outputs]),
        }
        fields = {
            ModelField.NAME: self._text(notes.name),
            ModelField.DESCRIPTION: self._text(notes.description),
            ModelField.VERSION: self._text(notes.version),
            ModelField.SUBGRAPHS: self._tables([self._table(graph)]),
            ModelField.AUTHOR: self._text(notes.author),
            ModelField.LICENSE: self._text(notes.license),
            ModelField.MIN_PARSER_VERSION: self._text(notes.min_parser_version),
        }
        self._builder.Finish(self._table(fields), IDENTIFIER)
        return bytes(self._builder.Output())

    def _tensor(self, notes: TensorNotes) -> int:
        unit = None if notes.normalization is None else self._tables([self._normalization(notes.normalization)])
        file = self._tables([self._labels_file(notes.labels_file)]) if notes.labels_file else None
        fields = {
            TensorField.NAME: self._text(notes.name),
            TensorField.DESCRIPTION: self._text(notes.description),
            TensorField.CONTENT: self._content(notes),
            TensorField.PROCESS_UNITS: unit,
            TensorField.STATS: self._stats(notes.score_range),
            TensorField.FILES: file,
        }
        return self._table(fields)

    def _content(self, notes: TensorNotes) -> int | None:
        if notes.content == ContentKind.NONE:
            return None
        colors = {COLOR_SPACE_FIELD: notes.color_space} if notes.content == ContentKind.IMAGE else {}
        return self._table({UnionField.TABLE: self._table({}, colors)}, {UnionField.KIND: notes.content})

    def _normalization(self, normalization: Normalization) -> int:
        fields = {
            NormalizationField.MEAN: self._floats(normalization.mean),
            NormalizationField.STD: self._floats(normalization.std),
        }
        return self._table({UnionField.TABLE: self._table(fields)}, {UnionField.KIND: NORMALIZATION_UNIT})

    def _stats(self, values: Sequence[float] | None) -> int | None:
        if values is None:
            return None
        low, high = values
        return self._table({StatsField.MAX: self._floats([high]), StatsField.MIN: self._floats([low])})

    def _labels_file(self, name: str) -> int:
        fields = {FileField.NAME: self._text(name), FileField.DESCRIPTION: self._text("Names of the classes, by index")}
        return self._table(fields, {FileField.TYPE: AXIS_LABELS})

    def _text(self, text: str) -> int | None:
        return self._builder.CreateString(text) if text else None

    def _floats(self, values: Sequence[float]) -> int:
        self._builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self._builder.PrependFloat32(value)
        return self._builder.EndVector()

    def _tables(self, places: Sequence[int]) -> int:
        self._builder.StartVector(4, len(places), 4)
        for place in reversed(places):
            self._builder.PrependUOffsetTRelative(place)
        return self._builder.EndVector()

    def _table(self, offsets: Mapping[Any, int | None], bytes_: Mapping[Any, int] | None = None) -> int:
        """A table of offsets, absent where None, and of fields of one byte, by number."""
        single = {} if bytes_ is None else bytes_
        self._builder.StartObject(max([*offsets, *single], default=-1) + 1)
        for number, place in offsets.items():
            if place is not None:
                self._builder.PrependUOffsetTRelativeSlot(number, place, 0)
        for number, value in single.items():
            self._builder.PrependUint8Slot(number, value, 0)
        return self._builder.EndObject()
