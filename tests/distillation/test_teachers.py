"""Several teachers, teachers made of the student, other inputs for the teacher, functions as losses."""

import keras
import numpy as np
import pytest
from distillation_oracles import cross_entropy, data, hard_loss, hinton, mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.selftaught import DeepestExit, MeanTeacher


def evaluate(distiller, x, y=None, **options):
    distiller.compile("sgd", loss=hard_loss())
    return distiller.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True, **options)


@pytest.mark.parametrize("weights", [None, [0.2, 1.5, 0.0]])
def test_several_teachers_are_a_weighted_sum(weights):
    student, teachers = mlp(1), [mlp(2), mlp(3, "softmax"), mlp(4)]
    x, y = data()
    logs = evaluate(Distiller(student=student, teacher=teachers, teacher_weights=weights), x, y)
    z = [np.asarray(teachers[0](x)), np.log(np.asarray(teachers[1](x), "float64")), np.asarray(teachers[2](x))]
    each = np.array([hinton(t, student(x), 4.0).mean() for t in z])
    np.testing.assert_allclose(logs["soft_targets_loss"], each @ (weights or [1 / 3] * 3), rtol=1e-4)


def test_confidence_weighs_teachers_by_sample():
    student, teachers = mlp(1), [mlp(2), mlp(3), mlp(4)]
    x, y = data()
    weight = np.linspace(0, 2, 16).astype("float32")
    distiller = Distiller(student=student, teacher=teachers, teacher_weights="confidence")
    logs = evaluate(distiller, x, y, sample_weight=weight)
    entropy = np.array([cross_entropy(y, np.asarray(t(x))) for t in teachers])
    shares = (1 - np.exp(entropy) / np.exp(entropy).sum(0)) / 2
    each = np.array([hinton(t(x), student(x), 4.0) for t in teachers])
    np.testing.assert_allclose(shares.sum(0), 1.0)
    np.testing.assert_allclose(logs["soft_targets_loss"], (weight * (shares * each).sum(0)).mean(), rtol=1e-4)


def test_confidence_needs_labels_and_several_teachers():
    with pytest.raises(ValueError, match="there is one"):
        Distiller(student=mlp(1), teacher=mlp(2), teacher_weights="confidence")
    x, _ = data()
    distiller = Distiller(
        student=mlp(1), teacher=[mlp(2), mlp(3)], teacher_weights="confidence", student_loss_weight=0.0
    )
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="the data holds no labels"):
        distiller.fit(x, verbose=0)


def test_each_teacher_has_projectors_of_its_own():
    student, teachers = mlp(1, width=4), [mlp(2, width=8), mlp(3, width=6)]
    distiller = Distiller(student=student, teacher=teachers, distillation_losses=Hint(1))
    own = len(student.trainable_variables)
    assert [tuple(v.shape) for v in distiller.trainable_variables[own:]] == [(4, 8), (8,), (4, 6), (6,)]
    x, y = data()
    distiller.compile("adam", loss=hard_loss())
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["hint_loss"]).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"teacher": []}, ValueError, "empty list"),
        ({"teacher_weights": [1.0]}, ValueError, "a list of 2 numbers"),
        ({"teacher_weights": [1.0, -1.0]}, ValueError, ">= 0"),
        ({"teacher_weights": "best"}, ValueError, "'confidence'"),
        ({"teacher_preprocessing": [None]}, ValueError, "1 entries for 2 teachers"),
        ({"teacher_preprocessing": 3}, TypeError, "a function or a layer"),
        (
            {"teacher": MeanTeacher(), "teacher_preprocessing": np.abs},
            ValueError,
            "leave `teacher_preprocessing` out",
        ),
    ],
)
def test_bad_teachers(arguments, error, message):
    with pytest.raises(error, match=message):
        Distiller(**{"student": mlp(1), "teacher": [mlp(2), mlp(3)], **arguments})


@keras.saving.register_keras_serializable("tests_teachers")
def doubled(x):
    return 2.0 * x


def test_preprocessing_of_the_teacher_alone_and_saved(tmp_path):
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    distiller = Distiller(student=student, teacher=teacher, teacher_preprocessing=doubled)
    logs = evaluate(distiller, x, y)
    np.testing.assert_allclose(logs["soft_targets_loss"], hinton(teacher(2 * x), student(x), 4.0).mean(), rtol=1e-4)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(logs, rel=1e-5)


def test_several_teachers_are_saved(tmp_path):
    distiller = Distiller(student=mlp(1), teacher=[mlp(2), mlp(3)], teacher_weights=[1.0, 3.0])
    x, y = data()
    logs = evaluate(distiller, x, y)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(logs, rel=1e-5)
    assert len(loaded.teacher) == 2


def test_a_moving_average_of_the_student(tmp_path):
    student = mlp(1)
    first = [np.array(w, "float64") for w in student.weights]
    teacher = MeanTeacher(0.75)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=SoftTargets(1.0))
    distiller.compile(keras.optimizers.SGD(0.5), loss=hard_loss())
    x, y = data(64)
    averages = first
    for place in range(4):
        part = slice(16 * place, 16 * place + 16)
        distiller.fit(x[part], y[part], batch_size=16, verbose=0)
        averages = [0.75 * a + 0.25 * np.array(w, "float64") for a, w in zip(averages, student.weights, strict=True)]
    for ours, expected in zip(teacher.model.weights, averages, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert not np.allclose(student.weights[0], first[0])
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = hinton(teacher.model(x), student(x), 1.0).mean()
    np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-3, atol=1e-6)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(logs, rel=1e-4)
    assert loaded.teacher.decay == 0.75


