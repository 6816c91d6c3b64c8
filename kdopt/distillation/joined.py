"""Data that carry what teachers said of them beside the inputs."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

INPUTS, SAID = "kdopt/inputs", "kdopt/said"


def join(inputs: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a batch and what was said of it.

    Args:
        inputs: As the student reads them, or joined already.
        said: Key of a cache -> structure of tensors.
    """
    own, before = split(inputs)
    return {INPUTS: own, SAID: {**before, **said}}


def split(x: Any) -> tuple[Any, dict[str, Any]]:
    """(inputs, what was said of them, by key of the cache: empty for data that carry nothing)."""
    if isinstance(x, Mapping) and set(x) == {INPUTS, SAID}:
        return x[INPUTS], dict(x[SAID])
    return x, {}


def samples_in(x: Any) -> Any:
    """How many samples a batch of inputs holds; optional inputs may be None."""
    return ops.shape(next(leaf for leaf in keras.tree.flatten(x) if leaf is not None))[0]
