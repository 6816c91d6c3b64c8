"""Bad input: refused with what was expected, what came, and the way out."""

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.schedules import Linear


def net(make, shape=(6,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, make(inputs))


def heads(*names):
    return net(lambda x: {name: layers.Dense(2)(x) for name in names})


PAIRS = {
    "classes": (lambda: (mlp(1), mlp(2, units=4)), r"student \(None, 3\), teacher \(None, 4\)"),
    "rank": (lambda: (mlp(1), net(lambda x: layers.Dense(3)(x[:, None]))), r"teacher \(None, 1, 3\)"),
    "keys": (lambda: (heads("a", "b"), heads("a", "c")), "same outputs"),
    "count": (lambda: (heads("a", "b"), heads("a")), "same outputs"),
    "dict_and_tensor": (lambda: (mlp(1), heads("a")), "same outputs"),
    "inputs": (
        lambda: (mlp(1), net(lambda x: layers.Dense(3)(x), (7,))),
        r"student takes \(None, 6\) and the teacher 'functional.*' takes \(None, 7\)",
    ),
    "softmax_and_sigmoid": (lambda: (mlp(1, "softmax"), mlp(2, "sigmoid")), "cannot be compared"),
    "softmax_of_one": (lambda: (mlp(1, "softmax", 1), mlp(2, None, 1)), "one unit"),
    "unbuilt_teacher": (lambda: (mlp(1), keras.Sequential([layers.Dense(3)])), "no trained weights"),
    "unknown_end": (lambda: (mlp(1), net(lambda x: layers.Lambda(lambda z: z[:, :3])(x))), "from_logits"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_models_that_do_not_fit_together(case):
    make, message = PAIRS[case]
    student, teacher = make()
    with pytest.raises(ValueError, match=message):
        Distiller(student=student, teacher=teacher)


def test_the_same_model_or_shared_weights():
    model = mlp(1)
    with pytest.raises(ValueError, match="same model"):
        Distiller(student=model, teacher=model)
    backbone = layers.Dense(4)
    student, teacher = (net(lambda x: layers.Dense(3)(backbone(x))) for _ in range(2))
    with pytest.raises(ValueError, match=r"share weights that training changes \(dense.*/kernel"):
        Distiller(student=student, teacher=teacher)
    backbone.trainable = False
    Distiller(student=student, teacher=teacher)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"student": "x"}, TypeError, "`student` must be a keras.Model"),
        ({"teacher": np.mean}, TypeError, "`teacher` must be a keras.Model"),
        ({"student_loss_weight": 1.5}, ValueError, r"\[0, 1\]; got 1.5"),
        ({"distillation_losses": []}, ValueError, "empty"),
        ({"distillation_losses": "soft"}, ValueError, "soft_targets"),
        ({"distillation_losses": [keras.losses.KLDivergence()]}, TypeError, "Give a function of both outputs"),
        ({"distillation_losses": [3]}, TypeError, "instance of DistillationLoss"),
        ({"teacher": keras.Model}, TypeError, "`teacher` must be a keras.Model.*got the class Model"),
        ({"teacher_preprocessing": layers.Resizing}, TypeError, "must be a function or a layer"),
        ({"distillation_losses": SoftTargets}, TypeError, r"the class SoftTargets. Call it: `SoftTargets\(\)`"),
        ({"distillation_losses": "overhaul_feature"}, ValueError, r"`OverhaulFeature\(student_tap, ...\)`"),
        ({"teacher_preprocessing": layers.Dense(5)}, ValueError, r"gives \(None, 5\) and the teacher .*\(None, 6\)"),
        ({"distillation_loss_weights": [lambda step: 1.0 if step < 9 else 0.0]}, ValueError, "Python"),
        (
            {"distillation_loss_weights": Linear(final_sparsity=0.5, end_step=9)},
            ValueError,
            "cannot be computed inside",
        ),
        ({"distillation_loss_weights": [1.0, 2.0]}, ValueError, "a list of 1 numbers"),
        ({"distillation_loss_weights": [-1.0]}, ValueError, ">= 0"),
        ({"from_logits": "yes"}, TypeError, "from_logits"),
        ({"from_logits": {"pupil": True}}, TypeError, "from_logits"),
        ({"distillation_losses": SoftTargets(output="b")}, ValueError, "no such output"),
        ({"distillation_losses": SoftTargets(output=1)}, ValueError, "0 = 'dense"),
        ({"distillation_losses": SoftTargets(activation="sigmoid"), "student": "softmax"}, ValueError, "asks for"),
    ],
)
def test_bad_arguments(arguments, error, message):
    models = {"student": mlp(1), "teacher": mlp(2)}
    if arguments.get("student") == "softmax":
        arguments = {**arguments, "student": mlp(1, "softmax")}
    with pytest.raises(error, match=message):
        Distiller(**{**models, **arguments})


class Opaque(keras.Model):
    """Its outputs are known only when it runs."""

    output_activation = "linear"

    def __init__(self, units):
        super().__init__()
        self.dense = layers.Dense(units)

    def call(self, x):
        return self.dense(x)


def test_shapes_that_are_known_only_in_the_first_step():
    x, y = data()
    teacher = Opaque(4)
    teacher(x)
    distiller = Distiller(student=Opaque(3), teacher=teacher)
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match=r"student \(.*3\), teacher \(.*4\)"):
        distiller.fit(x, y, verbose=0)


def test_a_hard_loss_without_labels_or_without_a_loss():
    x, y = data()
    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="`compile` got no `loss`"):
        distiller.fit(x, y, verbose=0)
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="holds no labels"):
        distiller.fit(x, verbose=0)


def test_a_name_that_would_be_in_the_logs_twice():
    x, y = data(classes=2)
    student, teacher = heads("soft_targets", "b"), heads("soft_targets", "b")
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="'soft_targets_loss' would be in the logs twice"):
        distiller.fit(x, {"soft_targets": y, "b": y}, verbose=0)


def test_the_teacher_cannot_be_swapped_silently():
    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    with pytest.raises(AttributeError):
        distiller.teacher = mlp(3)
