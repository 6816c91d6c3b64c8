"""Small models and NumPy oracles that the distillation tests share."""

import keras
import numpy as np

CLASSES = 3


def mlp(seed, activation=None, units=CLASSES, width=8, dropout=False, name=None, **output):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = keras.layers.Dense(width, activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    if dropout:
        x = keras.layers.Dropout(0.5, seed=seed)(x)
    return keras.Model(inputs, keras.layers.Dense(units, activation=activation, **output)(x), name=name)


def data(samples=16, seed=0, classes=CLASSES):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(samples, 6)).astype("float32")
    return x, generator.integers(0, classes, samples)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def hinton(teacher_logits, student_logits, temperature):
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)) in float64, per sample."""
    p = softmax(np.asarray(teacher_logits, "float64") / temperature)
    q = softmax(np.asarray(student_logits, "float64") / temperature)
    return temperature**2 * np.sum(p * np.log(p / q), axis=-1)


def cross_entropy(labels, logits):
    q = softmax(np.asarray(logits, "float64"))
    return -np.log(np.take_along_axis(q, np.asarray(labels)[..., None], axis=-1))[..., 0]


def hard_loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
