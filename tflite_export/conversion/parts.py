"""The parts of a file with several signatures, and the job that makes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tflite_export.conversion.contract import Contract
from tflite_export.conversion.job import Batches, Feed, Job
from tflite_export.sources import samples
from tflite_export.sources.protocol import Source
from tflite_export.sources.quality import Statistics
from tflite_export.tflite import flatbuffer

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Part:
    """One signature.

    Attributes:
        name: As apps call it.
        source: What it computes.
        batch: Samples of one call; None for any number.
        data: Of the user, or None.
        seen: What was seen of the data that ranges were learned from.
    """

    name: str
    source: Source
    batch: int | None
    data: samples.Stream | None
    seen: Statistics = field(default_factory=Statistics)

    @property
    def sample(self) -> Arrays:
        """What file and source are compared on: one call."""
        size = self.source.fixed_batch or self.batch or 1
        data = samples.random_sample(self.source.inputs, size) if self.data is None else self.data.head
        return next(samples.groups(data, size))

    def feed(self) -> Feed:
        """The data for the converter, in batches as the file takes them."""
        assert self.data is not None
        return Feed(self.data, self.source.fixed_batch or self.batch or 1, self.seen)


@dataclass(frozen=True)
class PartsJob(Job):
    """The file of several signatures. Its source stands for all of them where layers are named.

    Attributes:
        parts: In order.
    """

    parts: tuple[Part, ...] = ()

    def converter(self, folder: str) -> Any:
        """See `Job`."""
        import tensorflow as tf

        return tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[part.name for part in self.parts])

    def ordered(self, content: bytes) -> bytes:
        """See `Job`."""
        wanted = {part.name: (list(part.source.inputs), list(part.source.outputs)) for part in self.parts}
        return flatbuffer.order_signatures(content, wanted)

    def feed(self) -> Batches:
        """See `Job`."""
        return _Feeds({part.name: part.feed() for part in self.parts})


def job_of(parts: tuple[Part, ...], contract: Contract, verbose: bool) -> PartsJob:
    """The job of these parts; the inputs of its source are theirs as `signature/input`."""
    whole = replace(
        parts[0].source,
        label=f"The file of {', '.join(part.name for part in parts)}",
        inputs={f"{part.name}/{name}": spec for part in parts for name, spec in part.source.inputs.items()},
        layers=frozenset().union(*(part.source.layers for part in parts)),
        floats=frozenset().union(*(part.source.floats for part in parts)),
        scopes_numbered=any(part.source.scopes_numbered for part in parts),
    )
    return PartsJob(whole, contract, None, parts[0].batch, verbose, parts=parts)


@dataclass(frozen=True)
class _Feeds:
    """`Batches` of all signatures, each with the name of its own."""

    feeds: Mapping[str, Feed]

    def __call__(self) -> Iterator[tuple[str, Arrays]]:
        for name, feed in self.feeds.items():
            for batch in feed():
                yield name, batch

    def first(self) -> Iterator[tuple[str, Arrays]]:
        for name, feed in self.feeds.items():
            for batch in feed.first():
                yield name, batch

    @property
    def error(self) -> Exception | None:
        return next((feed.error for feed in self.feeds.values() if feed.error is not None), None)