def exits(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    early = layers.Dense(3, name="early")(x)
    x = layers.Dense(8, activation="relu")(x)
    return keras.Model(inputs, [early, layers.Dense(3, activation="softmax", name="last")(x)])


@pytest.mark.parametrize("output", [-1, "last"])
def test_the_deepest_exit_teaches_the_others(output):
    student = exits(1)
    distiller = Distiller(student=student, teacher=DeepestExit(output), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1.0))
    x, _ = data()
    early, last = (np.asarray(values, "float64") for values in student(x))
    logs = distiller.evaluate(x, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], hinton(np.log(last), early, 4.0).mean(), rtol=1e-4)
    before = np.array(student.get_layer("last").kernel)
    distiller.fit(x, verbose=0)
    np.testing.assert_allclose(student.get_layer("last").kernel, before, atol=1e-6)  # it teaches, it does not learn


@pytest.mark.parametrize("output", [0, "early"])
def test_another_exit_may_teach(output):
    student, (x, _) = exits(1), data()
    distiller = Distiller(student=student, teacher=DeepestExit(output), student_loss_weight=0.0)
    distiller.compile("sgd")
    early, last = (np.asarray(values, "float64") for values in student(x))
    np.testing.assert_allclose(distiller.evaluate(x, verbose=0), hinton(early, np.log(last), 4.0).mean(), rtol=1e-4)


@pytest.mark.parametrize("output", [-1, "deep", 1])
def test_exits_in_a_dict_go_by_their_order_and_keys(output):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    early = layers.Dense(3)(inputs)
    student = keras.Model(inputs, {"early": early, "deep": layers.Dense(3)(layers.Dense(8)(inputs))})
    distiller = Distiller(student=student, teacher=DeepestExit(output), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1.0))
    x, _ = data()
    said = student(x)
    expected = hinton(said["deep"], said["early"], 4.0).mean()
    np.testing.assert_allclose(distiller.evaluate(x, verbose=0), expected, rtol=1e-4)
    distiller.fit(x, verbose=0)
    np.testing.assert_allclose(student(x)["deep"], said["deep"], atol=1e-6)
    with pytest.raises(ValueError, match="no output 'last'; it has early, deep"):
        Distiller(student=student, teacher=DeepestExit("last"))


def test_inner_layers_of_the_student_learn_from_deeper_ones():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    low = layers.Dense(8, name="low")(inputs)
    deep = layers.Dense(8, name="deep")(low)
    student = keras.Model(inputs, [layers.Dense(3, name="early")(low), layers.Dense(3, name="last")(deep)])
    distiller = Distiller(
        student=student, teacher=DeepestExit(), distillation_losses=Hint("low", "deep"), student_loss_weight=0.0
    )
    distiller.compile("sgd")
    x, _ = data()
    one, other = (np.asarray(keras.Model(inputs, tensor)(x)) for tensor in (low, deep))
    np.testing.assert_allclose(distiller.evaluate(x, verbose=0), np.mean((one - other) ** 2), rtol=1e-4)
    before = np.array(student.get_layer("deep").kernel)
    distiller.fit(x, verbose=0)
    np.testing.assert_array_equal(student.get_layer("deep").kernel, before)


def test_exits_that_are_not_there():
    for wrong in (None, 1.5, True):
        with pytest.raises(TypeError, match="the index or the name of a model output"):
            DeepestExit(wrong)
    with pytest.raises(ValueError, match="has 1"):
        Distiller(student=mlp(1), teacher=DeepestExit())
    with pytest.raises(ValueError, match="no output 'late'; it has early, last"):
        Distiller(student=exits(1), teacher=DeepestExit("late"))
    with pytest.raises(ValueError, match="none of index 2"):
        Distiller(student=exits(1), teacher=DeepestExit(2))


def absolute(teacher, student):
    return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)


def squared(teacher, student):
    return keras.ops.mean(keras.ops.square(teacher - student))


def test_functions_of_the_outputs():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    weight = np.linspace(0, 2, 16).astype("float32")
    logs = evaluate(
        Distiller(student=student, teacher=teacher, distillation_losses=[absolute]), x, y, sample_weight=weight
    )
    t, s = np.asarray(teacher(x)), np.asarray(student(x))
    np.testing.assert_allclose(logs["absolute_loss"], (weight * np.abs(t - s).mean(-1)).mean(), rtol=1e-5)
    scalar = Distiller(student=student, teacher=teacher, distillation_losses=[squared, "soft_targets"])
    np.testing.assert_allclose(evaluate(scalar, x, y)["squared_loss"], ((t - s) ** 2).mean(), rtol=1e-5)
    with pytest.raises(ValueError, match="returns a scalar, which cannot be weighted"):
        evaluate(scalar, x, y, sample_weight=weight)


def test_unlabeled_samples_beside_labeled_ones():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    y = np.where(np.arange(16) < 6, y, -1)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1))
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["soft_targets_loss"], hinton(teacher(x), student(x), 4.0).mean(), rtol=1e-4)
    np.testing.assert_allclose(logs["student_loss"], cross_entropy(y[:6], np.asarray(student(x))[:6]).mean(), rtol=1e-4)
