"""The part of the metadata schema that is written and read here: numbers of its fields, and its records.

The schema is `metadata_schema.fbs` of TensorFlow Lite Support, whose first version (1.0.0) has all of this.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from tflite_export.app.metadata_fields import Normalization

BUFFER_NAME = "TFLITE_METADATA"
IDENTIFIER = b"M001"


class ModelField(IntEnum):
    """Of the root table."""

    NAME, DESCRIPTION, VERSION, SUBGRAPHS, AUTHOR, LICENSE, FILES, MIN_PARSER_VERSION = range(8)


class SubgraphField(IntEnum):
    """Of a graph."""

    NAME, DESCRIPTION, INPUTS, OUTPUTS, FILES = range(5)


class TensorField(IntEnum):
    """Of an input or output."""

    NAME, DESCRIPTION, DIMENSION_NAMES, CONTENT, PROCESS_UNITS, STATS, FILES = range(7)


class UnionField(IntEnum):
    """Of a content and of a process unit: which kind of table it has, and that table."""

    KIND, TABLE = range(2)


class NormalizationField(IntEnum):
    """Of a normalization."""

    MEAN, STD = range(2)


class StatsField(IntEnum):
    """Of the range of a tensor."""

    MAX, MIN = range(2)


class FileField(IntEnum):
    """Of a file in the archive."""

    NAME, DESCRIPTION, TYPE, LOCALE = range(4)


class ContentKind(IntEnum):
    """What a tensor is."""

    NONE, FEATURE, IMAGE = range(3)


class ColorSpace(IntEnum):
    """Of an image; the one field of its table."""

    UNKNOWN, RGB, GRAYSCALE = range(3)


NORMALIZATION_UNIT = 1  # kind of a process unit
AXIS_LABELS = 2  # type of a file with a label for each index of the last axis
COLOR_SPACE_FIELD = 0


@dataclass(frozen=True)
class TensorNotes:
    """What the metadata of a file says about one input or output.

    Attributes:
        name, description: See `TensorText`.
        content: Feature, image or nothing.
        color_space: Of an image.
        normalization: See `Metadata`.
        score_range: (lowest, highest).
        labels_file: Name of the file with labels in the archive.
    """

    name: str = ""
    description: str = ""
    content: int = ContentKind.NONE
    color_space: int = ColorSpace.UNKNOWN
    normalization: Normalization | None = None
    score_range: Sequence[float] | None = None
    labels_file: str = ""


@dataclass(frozen=True)
class ModelNotes:
    """What the metadata of a file says about all of it; strings as in `Metadata`."""

    name: str
    description: str
    version: str
    author: str
    license: str
    min_parser_version: str
    inputs: tuple[TensorNotes, ...]
    outputs: tuple[TensorNotes, ...]
