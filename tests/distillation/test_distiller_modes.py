"""The same training under every way Keras can run a step."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, hard_loss, hinton, mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.functions import FunctionLoss
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.reduction import reduced


def train(optimizer=None, epochs=3, **compile_options):
    student, teacher = mlp(1), mlp(2, "softmax")
    distiller = Distiller(student=student, teacher=teacher)
    optimizer = optimizer or keras.optimizers.SGD(0.1)
    distiller.compile(optimizer, loss=hard_loss(), metrics=["accuracy"], **compile_options)
    x, y = data(64)
    history = distiller.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0).history
    return history, [np.asarray(v) for v in student.variables]


@pytest.fixture(scope="module")
def eager():
    return train(run_eagerly=True)


@pytest.mark.parametrize(
    "options", [{}, {"jit_compile": True}, pytest.param({"steps_per_execution": 4}, marks=pytest.mark.slow)], ids=str
)
def test_every_mode_trains_the_same_weights_and_logs(eager, options):
    history, weights = train(**options)
    for key, values in eager[0].items():
        np.testing.assert_allclose(history[key], values, rtol=1e-4, err_msg=key)
    for ours, expected in zip(weights, eager[1], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


def test_jit_is_left_off_when_the_teacher_cannot():
    class NoXla(layers.Layer):
        def __init__(self):
            super().__init__()
            self.supports_jit = False

        def call(self, x):
            return x

    inputs = keras.Input((6,))
    teacher = keras.Model(inputs, mlp(2)(NoXla()(inputs)))
    distiller = Distiller(student=mlp(1), teacher=teacher)
    with pytest.warns(UserWarning, match="jit_compile"):
        distiller.compile("sgd", loss=hard_loss(), jit_compile=True)


def test_accumulated_gradients_equal_the_large_batch():
    """Two batches of 8 accumulated are one of 16; normalization frozen, which would see other batches."""
    found = []
    for steps, batch in ((None, 16), (2, 8)):
        student, teacher = mlp(1), mlp(2)
        student.layers[2].trainable = False
        distiller = Distiller(student=student, teacher=teacher)
        distiller.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=steps), loss=hard_loss())
        x, y = data(64)
        distiller.fit(x, y, batch_size=batch, shuffle=False, verbose=0)
        found.append([np.asarray(v) for v in student.trainable_variables])
    for ours, expected in zip(found[1], found[0], strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ends", ["softmax", None, pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_mixed_float16_computes_the_losses_in_float32(ends):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student, teacher = mlp(1, ends), mlp(2, ends)
    finally:
        keras.config.set_dtype_policy("float32")
    for model in (student, teacher):  # logits of +-1000: probabilities of exactly 0 and 1 in float16
        model.layers[-1].kernel.assign(model.layers[-1].kernel * 1000)
    distiller = Distiller(student=student, teacher=teacher, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.SGD(1e-3))
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
    x, _ = data()
    assert student(x).dtype == "float16"
    history = distiller.fit(x, batch_size=16, epochs=20, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][0] > 10  # saturated, and yet
    assert history["loss"][-1] < 0.9 * history["loss"][0]  # it learns: no gradient was lost in float16
    assert all(np.isfinite(w).all() for w in student.get_weights())


def test_mixed_float16_loss_is_the_oracle_of_its_logits():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student, teacher = mlp(1), mlp(2)
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = Distiller(student=student, teacher=teacher, student_loss_weight=0.0)
    distiller.compile("sgd")
    x, _ = data()
    expected = hinton(teacher(x), student(x), 4.0).mean()  # of float16 logits, in float64
    got = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    np.testing.assert_allclose(got, expected, rtol=2e-3)


DISTRIBUTED = """
    import os, sys, json
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras, numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from distillation_oracles import data, hard_loss, mlp
    from kdopt.distillation import Distiller, SoftTargets
    from keras.distillation import LogitsDistillation

    def run(strategy):
        with strategy.scope():
            student, teacher = mlp(1, kernel_regularizer="l2"), mlp(2)
            student.layers[2].trainable = False
            before = teacher.get_weights()
            stock = LogitsDistillation(2.0, loss=keras.losses.KLDivergence())
            distiller = Distiller(student=student, teacher=teacher, distillation_losses=[SoftTargets(4.0), stock])
            distiller.compile(keras.optimizers.SGD(0.1), loss=hard_loss())
        x, y = data(64)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        history = distiller.fit(dataset, epochs=2, verbose=0).history
        assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights()))
        return history, [w.tolist() for w in student.get_weights()]

    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert two.num_replicas_in_sync == 2
    print(json.dumps([run(tf.distribute.get_strategy()), run(two)]))
