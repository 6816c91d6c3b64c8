"""How to make each registered distillation loss, what it compares, and a net to train with it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from bound_losses import attending, recorded, tapped
from distillation_nets import NETS
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses import (
    adversarial,
    attention,
    attention_maps,
    channel_wise,
    contrastive,
    decoupled,
    factors,
    fsp,
    hint,
    logits,
    overhaul,
    regression,
    relational,
    selectivity,
    similarity,
    standardized,
    variational,
)

MAPS = ((4, 6, 6, 5), (4, 3, 3, 4))
SEQUENCE = ((4, 6, 5),)
VECTORS = ((6, 5),)
LOGITS = ((6, 4), (2, 3, 4))


@dataclass(frozen=True)
class Case:
    """One loss.

    Attributes:
        make: Makes it as the tests use it.
        full: Makes it with every argument other than by default.
        shapes: Of logits, each a case of its own; or of the tapped tensors of one case.
        fixed: Arguments that `full` cannot change.
        smooth: Makes one without the kinks of ReLUs, whose gradient differences tell.
        net: Name in `NETS`.
        record: What a tensor is recorded as.
        operation: Makes the layer that the teacher's taps belong to.
        rate: Learning rate that descends.
    """

    make: Callable[[], Any]
    full: Callable[[], Any]
    shapes: tuple[tuple[int, ...], ...] = MAPS
    fixed: frozenset[str] = frozenset()
    smooth: Callable[[], Any] | None = None
    net: str = "classifier"
    record: Callable[[Any], Any] = recorded
    operation: Callable[[], Any] = lambda: None
    rate: float = 0.05

    def on_shapes(self, make=None):
        """Pairs of a loss, built, and shapes to call it with."""
        make = make or self.make
        if make().on_outputs:
            return [(make(), (shape,)) for shape in self.shapes]
        loss, attends = make(), self.record is attending
        operation = self.operation()
        loss.build(
            [tapped(shape, operation, attends=attends) for shape in self.shapes],
            [tapped(shape, attends=attends) for shape in self.shapes],
        )
        return [(loss, self.shapes)]

    def distiller(self, loss=None, **options):
        """A student and a wider teacher that differ in this loss alone."""
        net = NETS[self.net]
        distiller = Distiller(
            student=net(1, 3),
            teacher=net(2, 4),
            distillation_losses=[loss or self.make()],
            student_loss_weight=0.0,
        )
        distiller.compile(keras.optimizers.SGD(self.rate), run_eagerly=True, **options)
        return distiller


def schedule(start):
    return keras.optimizers.schedules.PolynomialDecay(start, 100, end_learning_rate=start / 2)


def named(**options):
    return {"activation": "sigmoid", "output": "a", "name": "mine", **options}


def softmax_only(**options):
    return {"output": 1, "name": "mine", **options}


def taps(**options):
    return {"student_tap": [re.compile("relu_.", re.I), -2], "teacher_tap": ["a@0", 3, "b"], "name": "mine", **options}


def projected(**options):
    return taps(projector=[layers.Dense(4), layers.Conv2D(4, 3, padding="same")], **options)


def normalization():
    layer = layers.BatchNormalization()
    layer.build((None, 5))
    generator = np.random.default_rng(3)
    layer.gamma.assign(generator.normal(size=5))
    layer.beta.assign(generator.normal(size=5))
    return layer


def still():
    """An optimizer of a discriminator that does not learn: the student's loss descends against it."""
    return keras.optimizers.SGD(0.0)


def judge(units=1):
    return keras.Sequential([layers.Dense(3, activation="tanh"), layers.Dense(units)])


