"""A file ready to run on random numbers."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.runner import KERNELS, Runner
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec

Specs = Mapping[str, tuple[list[int | None], str]]


def ready(file: TFLiteModel, threads: int, kernels: str = "xnnpack") -> Runner:
    """Loads a file and fills its inputs; one with any batch size gets one sample, other open sizes are 32.

    Raises: ValueError.
    """
    check(threads, kernels)
    runner = Runner(file.content, threads, kernels=kernels)
    runner.set_inputs(inputs_of(specs_of(file), runner.batch))
    return runner


def check(threads: int, kernels: str) -> None:
    """Raises: ValueError for what is no number of threads, or no kernels' name."""
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"`threads` must be an integer >= 1; got {threads!r}.")
    if kernels not in KERNELS:
        raise ValueError(f"`kernels` must be one of {', '.join(map(repr, KERNELS))}; got {kernels!r}.")


def specs_of(file: TFLiteModel) -> Specs:
    """What `inputs_of` needs, in a form that JSON can hold."""
    return {name: ([None, *spec.shape[1:]], spec.dtype) for name, spec in file.float_specs.items()}


def inputs_of(specs: Specs, batch: int | None) -> dict[str, np.ndarray]:
    """Input name -> seeded random array (batch or 1, ...), in float space."""
    known = {name: InputSpec(tuple(shape), dtype) for name, (shape, dtype) in specs.items()}
    return samples.random_sample(known, batch or 1)


def path_runner(path: str, threads: int, kernels: str) -> Runner:
    """The file mapped into memory, as an app loads it."""
    return Runner(Path(path), threads, kernels=kernels)
