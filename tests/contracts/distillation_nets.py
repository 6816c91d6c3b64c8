"""Tiny nets that any distillation loss can be trained on, and data for them."""

import keras
import numpy as np
from keras import layers

CLASSES = 4


def _features(x, width):
    for place, (name, stride) in enumerate((("a", 1), ("b", 2))):
        x = layers.Conv2D(width * (place + 1), 3, strides=stride, padding="same", name=f"conv_{name}")(x)
        x = layers.BatchNormalization(name=f"norm_{name}")(x)
        x = layers.ReLU(name=f"relu_{name}")(x)
    return x


def classifier(seed, width):
    """Two resolutions, then a vector, then logits."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    x = layers.GlobalAveragePooling2D(name="pool")(_features(inputs, width))
    return keras.Model(inputs, layers.Dense(CLASSES, name="logits")(x))


def segmenter(seed, width):
    """Logits of each pixel."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    return keras.Model(inputs, layers.Conv2D(CLASSES, 1, name="logits")(_features(inputs, width)))


def transformer(seed, width):
    """One attention layer over tokens, of which 0 is padding."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4 * width, mask_zero=True, embeddings_initializer="random_normal")(inputs)
    x = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(2, width)(x, x)])
    return keras.Model(inputs, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


NETS = {"classifier": classifier, "regressor": classifier, "segmenter": segmenter, "transformer": transformer}


def data(net, samples=8):
    """Inputs and labels."""
    generator = np.random.default_rng(0)
    if net == "transformer":
        x = generator.integers(1, 9, (samples, 5))
        x[::3, 3:] = 0
        return x, generator.integers(0, CLASSES, samples)
    x = generator.normal(size=(samples, 6, 6, 2)).astype("float32")
    if net == "regressor":
        return x, generator.normal(size=(samples, CLASSES)).astype("float32")
    return x, generator.integers(0, CLASSES, (samples, 3, 3) if net == "segmenter" else samples)