SOFTMAX = frozenset({"activation"})
CASES = {
    "soft_targets": Case(
        logits.SoftTargets, lambda: logits.SoftTargets(schedule(2.0), **named()), shapes=LOGITS, rate=0.01
    ),
    "soft_targets_mse": Case(
        logits.SoftTargetsMSE,
        lambda: logits.SoftTargetsMSE("probabilities", schedule(2.0), **named()),
        shapes=LOGITS,
    ),
    "decoupled_kd": Case(
        decoupled.DecoupledKD,
        lambda: decoupled.DecoupledKD(schedule(2.0), schedule(3.0), 5.0, "teacher", **softmax_only()),
        shapes=LOGITS,
        fixed=SOFTMAX,
        rate=0.01,
    ),
    "logit_standardization": Case(
        standardized.LogitStandardization,
        lambda: standardized.LogitStandardization(schedule(3.0), **softmax_only()),
        shapes=LOGITS,
        fixed=SOFTMAX,
        rate=0.01,
    ),
    "dist": Case(
        standardized.DIST,
        lambda: standardized.DIST(0.5, 2.0, schedule(3.0), **softmax_only()),
        shapes=LOGITS,
        fixed=SOFTMAX,
    ),
    "regression": Case(
        regression.Regression,
        lambda: regression.Regression("l1", 0.5, **softmax_only()),
        shapes=LOGITS,
        net="regressor",
    ),
    "channel_wise": Case(
        channel_wise.ChannelWise,
        lambda: channel_wise.ChannelWise(schedule(3.0), **named()),
        shapes=((2, 3, 4), (2, 3, 2, 4)),
        net="segmenter",
        rate=0.01,
    ),
    "adversarial_logits": Case(
        lambda: adversarial.AdversarialLogits(optimizer=still()),
        lambda: adversarial.AdversarialLogits(
            discriminator=judge(), optimizer=keras.optimizers.SGD(0.5, momentum=0.9), **named()
        ),
        shapes=LOGITS,
        smooth=lambda: adversarial.AdversarialLogits(discriminator=judge()),
    ),
    "hint": Case(hint.Hint, lambda: hint.Hint(**projected())),
    "cosine_feature": Case(hint.CosineFeature, lambda: hint.CosineFeature(**projected())),
    "factor_transfer": Case(factors.FactorTransfer, lambda: factors.FactorTransfer(**taps(rate=0.25)), MAPS[1:]),
    "vid": Case(
        variational.VID,
        lambda: variational.VID(**projected(variance=2.0)),
        SEQUENCE,
        smooth=lambda: variational.VID(projector=judge(5)),
    ),
    "nst": Case(
        selectivity.NST, lambda: selectivity.NST(**taps(kernel="gaussian", sigma=2.0)), shapes=(MAPS[0], *SEQUENCE)
    ),
    "overhaul_feature": Case(
        lambda: overhaul.OverhaulFeature(["norm_a", "norm_b"]),
        lambda: overhaul.OverhaulFeature(**projected(margin=-0.5)),
        shapes=MAPS[:1],
        fixed=frozenset(),
        operation=normalization,
    ),
    "adversarial_feature": Case(
        lambda: adversarial.AdversarialFeature(optimizer=still()),
        lambda: adversarial.AdversarialFeature(
            discriminator=judge(), **projected(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))
        ),
        shapes=MAPS[1:],
        smooth=lambda: adversarial.AdversarialFeature(discriminator=judge()),
    ),
    "attention_transfer": Case(
        attention.AttentionTransfer, lambda: attention.AttentionTransfer(**taps(distance="kl", power=3.0))
    ),
    "attention_maps_kl": Case(
        attention_maps.AttentionMapsKL,
        lambda: attention_maps.AttentionMapsKL(**taps(relations="values", distance="mse", relation_heads=2)),
        shapes=((3, 4, 3, 2, 5), (3, 4, 3, 2, 3)),
        net="transformer",
        record=attending,
        rate=0.5,
    ),
    "relational_distance": Case(
        relational.RelationalDistance, lambda: relational.RelationalDistance(**taps()), VECTORS
    ),
    "relational_angle": Case(relational.RelationalAngle, lambda: relational.RelationalAngle(**taps()), VECTORS),
    "similarity_preserving": Case(
        similarity.SimilarityPreserving, lambda: similarity.SimilarityPreserving(**taps()), MAPS, rate=0.5
    ),
    "correlation_congruence": Case(
        similarity.CorrelationCongruence,
        lambda: similarity.CorrelationCongruence(**taps(gamma=0.2, order=4)),
        VECTORS,
        rate=0.5,
    ),
    "pkt": Case(similarity.PKT, lambda: similarity.PKT(**taps()), VECTORS, rate=0.5),
    "fsp": Case(fsp.FSP, lambda: fsp.FSP(**projected())),
    "crd": Case(
        lambda: contrastive.CRD(dimensions=6, temperature=0.5, bank=5),
        lambda: contrastive.CRD(**taps(dimensions=16, temperature=0.5, bank=32)),
        VECTORS,
        rate=0.01,
    ),
}
LEARNED = frozenset({"adversarial_logits", "adversarial_feature", "factor_transfer", "vid", "crd"})
# With parts that learn beside the student of these nets: projectors, and more.
TRAINED = LEARNED - {"adversarial_logits"} | {"hint", "cosine_feature", "overhaul_feature", "fsp"}
