"""What a training run does, and what it leaves alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import CLASSES, data, hard_loss, hinton, mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.logits import SoftTargets


class Count(layers.Layer):
    """Counts the batches that really run through it, in eager, graph and validation steps."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = []

    def call(self, x):
        def note(value):
            self.runs.append(1)
            return value

        y = tf.py_function(note, [x], x.dtype)
        y.set_shape(x.shape)
        return y

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


def counted(seed):
    count = Count()
    inputs = keras.Input((6,))
    return keras.Model(inputs, mlp(seed)(count(inputs))), count


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_each_net_runs_once_a_step(alpha):
    (student, of_student), (teacher, of_teacher) = counted(1), counted(2)
    losses = [SoftTargets(2.0), SoftTargets(8.0)]
    distiller = Distiller(
        student=student, teacher=teacher, distillation_losses=losses, student_loss_weight=alpha, from_logits=True
    )
    distiller.compile("sgd", loss=hard_loss(), metrics=["accuracy"], jit_compile=False)
    x, y = data(24)
    teaches = alpha < 1

    def ran(action):
        of_student.runs.clear()
        of_teacher.runs.clear()
        action()
        return len(of_student.runs), len(of_teacher.runs)

    assert ran(lambda: distiller.fit(x, y, batch_size=8, epochs=2, verbose=0)) == (6, 6 * teaches)
    assert ran(lambda: distiller.evaluate(x, y, batch_size=8, verbose=0)) == (3, 3 * teaches)
    assert ran(lambda: distiller.predict(x, batch_size=8, verbose=0)) == (3, 0)


class Noise(layers.Layer):
    """Draws from its seed whether it trains or not."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(3)

    def call(self, x):
        return x + 0.1 * keras.random.normal(keras.ops.shape(x), seed=self.seed_generator)


def restless_teacher():
    """Half frozen, statistics fixed to training mode, a seed that moves, penalties of its own."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6,))
    x = Noise()(layers.Dense(8, activation="relu", activity_regularizer="l2")(inputs))
    x = layers.BatchNormalization()(x, training=True)
    x = layers.Dropout(0.5)(layers.BatchNormalization()(x))
    teacher = keras.Model(inputs, layers.Dense(CLASSES, kernel_regularizer="l2")(x))
    teacher.layers[1].trainable = False
    return teacher


def state_of(model):
    return [np.asarray(v) for v in model.variables], [layer.trainable for layer in model._flatten_layers()]


def test_the_teacher_is_untouched_and_no_part_of_what_trains():
    student, teacher = mlp(1), restless_teacher()
    before, flags = state_of(teacher)
    penalties = len(teacher.losses)
    student_before = [np.asarray(v) for v in student.variables]
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("adam", loss=hard_loss())
    x, y = data()
    distiller.fit(x, y, epochs=2, verbose=0, validation_data=(x, y))
    after, flags_after = state_of(teacher)
    assert len(before) == 14  # 4 of layers, 8 of normalization, 2 of seeds
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert flags == flags_after
    assert len(teacher.losses) == penalties
    assert not {id(v) for v in teacher.variables} & {id(v) for v in distiller.variables}
    assert [v.path for v in distiller.trainable_variables] == [v.path for v in student.trainable_variables]
    assert distiller.layers == [student]
    assert not any(np.array_equal(a, np.asarray(b)) for a, b in zip(student_before, student.variables, strict=True))
    teacher(x, training=False)  # a plain call moves the seed, even in inference
    assert sum(not np.array_equal(old, np.asarray(v)) for old, v in zip(before, teacher.variables, strict=True)) == 1


def test_no_gradient_reaches_the_teacher():
    student, teacher = mlp(1), mlp(2)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss=hard_loss())
    x, y = data()
    with tf.GradientTape() as tape:
        loss = distiller.compute_loss(x, y, distiller(x, training=True))
    variables = [v.value for v in (*teacher.trainable_variables, *student.trainable_variables)]
    gradients = tape.gradient(loss, variables)
    count = len(teacher.trainable_variables)
    assert all(gradient is None for gradient in gradients[:count])
    assert all(gradient is not None for gradient in gradients[count:])


def test_dropout_of_the_teacher_is_off():
    student, teacher = mlp(1), mlp(2, dropout=True)
    x, y = data()
    student.layers[2].trainable = False
    expected = hinton(teacher(x, training=False), student(x), 4.0).mean()
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss())
    history = distiller.fit(x, y, batch_size=16, verbose=0).history
    np.testing.assert_allclose(history["soft_targets_loss"], [expected], rtol=1e-5)


class Plain(keras.Model):
    """A subclassed net whose `call` knows no `training`."""

    def __init__(self, seed):
        super().__init__()
        keras.utils.set_random_seed(seed)
        self.dense, self.dropout = layers.Dense(CLASSES), layers.Dropout(0.5)

    def call(self, x):
        return self.dropout(self.dense(x))


def test_subclassed_models_say_what_they_return():
    x, y = data()
    student, teacher = Plain(1), Plain(2)
    teacher(x)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss())
    with pytest.raises(ValueError, match=r"student holds logits or probabilities.*from_logits"):
        distiller.fit(x, y, verbose=0)
    student.output_activation = teacher.output_activation = "linear"
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss())
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = hinton(teacher.dense(x), student.dense(x), 4.0).mean()
    np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-5)
    told = Distiller(student=Plain(1), teacher=teacher, from_logits={"student": True})
    told.compile("sgd", loss=hard_loss())
    assert np.isfinite(told.fit(x, y, verbose=0).history["loss"]).all()


def test_predictions_and_metrics_are_the_students():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("adam", loss=hard_loss(), metrics=["accuracy"], weighted_metrics=["accuracy"])
    history = distiller.fit(x, y, validation_data=(x, y), verbose=0).history
    names = {"loss", "student_loss", "soft_targets_loss", "accuracy", "weighted_accuracy"}
    assert set(history) == names | {f"val_{name}" for name in names}
    np.testing.assert_allclose(distiller.predict(x, verbose=0), student(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(distiller(x), student(x))
    accuracy = np.mean(np.argmax(student(x), -1) == y)
    assert distiller.evaluate(x, y, verbose=0, return_dict=True)["accuracy"] == pytest.approx(accuracy)


def test_an_unbuilt_student_is_built_by_fit_and_learns_the_teacher_without_labels():
    keras.utils.set_random_seed(1)
    student = keras.Sequential([layers.Dense(32, activation="relu"), layers.Dense(CLASSES, activation="softmax")])
    teacher = mlp(2)
    distiller = Distiller(student=student, teacher=teacher, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.02))
    x, _ = data(256)
    history = distiller.fit(x, batch_size=32, epochs=8, verbose=0).history
    assert set(history) == {"loss", "soft_targets_loss"}
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    assert np.mean(np.argmax(student(x), -1) == np.argmax(teacher(x), -1)) > 0.9


def test_a_second_fit_after_compile_again():
    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    x, y = data()
    for rate in (0.1, 0.0):
        distiller.compile(keras.optimizers.SGD(rate), loss=hard_loss())
        before = np.asarray(distiller.student.layers[1].kernel)
        distiller.fit(x, y, verbose=0)
        assert np.array_equal(before, distiller.student.layers[1].kernel) == (rate == 0.0)
