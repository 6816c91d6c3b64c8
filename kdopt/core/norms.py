"""The statistics of BatchNormalization, estimated anew: pruning changes what the layers see."""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.validation import check_integer


@dataclass(frozen=True)
class NormsReport:
    """What `reestimate_batch_norm` did.

    Attributes:
        done: Paths of the layers with new statistics, names from the model down joined by `/`.
        skipped: (path, reason) of the BatchNormalization layers that kept theirs.
        batches: Batches used.
        samples: Samples used.
    """

    done: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    batches: int
    samples: int


class Moments:
    """Mean and variance of everything added, exact whatever the batch sizes.

        n = n_a + n_b,   d = mean_b - mean_a
        mean = mean_a + d * n_b / n
        variance = (n_a * var_a + n_b * var_b + d ** 2 * n_a * n_b / n) / n

    Reference: Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        1979, equation 2.1.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean: Any = 0.0
        self.variance: Any = 0.0

    def add(self, count: float, mean: np.ndarray, variance: np.ndarray) -> None:
        """Adds `count` values per channel of the given mean and (biased) variance, arrays of shape (channels,)."""
        total = self.count + count
        if total == 0:
            return
        apart = np.asarray(mean, "float64") - self.mean
        spread = self.count * self.variance + count * np.asarray(variance, "float64")
        self.variance = (spread + apart**2 * self.count * count / total) / total
        self.mean = self.mean + apart * count / total
        self.count = total


def reestimate_batch_norm(
    model: keras.Model, data: Any, batches: int | None = None, batch_size: int = 128
) -> NormsReport:
    """Sets moving mean and variance of all BatchNormalization layers to those of `data`, in place.

    After pruning, a few hundred samples recover much of the lost accuracy, without labels or training.

        moving_mean = mean over all batches of the layer's input,   moving_variance = its biased variance

    all samples weighted alike (an exact average, not a moving one). Every batch is normalized with its own
    statistics, as in training, so that each layer sees what the layers before it will make with their new ones; one
    forward pass is enough, and batches should not be small. Everything else infers: no dropout, no augmentation.
    Weights, momentum and trainable flags are not touched; frozen layers get new statistics too. Runs eagerly, about
    the time of inference.

    Args:
        model: Built `keras.Model`: Functional, Sequential, subclassed, nested; of a `Distiller`, its student.
        data: Array of inputs, or `(x, y)`, or dict of them by input name, split into batches; or a `tf.data.Dataset`,
            `PyDataset` or another iterable of batches, where a tuple is read as `(inputs, targets, ...)`. Preprocessed
            as in training.
        batches: Integer >= 1, the most batches to use. Defaults to `None`: all there are.
        batch_size: Integer >= 1, samples of a batch where `data` is arrays. Defaults to `128`.

    Returns: `NormsReport`.
    Raises: ValueError for a model that is not built, data without a batch or without an end, statistics that are not
        finite; RuntimeError for a layer that runs inside a graph. Whatever is raised, also by the model, the
        statistics are as they were.

    Example:
    ```
    report = reestimate_batch_norm(model, x_train[:1024])
    len(report.done)      # 20
    ```

    Reference: Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021, section 3 (PreciseBN).
    """
    if not model.built:
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
    if batches is not None:
        check_integer("batches", batches)
    check_integer("batch_size", batch_size)
    if isinstance(data, (tuple, list)) and len(data) in (2, 3) and all(isinstance(part, np.ndarray) for part in data):
        data = data[0]  # (x, y)
    norms = [_Norm(path, layer) for path, layer in _batch_norms(model)]
    try:
        for norm in norms:
            norm.measure()
        used, samples = _run(model, data, batches, batch_size) if norms else (0, 0)
        for norm in norms:
            norm.assign()
    except BaseException:
        for norm in norms:
            norm.restore()
        raise
    finally:
        for norm in norms:
            norm.release()
    return NormsReport(
        done=tuple(norm.path for norm in norms if norm.moments.count),
        skipped=tuple((n.path, "the model did not call it on this data") for n in norms if not n.moments.count),
        batches=used,
        samples=samples,
    )


def _batch_norms(model: keras.Model) -> Iterator[tuple[str, keras.layers.BatchNormalization]]:
    """(path, layer) of every BatchNormalization in a built model; a shared one once."""
    seen: set[int] = set()

    def walk(layer: keras.layers.Layer, path: str) -> Iterator[tuple[str, keras.layers.BatchNormalization]]:
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if isinstance(layer, keras.layers.BatchNormalization) and layer.built:
            yield path, layer
        for child in layer._layers:
            yield from walk(child, f"{path}/{child.name}" if path else child.name)

    return walk(model, "")


class _Norm:
    """One layer while it is measured: its `call` adds each batch to `moments`, and normalizes with the batch's own."""

    def __init__(self, path: str, layer: Any) -> None:
        self.path, self.layer, self.moments = path, layer, Moments()
        # Batch renormalization keeps more than two.
        names = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
        self._stored = {n: ops.convert_to_numpy(getattr(layer, n)) for n in names if hasattr(layer, n)}
        self._users_call = layer.__dict__.get("call")

    def measure(self) -> None:
        original = self.layer.call

        def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            del training
            count, mean, variance = map(self._numpy, batch_moments(inputs, self.layer.axis, mask))
            self.moments.add(float(count), mean, variance)
            if count > 0:
                self.layer.moving_mean.assign(mean)
                self.layer.moving_variance.assign(variance)
            return original(inputs, training=False, mask=mask)

        object.__setattr__(self.layer, "call", call)  # past Keras' tracking

    def release(self) -> None:
        self.layer.__dict__.pop("call", None)
        if self._users_call is not None:
            object.__setattr__(self.layer, "call", self._users_call)

    def assign(self) -> None:
        mean, variance = self.moments.mean, self.moments.variance
        if not self.moments.count:
            return
        if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(variance))):
            raise ValueError(
                f"The input of BatchNormalization {self.path!r} is NaN or infinite on this data: the weights or the "
                "data are. All statistics are as they were."
            )
        stddev = np.sqrt(variance + self.layer.epsilon)
        for name in self._stored:
            value = variance if name == "moving_variance" else stddev if name.endswith("stddev") else mean
            getattr(self.layer, name).assign(value)

    def restore(self) -> None:
        for name, value in self._stored.items():
            getattr(self.layer, name).assign(value)

    def _numpy(self, value: Any) -> np.ndarray:
        try:
            return ops.convert_to_numpy(value)
        except Exception as error:
            raise RuntimeError(
                f"BatchNormalization {self.path!r} runs inside a compiled function (@tf.function, or TimeDistributed "
                "over an open time axis), where its statistics cannot be read. Call the model's parts without it, or "
                "give the time axis a length. All statistics are as they were."
            ) from error


