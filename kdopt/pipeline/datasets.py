"""Small real image sets for the demo, split once and for all into training, validation and test images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.optional import require
from kdopt.core.validation import check_one_of

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Dataset:
    """Images in [0, 1] and their classes.

    Attributes:
        name: As in `DATASETS`.
        title: For people.
        train: Images (n, height, width, 1) float32 and classes (n,) int32, to learn from.
        validation: The same; for choices.
        test: The same; read once, for the numbers in the report.
        classes: Number of classes.
        flips: Whether a mirrored image shows the same thing.
        shift: Pixels by which an image may move and still show the same thing.
    """

    name: str
    title: str
    train: Pair
    validation: Pair
    test: Pair
    classes: int
    flips: bool
    shift: int

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.train[0].shape[1:]


def _digits() -> Dataset:
    """1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak, UCI 1998), inside scikit-learn's wheel."""
    bunch = require("sklearn.datasets", extra="demo").load_digits()
    x = (bunch.images[..., None] / 16).astype("float32")
    y = bunch.target.astype("int32")
    order = np.random.default_rng(0).permutation(len(x))
    train, validation, test = np.split(order, [1150, 1400])
    return Dataset(
        name="digits",
        title="Handwritten digits, 8x8 pixels",
        train=(x[train], y[train]),
        validation=(x[validation], y[validation]),
        test=(x[test], y[test]),
        classes=10,
        flips=False,
        shift=1,
    )


def _fashion_mnist() -> Dataset:
    """70,000 pictures of clothes, 28x28 pixels (Xiao, Rasul, Vollgraf 2017); downloaded by Keras once."""
    (x, y), test = keras.datasets.fashion_mnist.load_data()
    return Dataset(
        name="fashion_mnist",
        title="Fashion-MNIST, 28x28 pixels",
        train=_scaled(x[:55_000], y[:55_000]),
        validation=_scaled(x[55_000:], y[55_000:]),
        test=_scaled(*test),
        classes=10,
        flips=True,
        shift=0,  # every picture is centered, the test ones too
    )


def _scaled(x: np.ndarray, y: np.ndarray) -> Pair:
    return (x[..., None] / 255).astype("float32"), y.astype("int32")


DATASETS: dict[str, Callable[[], Dataset]] = {"digits": _digits, "fashion_mnist": _fashion_mnist}


def load(name: str) -> Dataset:
    """Loads a set by name.

    Raises: ValueError for an unknown name; ImportError with the pip line if scikit-learn is missing; OSError if a
        download fails.
    """
    check_one_of("dataset", name, DATASETS)
    try:
        return DATASETS[name]()
    except (ImportError, ValueError):
        raise
    except Exception as error:  # Keras raises a bare Exception for a failed download
        raise OSError(f"The data set {name!r} could not be read or downloaded: {error}") from error


def augmented_batches(data: Dataset, batch_size: int, seed: int) -> Any:
    """The training images as a `tf.data.Dataset` of shuffled, moved and (where `flips`) mirrored batches.

    Every batch moves as a whole, which costs next to nothing; every image is mirrored or not on its own.

    Args:
        data: Data set.
        batch_size: Integer >= 1; the last, smaller batch is left out.
        seed: Integer; the same seed gives the same batches.

    Returns: dataset of (images (batch_size, height, width, 1), classes (batch_size,)).
    """
    import tensorflow as tf

    x, y = data.train
    shift = data.shift
    padded = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))

    def augment(batch: Any, key: Any) -> Any:
        images, labels = batch
        images = tf.image.stateless_random_crop(images, (batch_size, *data.image_shape), seed=key)
        if data.flips:
            mirror = tf.random.stateless_uniform((batch_size, 1, 1, 1), seed=key + 1) < 0.5
            images = tf.where(mirror, tf.reverse(images, axis=[2]), images)
        return images, labels

    keys = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    shuffled = tf.data.Dataset.from_tensor_slices((padded, y)).shuffle(len(x), seed=seed)
    batches = shuffled.batch(batch_size, drop_remainder=True)
    return tf.data.Dataset.zip(batches, keys).map(augment, num_parallel_calls=2).prefetch(2)
