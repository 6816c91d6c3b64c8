"""Step time of kdopt's Distiller beside keras.distillation.Distiller: same student, teacher, batch and losses.

    python benchmarks/distiller_step.py [--case logits|features|cache|losses] [--rounds 20] [--batch 64] [--steps 8]

logits    0.5 * cross entropy + 0.5 * T^2 KL at T = 4. Keras' side uses `LogitsDistillation` with a `KLDivergence`
          object: its default name "kl_divergence" skips the softmax and computes something else.
features  the same and the mean square of two inner layers of equal width, which is all that Keras can compare.
losses    every loss of kdopt beside SoftTargets alone, with a teacher of twice the width.
cache     training with a cached teacher beside plain training of the student.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from _interleave import compare
from keras import layers

from kdopt.distillation import Distiller, SoftTargets, losses


def resnet(width: int, seed: int, blocks: int = 1) -> keras.Model:
    """A ResNet for 32x32 images with three stages, named `stage_0` to `stage_2`, and 10 class logits."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    x = _conv(inputs, width, 1)
    for stage, filters in enumerate((width, 2 * width, 4 * width)):
        for block in range(blocks):
            strides = 2 if stage and not block else 1
            shortcut = layers.Conv2D(filters, 1, strides)(x) if stage and not block else x
            x = _conv(x, filters, strides)
            name = f"norm_{stage}_{block}"
            x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
            x = layers.Add()([layers.BatchNormalization(name=name)(x), shortcut])
            x = layers.ReLU(name=f"stage_{stage}" if block == blocks - 1 else None)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _conv(x: keras.KerasTensor, filters: int, strides: int) -> keras.KerasTensor:
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def logits() -> dict[str, keras.Model]:
    """Keras first."""
    stock = keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence())
    both = {"teacher": resnet(16, 2), "student": resnet(8, 1)}
    return {
        "keras.distillation.Distiller": keras.distillation.Distiller(**both, distillation_losses=[stock]),
        "kdopt Distiller, SoftTargets": _ours([SoftTargets(4.0)]),
        "kdopt Distiller, the stock loss": _ours([stock]),
        "student alone": resnet(8, 1),
    }


def features() -> dict[str, keras.Model]:
    """Keras first; the teacher has the student's width and twice its blocks."""
    taps = ["stage_1", "stage_2"]
    stock = [
        keras.distillation.LogitsDistillation(4.0, loss=keras.losses.KLDivergence()),
        *(keras.distillation.FeatureDistillation("mse", teacher_layer_name=t, student_layer_name=t) for t in taps),
    ]
    models = {"teacher": resnet(8, 2, blocks=2), "student": resnet(8, 1)}
    ours = {"teacher": resnet(8, 2, blocks=2), "student": resnet(8, 1)}
    return {
        "keras.distillation.Distiller": keras.distillation.Distiller(**models, distillation_losses=stock),
        "kdopt Distiller, SoftTargets and Hint": Distiller(
            **ours, distillation_losses=[SoftTargets(4.0), losses.Hint(taps)]
        ),
        "student alone": resnet(8, 1),
    }


def every_loss() -> dict[str, keras.Model]:
    """SoftTargets first; every other loss beside it, so that a row is its cost."""
    norms = [f"norm_{stage}_0" for stage in range(3)]
    own = {
        "SoftTargetsMSE": losses.SoftTargetsMSE(),
        "DecoupledKD": losses.DecoupledKD(),
        "LogitStandardization": losses.LogitStandardization(),
        "DIST": losses.DIST(),
        "AdversarialLogits": losses.AdversarialLogits(),
    }
    added = {
        "Hint, three stages": losses.Hint(),
        "CosineFeature, three stages": losses.CosineFeature(),
        "VID, three stages": losses.VID(),
        "NST, three stages": losses.NST(),
        "OverhaulFeature, three stages": losses.OverhaulFeature(norms),
        "FactorTransfer, last stage": losses.FactorTransfer("stage_2"),
        "AdversarialFeature, last stage": losses.AdversarialFeature("stage_2"),
        "AttentionTransfer, three stages": losses.AttentionTransfer(),
        "FSP, three stages": losses.FSP(),
        "RelationalDistance": losses.RelationalDistance(),
        "RelationalAngle": losses.RelationalAngle(),
        "SimilarityPreserving": losses.SimilarityPreserving(),
        "CorrelationCongruence": losses.CorrelationCongruence(),
        "PKT": losses.PKT(),
        "CRD, in the batch": losses.CRD(),
        "CRD, bank of 4,096": losses.CRD(bank=4096),
    }
    made: dict[str, keras.Model] = {"SoftTargets": _ours([SoftTargets(4.0)])}
    made |= {f"{name} instead": _ours([loss]) for name, loss in own.items()}
    return made | {f"and {name}": _ours([SoftTargets(4.0), loss]) for name, loss in added.items()}


def _ours(given: list[Any]) -> keras.Model:
    return Distiller(teacher=resnet(16, 2), student=resnet(8, 1), distillation_losses=given)


def compiled(models: dict[str, keras.Model]) -> dict[str, keras.Model]:
    """All compiled alike."""
    for model in models.values():
        model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return models


def block(model: keras.Model, x: Any, y: Any, steps: int) -> Callable[[], None]:
    """A few training steps on one batch; what a `fit` costs beside its steps is left out."""

    def run() -> None:
        for _ in range(steps):
            logs = model.train_on_batch(x, y)
        float(np.sum(logs))  # waits for the last step

    run()
    return run


def pulls(model: keras.Model, dataset: Iterable[Any], steps: int) -> Callable[[], None]:
    """The same, with every batch read from a dataset."""
    batches = iter(dataset)

    def run() -> None:
        for _ in range(steps):
            logs = model.train_on_batch(*next(batches))
        float(np.sum(logs))

    run()
    return run


def cached(x: np.ndarray, y: np.ndarray, batch: int, steps: int) -> dict[str, Callable[[], None]]:
    """Plain training first; both sides read their batches by tf.data."""
    from kdopt.distillation import cache_teacher

    x, y = (
        np.tile(x, (16, 1, 1, 1)) + np.arange(16 * len(x))[:, None, None, None].astype("float32") / 1e4,
        np.tile(y, 16),
    )
    teacher = resnet(16, 2)
    plain = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    made = {}
    for name, taps in (("logits", ()), ("logits and stage_2", ("stage_2",))):
        cache = cache_teacher(teacher, plain, tempfile.mkdtemp(), taps=taps, verbose=0)
        own = [SoftTargets(4.0), *(losses.Hint(tap) for tap in taps)]
        distiller = Distiller(student=resnet(8, 1), teacher=cache, distillation_losses=own)
        made[f"kdopt Distiller, cached {name}"] = (distiller, cache.join(plain))
    sides = {"student alone": (resnet(8, 1), plain), **made}
    compiled({name: model for name, (model, _) in sides.items()})
    return {name: pulls(model, data.repeat().prefetch(2), steps) for name, (model, data) in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("logits", "features", "cache", "losses"), default="logits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="steps in a block")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    x = generator.normal(size=(arguments.batch, 32, 32, 3)).astype("float32")
    y = generator.integers(0, 10, len(x))
    if arguments.case == "cache":
        compare(cached(x, y, arguments.batch, arguments.steps), rounds=arguments.rounds)
        return
    models = {"logits": logits, "features": features, "losses": every_loss}[arguments.case]()
    tensors = tf.constant(x), tf.constant(y)
    sides = compiled(models)
    compare({name: block(model, *tensors, arguments.steps) for name, model in sides.items()}, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
