"""Loss objects of `keras.distillation` in our Distiller."""

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, hinton, mlp
from keras.distillation import FeatureDistillation, LogitsDistillation

from kdopt.distillation.distiller import Distiller


def divergence(temperature=2.0):
    return LogitsDistillation(temperature, loss=keras.losses.KLDivergence())


def evaluate(loss, student, teacher, **kwargs):
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=loss)
    distiller.compile("sgd", loss="sparse_categorical_crossentropy")
    x, y = data()
    return distiller.evaluate(x, y, verbose=0, return_dict=True, **kwargs)


def test_logits_distillation_gets_logits_even_of_probabilities():
    student, teacher = mlp(1, "softmax"), mlp(2)
    x, _ = data()
    logs = evaluate(divergence(), student, teacher)
    expected = hinton(teacher(x), np.log(np.asarray(student(x), "float64")), 2.0).mean()
    np.testing.assert_allclose(logs["logits_distillation_loss"], expected, rtol=1e-4)


def test_feature_distillation_of_the_outputs_gets_them_as_they_are():
    student, teacher = mlp(1, "softmax"), mlp(2, "softmax")
    x, _ = data()
    logs = evaluate(FeatureDistillation("mse"), student, teacher)
    expected = np.mean((np.asarray(student(x)) - np.asarray(teacher(x))) ** 2)
    np.testing.assert_allclose(logs["feature_distillation_loss"], expected, rtol=1e-5)


def test_a_subclass_of_keras_own_base():
    class Agreement(keras.distillation.DistillationLoss):
        def compute_loss(self, teacher_outputs, student_outputs, **kwargs):
            return -keras.ops.mean(teacher_outputs * student_outputs)

    student, teacher = mlp(1, "softmax"), mlp(2)
    x, _ = data()
    expected = -np.mean(np.asarray(teacher(x)) * np.asarray(student(x)))
    np.testing.assert_allclose(evaluate(Agreement(), student, teacher)["agreement_loss"], expected, rtol=1e-4)


def test_feature_distillation_of_inner_layers_taps_them_in_the_one_pass():
    student, teacher = mlp(1, name="s"), mlp(2, name="t")
    x, _ = data()
    names = [model.layers[1].name for model in (student, teacher)]
    logs = evaluate(
        FeatureDistillation("mse", student_layer_name=names[0], teacher_layer_name=names[1]), student, teacher
    )
    inner = [np.asarray(model.layers[1](x)) for model in (student, teacher)]
    np.testing.assert_allclose(logs["feature_distillation_loss"], np.mean((inner[0] - inner[1]) ** 2), rtol=1e-5)


def test_feature_distillation_of_unequal_widths_points_to_hints():
    loss = keras.distillation.FeatureDistillation(keras.losses.MeanSquaredError(), "dense", "dense")
    student, teacher = (
        keras.Sequential([keras.Input((6,)), keras.layers.Dense(w, name="dense"), keras.layers.Dense(3, name="head")])
        for w in (4, 8)
    )
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=loss)
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="`kdopt.distillation.losses.Hint` projects"):
        distiller.fit(*data(), verbose=0)


def test_equal_to_the_distiller_of_keras_in_one_step():
    x, y = data()
    found = []
    for make in (Distiller, keras.distillation.Distiller):
        student, teacher = mlp(1), mlp(2)
        student.layers[2].trainable = False
        distiller = make(student=student, teacher=teacher, distillation_losses=[divergence()], student_loss_weight=0.3)
        distiller.compile(keras.optimizers.SGD(0.5), loss=hard_loss())
        distiller.fit(x, y, batch_size=16, verbose=0)
        found.append([np.asarray(v) for v in student.trainable_variables])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_what_the_name_kl_divergence_really_computes_is_warned_of():
    """Keras resolves the default to a plain function and skips the softmax; we warn as long as that holds."""
    x, _ = data()
    teacher, student = np.asarray(mlp(2)(x)), np.asarray(mlp(1)(x))
    default = float(LogitsDistillation(2.0).compute_loss(teacher, student))
    clipped = [np.clip(z / 2.0, keras.backend.epsilon(), 1) for z in (teacher, student)]
    np.testing.assert_allclose(default, np.mean(np.sum(clipped[0] * np.log(clipped[0] / clipped[1]), -1)), rtol=1e-4)
    assert abs(default - hinton(teacher, student, 2.0).mean()) > 0.1
    with pytest.warns(UserWarning, match="without a softmax"):
        Distiller(student=mlp(1), teacher=mlp(2), distillation_losses=LogitsDistillation(2.0))


def test_what_a_stock_loss_cannot_do_is_refused():
    with pytest.raises(ValueError, match="a layer of one model with the outputs"):
        Distiller(
            student=mlp(1),
            teacher=mlp(2),
            distillation_losses=FeatureDistillation("mse", student_layer_name="dense"),
        )
    with pytest.raises(ValueError, match=r"Nothing to tap in the student .* for 'b'"):
        Distiller(
            student=mlp(1),
            teacher=mlp(2),
            distillation_losses=FeatureDistillation("mse", teacher_layer_name="a", student_layer_name="b"),
        )
    with pytest.raises(ValueError, match="cannot use sample_weight"):
        evaluate(divergence(), mlp(1), mlp(2), sample_weight=np.ones(16))
    with pytest.raises(ValueError, match="sigmoid units"):
        evaluate(divergence(), mlp(1, "sigmoid", 1), mlp(2, "sigmoid", 1))
