"""Step time of `fit` with GradualPruning over plain `fit`, beside tfmot's pruning over plain tf_keras.

    python benchmarks/pruning_step.py keras
    python benchmarks/pruning_step.py tfmot
    python benchmarks/pruning_step.py kinds

Goal: <= 1.05 for single weights and channels (masks alone, between updates). `kinds` times every way of making zeros in
a `fit`: what gathers gradients, moves weights back or shrinks them costs more. ResNet8 on 32x32x3, batch 64; a block
is one `fit` of 20 steps, the masks change every 100 updates as in the usual schedule. tfmot runs in a process of its
own: it switches TensorFlow to tf_keras.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import numpy as np
from _interleave import compare

STEPS, BATCH = 20, 64
X = np.random.default_rng(0).normal(size=(STEPS * BATCH, 32, 32, 3)).astype("float32")
Y = np.random.default_rng(1).integers(0, 10, STEPS * BATCH)


def resnet8(keras):
    """The CIFAR-10 net of MLPerf Tiny, in either Keras."""
    layers = keras.layers

    def conv(x, filters, size=3, stride=1):
        return layers.Conv2D(filters, size, strides=stride, padding="same", use_bias=False)(x)

    def unit(x):
        return layers.ReLU()(layers.BatchNormalization()(x))

    x = inputs = keras.Input((32, 32, 3))
    x = unit(conv(x, 16))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        h = layers.BatchNormalization()(conv(unit(conv(x, filters, 3, stride)), filters))
        shortcut = x if stride == 1 else conv(x, filters, 1, stride)
        x = layers.ReLU()(layers.Add()([shortcut, h]))
    x = layers.Dense(10)(layers.Flatten()(layers.GlobalAveragePooling2D()(x)))
    return keras.Model(inputs, x)


def make(keras, model):
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def endless(kind):
    """A callback class that keeps what it has attached from one `fit` to the next, as inside one long `fit`."""

    class Endless(kind):
        begun = False

        def on_train_begin(self, logs=None):
            if not self.begun:
                super().on_train_begin(logs)
            self.begun = True

        def on_train_end(self, logs=None):
            pass

        def _finish(self):
            pass

    return Endless


def blocks(callbacks):
    """One block for plain `fit`, one for each callback on a net of its own; what is attached stays, so that only the
    step is timed."""
    import keras

    def block(callback):
        model = make(keras, resnet8(keras))
        extra = [] if callback is None else [callback]
        return lambda: model.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=extra)

    return {name: block(callback) for name, callback in {"plain fit": None, **callbacks}.items()}


def main_keras():
    from kdopt.pruning.callbacks import GradualPruning
    from kdopt.schedules import Polynomial

    course = Polynomial(0.8, end_step=1_000_000, frequency=100)
    kinds = {
        "fit with GradualPruning": endless(GradualPruning)(course),
        "fit with GradualPruning, channels": endless(GradualPruning)(course, "l2", pattern="channel"),
    }
    compare(blocks(kinds), rounds=30)


def main_kinds():
    from kdopt.pruning import GradualPruning, RegrowPruning
    from kdopt.regularizers import L1, GroupLasso, OrderedL1, Proximal
    from kdopt.schedules import Polynomial

    gradual, proximal = endless(GradualPruning), endless(Proximal)
    course = Polynomial(0.8, end_step=1_000_000, frequency=100)
    kinds = {
        **{f"GradualPruning, {name}": gradual(course, name) for name in ("taylor", "fisher", "obd", "movement")},
        "GradualPruning, splicing": gradual(course, splicing=True),
        "RegrowPruning, rigl": endless(RegrowPruning)(0.8, 1_000_000),
        "RegrowPruning, set": endless(RegrowPruning)(0.8, 1_000_000, "set"),
        "Proximal, l1": proximal(L1(1e-3)),
        "Proximal, l1, preconditioned": proximal(L1(1e-3), scaling="preconditioned"),
        "Proximal, group lasso": proximal(GroupLasso(1e-3)),
        "Proximal, ordered l1": proximal(OrderedL1(1e-3)),
    }
    compare(blocks(kinds), rounds=20)


def main_tfmot():
    import tensorflow_model_optimization as tfmot
    import tf_keras

    sparsity = tfmot.sparsity.keras
    schedule = sparsity.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1_000_000, frequency=100)
    plain = make(tf_keras, resnet8(tf_keras))
    pruned = make(tf_keras, sparsity.prune_low_magnitude(resnet8(tf_keras), pruning_schedule=schedule))
    step = sparsity.UpdatePruningStep()
    compare(
        {
            "plain tf_keras fit": lambda: plain.fit(X, Y, batch_size=BATCH, verbose=0),
            "fit with prune_low_magnitude": lambda: pruned.fit(X, Y, batch_size=BATCH, verbose=0, callbacks=[step]),
        },
        rounds=30,
    )


if __name__ == "__main__":
    {"keras": main_keras, "tfmot": main_tfmot, "kinds": main_kinds}[sys.argv[1] if len(sys.argv) > 1 else "keras"]()