"""


def test_replicas_share_the_loss(monkeypatch):
    """Each of n replicas adds its part of the mean; that they train as one is in the slow tests."""
    values = np.array([1.0, 2.0, 6.0], "float32")
    scalar = FunctionLoss(lambda teacher, student: tf.reduce_mean(student))

    def both():
        return [float(reduced(values)), float(scalar.value(values, values, None))]

    alone = both()
    monkeypatch.setattr(tf.distribute, "get_strategy", lambda: SimpleNamespace(num_replicas_in_sync=2))
    assert both() == pytest.approx([a / 2 for a in alone])


@pytest.mark.slow
def test_two_replicas_train_as_one():
    command = [sys.executable, "-c", textwrap.dedent(DISTRIBUTED), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (one, one_weights), (two, two_weights) = json.loads(done.stdout.splitlines()[-1])
    assert set(one) == {"loss", "student_loss", "soft_targets_loss", "logits_distillation_loss"}
    for key, values in one.items():
        np.testing.assert_allclose(two[key], values, rtol=1e-4, err_msg=key)
    for ours, expected in zip(two_weights, one_weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)


FEATURES = """
    import os, sys, json
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras, numpy as np, tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from distillation_oracles import data, hard_loss, mlp
    from kdopt.distillation import Distiller, MeanTeacher, MutualLearning, losses

    def run(strategy, make):
        with strategy.scope():
            model = make()
            model.compile(keras.optimizers.SGD(0.1), loss=hard_loss())
        x, y = data(64)
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
        history = model.fit(dataset, epochs=2, verbose=0).history
        return history, [w.numpy().tolist() for w in model.trainable_variables]

    def frozen(seed, width=8):
        model = mlp(seed, width=width)
        model.layers[2].trainable = False
        return model

    def features():
        keras.utils.set_random_seed(3)
        given = [losses.SoftTargets(), losses.Hint(1)]
        return Distiller(student=frozen(1, 4), teacher=mlp(2), distillation_losses=given)

    def averaged():
        return Distiller(student=frozen(1), teacher=MeanTeacher(0.5))

    def cohort():
        return MutualLearning(students=[frozen(1), frozen(2)])

    def learned():
        given = [losses.AdversarialFeature(1), losses.CRD(1, bank=32), losses.VID(1), losses.RelationalAngle(1)]
        return Distiller(student=mlp(1), teacher=mlp(2), distillation_losses=given)

    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    one = tf.distribute.get_strategy()
    found = {make.__name__: [run(one, make), run(two, make)] for make in (features, averaged, cohort)}
    print(json.dumps({**found, "learned": run(two, learned)[0]}))
"""


@pytest.mark.slow
def test_two_replicas_with_features_averages_and_cohorts():
    command = [sys.executable, "-c", textwrap.dedent(FEATURES), str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("features", "averaged", "cohort"):
        (one, one_weights), (two, two_weights) = found[name]
        for key, values in one.items():
            np.testing.assert_allclose(two[key], values, rtol=1e-3, atol=1e-6, err_msg=f"{name} {key}")
        for ours, expected in zip(two_weights, one_weights, strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5, err_msg=name)
    assert all(np.isfinite(values).all() for values in found["learned"].values())


class OneBatchMask(keras.callbacks.Callback):
    """What a pruning callback does: find the student's kernels through the layers and constrain them."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_begin(self, logs=None):
        for layer in self.model._flatten_layers():
            if isinstance(layer, layers.Dense):
                self.seen.append(layer.kernel)


def test_callbacks_that_walk_the_layers_see_the_student_only():
    student, teacher = mlp(1), mlp(2)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=SoftTargets())
    distiller.compile("sgd", loss=hard_loss())
    callback = OneBatchMask()
    distiller.fit(*data(), callbacks=[callback], verbose=0)
    assert {id(kernel) for kernel in callback.seen} == {id(student.layers[1].kernel), id(student.layers[3].kernel)}
