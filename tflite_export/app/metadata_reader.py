"""Metadata from a flatbuffer, whoever wrote it: every offset and length is checked before it is followed."""

import math
import struct

import numpy as np

from tflite_export.app.metadata_fields import FIRST_VERSION, Normalization
from tflite_export.app.metadata_schema import (
    AXIS_LABELS,
    COLOR_SPACE_FIELD,
    IDENTIFIER,
    NORMALIZATION_UNIT,
    ColorSpace,
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

_READS_A_BYTE = 64  # a sound file is read about once; a hostile one may refer to the same table a million times


def unpacked(content: bytes) -> ModelNotes:
    """What is in a metadata buffer, as far as it is used here.

    Raises: ValueError that says what is wrong.
    """
    if content[4:8] != IDENTIFIER:
        raise ValueError(f"The metadata must have the mark 'M001' at byte 4; got {content[4:8]!r}.")
    try:
        return _model(_Table(_Bytes(content), 0).follow(0))
    except ValueError as error:
        raise ValueError(f"The metadata is damaged: {error}.") from error


class _Bytes:
    """Bytes that are read within their bounds, and not much more often than there are some."""

    def __init__(self, content: bytes) -> None:
        self._content, self._left = content, _READS_A_BYTE * len(content)

    def take(self, place: int, size: int) -> bytes:
        self._left -= size
        if not 0 <= place <= place + size <= len(self._content):
            raise ValueError(f"it points to byte {place + size} of {len(self._content)}")
        if self._left < 0:
            raise ValueError("it refers to the same place over and over")
        return self._content[place : place + size]

    def number(self, place: int, form: str) -> int:
        return struct.unpack(form, self.take(place, struct.calcsize(form)))[0]


class _Table:
    """A table of a flatbuffer: its fields by number, absent ones as empty."""

    def __init__(self, content: _Bytes, place: int) -> None:
        self._content, self._place = content, place

    def follow(self, place: int) -> "_Table":
        """The table that the offset at a place of the bytes leads to."""
        return _Table(self._content, place + self._content.number(place, "<I"))

    def byte(self, number: int) -> int:
        place = self._field(number)
        return 0 if place is None else self._content.number(place, "<B")

    def table(self, number: int) -> "_Table | None":
        place = self._field(number)
        return None if place is None else self.follow(place)

    def text(self, number: int) -> str:
        count, start = self._vector(number)
        return self._content.take(start, count).decode()

    def floats(self, number: int) -> tuple[float, ...]:
        """Numbers of float32, as the shortest decimals that stand for them."""
        count, start = self._vector(number)
        values = np.frombuffer(self._content.take(start, 4 * count), "<f4")
        return tuple(float(str(value)) for value in values)

    def tables(self, number: int) -> list["_Table"]:
        count, start = self._vector(number)
        self._content.take(start, 4 * count)
        return [self.follow(start + 4 * place) for place in range(count)]

    def _vector(self, number: int) -> tuple[int, int]:
        """How many entries, and where they begin."""
        place = self._field(number)
        if place is None:
            return 0, 0
        start = place + self._content.number(place, "<I")
        return self._content.number(start, "<I"), start + 4

    def _field(self, number: int) -> int | None:
        fields = self._place - self._content.number(self._place, "<i")
        if 4 + 2 * number + 2 > self._content.number(fields, "<H"):
            return None
        offset = self._content.number(fields + 4 + 2 * number, "<H")
        return self._place + offset if offset else None


def _model(table: _Table) -> ModelNotes:
    graphs = table.tables(ModelField.SUBGRAPHS)
    return ModelNotes(
        name=table.text(ModelField.NAME),
        description=table.text(ModelField.DESCRIPTION),
        version=table.text(ModelField.VERSION),
        author=table.text(ModelField.AUTHOR),
        license=table.text(ModelField.LICENSE),
        min_parser_version=table.text(ModelField.MIN_PARSER_VERSION) or FIRST_VERSION,
        inputs=tuple(map(_tensor, graphs[0].tables(SubgraphField.INPUTS))) if graphs else (),
        outputs=tuple(map(_tensor, graphs[0].tables(SubgraphField.OUTPUTS))) if graphs else (),
    )


def _tensor(table: _Table) -> TensorNotes:
    content = table.table(TensorField.CONTENT)
    kind = ContentKind.NONE if content is None else content.byte(UnionField.KIND)
    image = content.table(UnionField.TABLE) if content is not None and kind == ContentKind.IMAGE else None
    labels = [file for file in table.tables(TensorField.FILES) if file.byte(FileField.TYPE) == AXIS_LABELS]
    return TensorNotes(
        name=table.text(TensorField.NAME),
        description=table.text(TensorField.DESCRIPTION),
        content=kind,
        color_space=ColorSpace.UNKNOWN if image is None else image.byte(COLOR_SPACE_FIELD),
        normalization=_normalization(table),
        score_range=_range(table.table(TensorField.STATS)),
        labels_file=labels[0].text(FileField.NAME) if labels else "",
    )


def _normalization(table: _Table) -> Normalization | None:
    for unit in table.tables(TensorField.PROCESS_UNITS):
        options = unit.table(UnionField.TABLE)
        if unit.byte(UnionField.KIND) == NORMALIZATION_UNIT and options is not None:
            return Normalization(options.floats(NormalizationField.MEAN), options.floats(NormalizationField.STD))
    return None


def _range(stats: _Table | None) -> tuple[float, float] | None:
    """The one range of a tensor; None where there is none, or one for each channel, or an empty one."""
    if stats is None:
        return None
    high, low = stats.floats(StatsField.MAX), stats.floats(StatsField.MIN)
    return (low[0], high[0]) if len(low) == len(high) == 1 and -math.inf < low[0] < high[0] < math.inf else None
