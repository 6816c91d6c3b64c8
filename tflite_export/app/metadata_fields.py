"""What a file can say about itself to the app that runs it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FIRST_VERSION = "1.0.0"


@dataclass(frozen=True, init=False)
class Normalization:
    """What the app does with pixels of 0 to 255, or other raw numbers, before they go in.

        input = (x - mean) / std

    Args:
        mean: Float, or one for each channel; the channels are the last axis of the input. Defaults to `0`.
        std: The same, not 0. Defaults to `255`: pixels become numbers in [0, 1]. One number goes for all channels if
            the other argument has several.

    Attributes: both as tuples of equal length. The file stores them as float32.
    Raises: ValueError for a std of 0, numbers that are not finite, or two different numbers of channels.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 255.0) -> None:
        means, stds = _floats("mean", mean), _floats("std", std)
        if any(np.float32(value) == 0 for value in stds):
            raise ValueError(f"`std` must not be 0, the app divides by it; got {stds}. To change nothing, pass 1.")
        count = max(len(means), len(stds))
        if not {len(means), len(stds)} <= {1, count}:
            raise ValueError(
                f"`mean` and `std` must have a number for each channel, or one for all; got {len(means)} and "
                f"{len(stds)}."
            )
        object.__setattr__(self, "mean", means * (count // len(means)))
        object.__setattr__(self, "std", stds * (count // len(stds)))


@dataclass(frozen=True)
class TensorText:
    """What an input or output is called, and what it is, for readers of the metadata.

    Attributes:
        name: Empty: its name in the file's signature.
        description: In words.
    """

    name: str = ""
    description: str = ""

    def __post_init__(self) -> None:
        _check_text(self, ("name", "description"))


@dataclass(frozen=True)
class Metadata:
    """What a file says about itself: who made it, how to feed it and what its answers mean.

    Args:
        name, description, version, author, license: Strings. Empty: not said.
        labels: Names of the classes, in the order of the last axis of the output; of a file with several outputs a
            dict output name -> names. Defaults to `None`.
        score_range: (lowest, highest) score that the outputs with labels can give, e.g. (0, 1) after a softmax; without
            labels, that the only output can give.
        normalization: What the app does with what goes into a float input; of a file with several inputs a dict input
            name -> `Normalization`.
        image: Whether inputs of shape (1, height, width, 3) are images in RGB, of (1, height, width, 1) in gray.
        inputs, outputs: A `TensorText` for each, in the order of the file. Empty: the names of its signature.

    Attributes: as the arguments, lists as tuples, and
        min_parser_version: The version of the schema that a reader must know. All that is here is in the first one.

    Raises: TypeError for other types than these. What does not fit a file, `set_metadata` says.

    Example:
    ```
    Metadata("Colors", labels=["red", "green"], normalization=Normalization(mean=127.5, std=127.5), image=True)
    ```
    """

    name: str = ""
    description: str = ""
    version: str = ""
    author: str = ""
    license: str = ""
    labels: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    score_range: Sequence[float] | None = None
    normalization: Normalization | Mapping[str, Normalization] | None = None
    image: bool = False
    inputs: Sequence[TensorText] = ()
    outputs: Sequence[TensorText] = ()
    min_parser_version: str = field(default=FIRST_VERSION, init=False, compare=False)

    def __post_init__(self) -> None:
        _check_text(self, ("name", "description", "version", "author", "license"))
        if not isinstance(self.image, bool):
            raise TypeError(f"`image` must be True or False; got {self.image!r}.")
        object.__setattr__(self, "labels", _each(self.labels, _labels))
        object.__setattr__(self, "normalization", _each(self.normalization, _normalization))
        for what in ("inputs", "outputs"):
            object.__setattr__(self, what, _texts(what, getattr(self, what)))
        if self.score_range is not None:
            object.__setattr__(self, "score_range", _range(self.score_range))


def _each(value: Any, read: Any) -> Any:
    """A value, or the values of a dict, as they are kept."""
    if isinstance(value, Mapping):
        return {name: read(entry) for name, entry in value.items()}
    return None if value is None else read(value)


def _labels(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"`labels` must be a list of strings, or a dict output name -> list of strings; got {value!r}.")
    return tuple(value)


def _normalization(value: Any) -> Normalization:
    if not isinstance(value, Normalization):
        raise TypeError(
            f"`normalization` must be a Normalization, or a dict input name -> Normalization; got {value!r}. For "
            "(x - 127.5) / 127.5 pass Normalization(mean=127.5, std=127.5)."
        )
    return value


def _texts(what: str, value: Any) -> tuple[TensorText, ...]:
    if not isinstance(value, Sequence) or not all(isinstance(text, TensorText) for text in value):
        raise TypeError(f"`{what}` must be a list of TensorText, one for each of the file's; got {value!r}.")
    return tuple(value)


def _range(value: Any) -> tuple[float, float]:
    numbers = _floats("score_range", value)
    if len(numbers) != 2 or numbers[0] >= numbers[1]:
        raise ValueError(f"`score_range` must be (lowest, highest), e.g. (0, 1); got {value!r}.")
    return numbers[0], numbers[1]


def _floats(name: str, value: Any) -> tuple[float, ...]:
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of unlike lengths
        numbers = np.array(None)
    right = numbers.dtype.kind in "iuf" and numbers.ndim <= 1 and numbers.size > 0
    if not right or not (np.abs(numbers) <= np.finfo(np.float32).max).all():
        raise ValueError(f"`{name}` must be finite numbers in the range of float32; got {value!r}.")
    return tuple(float(number) for number in np.atleast_1d(numbers))


def _check_text(owner: Any, names: Sequence[str]) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, str):
            raise TypeError(f"`{name}` must be a string; got {value!r}.")
