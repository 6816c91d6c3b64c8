"""Samples on their way to a teacher or a student: which they are, and the views that are made of them."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdopt.distillation.joined import split

Augment = Callable[[Any, Any], Any]
as_written = tf.autograph.experimental.do_not_convert


def fingerprints(x: Any) -> tf.Tensor:
    """64 bits of each sample's bytes (FarmHash), int64 of shape (batch,).

    Args:
        x: Structure of tensors of shape (batch, ...), of any dtype.

    Raises: TypeError for sparse and ragged tensors.
    """
    parts = [tensor for tensor in tf.nest.flatten(x) if tensor is not None]
    if not parts or not all(isinstance(part, tf.Tensor) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts) or "nothing"
        raise TypeError(f"A teacher cache needs inputs that are dense tensors; got {kinds}. Use `.to_dense()` before.")
    hashes = [_hash(part) for part in parts]
    found = hashes[0] if len(hashes) == 1 else _hash(tf.concat(hashes, axis=1))
    return tf.bitcast(found, tf.int64)


def _hash(tensor: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.Fingerprint(data=tensor, method=tf.constant("farmhash64"))


def augmented(augment: Augment, x: Any, samples: tf.Tensor, views: tf.Tensor) -> Any:
    """A view of each sample: `augment(x_i, [sample, view])`, stacked.

    Args:
        augment: Stateless function of one sample's inputs and an int32 seed of shape (2,).
        x: Structure of tensors of shape (batch, ...).
        samples: Number of each sample, int64 of shape (batch,).
        views: Number of the view of each, int32 of shape (batch,).
    """
    function = tf.function(augment)
    one = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape[1:], tensor.dtype), x)
    made = function.get_concrete_function(one, tf.TensorSpec([2], tf.int32)).structured_outputs
    specs = tf.nest.map_structure(lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), made)
    seeds = tf.stack([tf.cast(samples, tf.int32), views], axis=1)
    return tf.map_fn(lambda pair: function(pair[0], pair[1]), (x, seeds), fn_output_signature=specs)


def dtypes_of(x: Any) -> list[str]:
    """Of each input: what is most often unlike where data are other than before."""
    return [tf.as_dtype(tensor.dtype).name for tensor in keras.tree.flatten(x) if tensor is not None]


def numbered(data: tf.data.Dataset) -> tf.data.Dataset:
    """(number of the first sample, batch) for each batch."""

    @as_written
    def count(start: tf.Tensor, batch: Any) -> tuple[tf.Tensor, tuple[tf.Tensor, Any]]:
        return start + tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0], (start, batch)

    return data.scan(tf.constant(0, tf.int64), count)


def unpacked(batch: Any) -> tuple[Any, tuple[Any, ...]]:
    """(inputs, (labels, sample weights) as far as there are any) of a batch as `fit` takes it."""
    if isinstance(batch, list):
        batch = tuple(batch)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(batch)
    rest = [y] if sample_weight is None else [y, sample_weight]
    return x, tuple(rest) if y is not None or sample_weight is not None else ()


def as_arrays(data: Any) -> tuple[Any, tuple[Any, ...]]:
    """(inputs, (labels, sample weights) as far as there are any) of arrays, as `fit` sees them.

    Raises: TypeError for what is no array; ValueError for arrays of other lengths.
    """
    x, rest = unpacked(data) if isinstance(data, tuple) else (data, ())
    # tf.data would make one tensor of a list.
    x, rest = keras.tree.lists_to_tuples(keras.tree.map_structure(_as_array, (x, rest)))
    sizes = {len(array) for array in keras.tree.flatten((x, rest)) if array is not None}
    if len(sizes) != 1:
        raise ValueError(f"The arrays of `data` must hold as many samples each; got {sorted(sizes) or 'none'}.")
    return x, rest


def _as_array(value: Any) -> Any:
    if value is None:
        return None
    if not len(getattr(value, "shape", ())):
        raise TypeError(
            "`data` must be arrays, a tuple (x, y) of them, or a tf.data.Dataset of batches, as `fit` takes it; got "
            f"{type(value).__module__}.{type(value).__name__}."
        )
    array = np.asarray(value)
    return array.astype(keras.config.floatx()) if array.dtype == "float64" else array


def batches_of(x: Any, batch_size: int) -> tf.data.Dataset:
    """Arrays in their order, batch by batch, read where they lie."""
    flat = [array for array in keras.tree.flatten(x) if array is not None]
    dtypes = [tf.as_dtype(array.dtype) for array in flat]

    def read(start: Any) -> list[np.ndarray]:
        return [np.ascontiguousarray(array[start : start + batch_size]) for array in flat]

    @as_written
    def batch(start: tf.Tensor) -> Any:
        parts = tf.numpy_function(read, [start], dtypes, stateful=False)
        for part, array in zip(parts, flat, strict=True):
            part.set_shape((None, *array.shape[1:]))
        return (keras.tree.pack_sequence_as(x, parts),)

    return tf.data.Dataset.range(0, len(flat[0]), batch_size).map(batch)


def takes_seed(augment: Any) -> bool:
    """Whether it is a function of two arguments, and no layer, which draws by itself."""
    if not callable(augment) or isinstance(augment, keras.layers.Layer | type):
        return False
    try:
        inspect.signature(augment).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of a builtin it is not known
        return True
    return True


def check_replayable(data: tf.data.Dataset, augment: Augment) -> None:
    """Refuses an augmentation that makes two views of the first batch by the same seeds.

    Args:
        data: Batches.
        augment: Function of one sample's inputs and a seed.

    Raises: ValueError.
    """

    for batch in data.take(1):
        x, _ = split(unpacked(batch)[0])
        size = tf.shape(tf.nest.flatten(x)[0])[0]
        samples, views = tf.range(tf.cast(size, tf.int64)), tf.zeros([size], tf.int32)
        # Traced anew, numbers drawn by Python change; called again, those drawn by operations that keep a state.
        traces = [tf.function(lambda *given: fingerprints(augmented(augment, *given))) for _ in range(2)]
        prints = [traced(x, samples, views).numpy() for traced in (traces[0], *traces)]
        if np.ptp(prints, axis=0).any():
            raise ValueError(
                "`augment` made different views of a sample by the same seed, so the student could not be shown what "
                "the teacher saw. Let it depend on the sample and the seed alone: `tf.random.stateless_uniform(shape, "
                "seed)`, `tf.image.stateless_random_flip_left_right(x, seed)`."
            )


def views_of(data: tf.data.Dataset, augment: Augment | None, views: int) -> tf.data.Dataset:
    """For each batch: its inputs as they are in each view, and the fingerprints of these, shape (batch, views)."""

    @as_written
    def look(start: tf.Tensor, batch: Any) -> tuple[tuple[Any, ...], tf.Tensor]:
        x, _ = split(unpacked(batch)[0])
        size = tf.shape(tf.nest.flatten(x)[0])[0]
        samples = start + tf.range(tf.cast(size, tf.int64))
        seen = [x if augment is None else augmented(augment, x, samples, tf.fill([size], v)) for v in range(views)]
        return tuple(seen), tf.stack([fingerprints(one) for one in seen], axis=1)

    return numbered(data).map(look).prefetch(1)