def batch_moments(inputs: Any, axis: int, mask: Any = None) -> tuple[Any, Any, Any]:
    """Values per channel, their mean and biased variance, in float32.

    Args:
        inputs: Tensor with the channels on `axis`.
        mask: Bool tensor of the shape of `inputs` without its last axis, or `None`: what does not count is False.

    Returns: scalar, and two tensors of shape (channels,).
    """
    inputs = ops.cast(inputs, "float32")
    axes = [a for a in range(len(inputs.shape)) if a != axis % len(inputs.shape)]
    weights = ops.ones_like(inputs)
    if mask is not None:
        weights = weights * ops.cast(ops.expand_dims(mask, -1), "float32")
    counts = ops.sum(weights, axis=axes, keepdims=True)
    safe = ops.maximum(counts, 1)
    inputs = ops.where(weights > 0, inputs, 0)
    mean = ops.sum(inputs, axis=axes, keepdims=True) / safe
    variance = ops.sum(weights * ops.square(inputs - mean), axis=axes) / ops.reshape(safe, (-1,))
    return ops.max(counts), ops.reshape(mean, (-1,)), variance


def _run(model: keras.Model, data: Any, batches: int | None, batch_size: int) -> tuple[int, int]:
    """Calls the model on the batches; how many there were, and of how many samples."""
    used = samples = 0
    for batch in _batches(data, batches, batch_size):
        inputs = batch[0] if isinstance(batch, tuple) else batch
        model(inputs, training=False)
        used += 1
        samples += keras.tree.flatten(inputs)[0].shape[0]
        if used == batches:
            break
    if not samples:
        raise ValueError("`data` is empty; expected at least one batch, e.g. `x_train[:1024]`.")
    return used, samples


def _batches(data: Any, batches: int | None, batch_size: int) -> Iterator[Any]:
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches if batches is None or data.num_batches is not None else batches
        return (data[index] for index in range(_ending(length)))
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        arrays = keras.tree.map_structure(np.asarray, dict(data) if isinstance(data, Mapping) else data)
        lengths = {len(array) for array in keras.tree.flatten(arrays)}
        if len(lengths) != 1:
            raise ValueError(f"`data` must have the same number of samples for each input; got {sorted(lengths)}.")
        return (_slice(arrays, start, batch_size) for start in range(0, lengths.pop(), batch_size))
    if not isinstance(data, Iterable) or isinstance(data, (str, bytes, os.PathLike)):
        raise TypeError(f"`data` must be an array, a dict of arrays or an iterable of batches; got {data!r}.")
    if batches is None and hasattr(data, "cardinality") and int(data.cardinality()) == -1:
        _ending(None)
    return iter(data)


def _slice(arrays: Any, start: int, size: int) -> Any:
    return keras.tree.map_structure(lambda array: array[start : start + size], arrays)


def _ending(length: int | None) -> int:
    if length is None:
        raise ValueError("`data` has no end: say with `batches` how many to use, e.g. batches=32.")
    return length
