"""Step time of kdopt's Distiller beside keras.distillation.Distiller: same student, teacher, batch and logit loss.

    python benchmarks/distiller_step.py [--rounds 20] [--batch 64] [--steps 16]

Both train with 0.5 * cross entropy + 0.5 * T^2 KL at T = 4. Keras' side uses `LogitsDistillation` with a
`KLDivergence` object: its default name "kl_divergence" skips the softmax and computes something else. Plain training of
the student is shown for scale.
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np
from _interleave import compare
from keras import layers

from kdopt.distillation import Distiller, SoftTargets


def resnet(width: int, seed: int) -> keras.Model:
    """A ResNet8 for 32x32 images, 10 class logits."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    x = _conv(inputs, width, 1)
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        strides = 2 if stage else 1
        shortcut = layers.Conv2D(filters, 1, strides)(x) if stage else x
        x = _conv(x, filters, strides)
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _conv(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def sides() -> dict[str, keras.Model]:
    """The models that are timed, compiled alike."""
    stock = keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())
    models = {
        "keras.distillation.Distiller": keras.distillation.Distiller(
            teacher=resnet(16, 2), student=resnet(8, 1), distillation_losses=[stock]
        ),
        "kdopt Distiller, SoftTargets": Distiller(
            teacher=resnet(16, 2), student=resnet(8, 1), distillation_losses=[SoftTargets(4.0)]
        ),
        "kdopt Distiller, the stock loss": Distiller(
            teacher=resnet(16, 2), student=resnet(8, 1), distillation_losses=[stock]
        ),
        "student alone": resnet(8, 1),
    }
    for model in models.values():
        model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return models


def block(model: keras.Model, x: np.ndarray, y: np.ndarray, batch: int) -> Callable[[], None]:
    """One short training run, compiled beforehand."""

    def run() -> None:
        model.fit(x, y, batch_size=batch, shuffle=False, verbose=0)

    run()
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16, help="steps in a block")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(arguments.batch * arguments.steps, 32, 32, 3)).astype("float32")
    y = generator.integers(0, 10, len(x))
    compare({name: block(model, x, y, arguments.batch) for name, model in sides().items()}, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
