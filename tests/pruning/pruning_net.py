"""A net with most kinds of kernels, and what the tests of pruning do with it."""

import keras
import numpy as np
from keras import layers

X = np.random.default_rng(0).normal(size=(64, 6, 6, 2)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 64)


def make_model(optimizer=None, **compile_args):
    """Conv, BatchNormalization, a residual, a depthwise layer and a nested head."""
    x = keras.Input((6, 6, 2))
    h = layers.Conv2D(4, 3, padding="same", name="conv")(x)
    h = layers.ReLU()(layers.BatchNormalization(name="norm")(h))
    h = layers.Add()([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(h)])
    head = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, name="hidden"), layers.Dense(3, name="logits")], name="head"
    )
    model = keras.Model(x, head(layers.GlobalAveragePooling2D()(h)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer or keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], **compile_args)
    return model


def kernels(model):
    head = model.get_layer("head")
    return [
        model.get_layer("conv").kernel,
        model.get_layer("depthwise").kernel,
        head.get_layer("hidden").kernel,
        head.get_layer("logits").kernel,
    ]


def zeros(model):
    return [int(np.count_nonzero(kernel.numpy() == 0)) for kernel in kernels(model)]


def fit(model, *callbacks, epochs=2, **kwargs):
    """8 updates an epoch."""
    return model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(callbacks), **kwargs)


class Watch(keras.callbacks.Callback):
    """Counts the zeros after every batch."""

    def __init__(self):
        super().__init__()
        self.zeros = []

    def on_train_batch_end(self, batch, logs=None):
        self.zeros.append(zeros(self.model))
