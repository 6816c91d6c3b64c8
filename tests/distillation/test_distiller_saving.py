"""A Distiller on disk, and the student without it."""

import subprocess
import sys
import textwrap
import zipfile

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets


@keras.saving.register_keras_serializable("tests_distillation")
class Scaled(DistillationLoss):
    """A loss with an argument of its own."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def compute_loss(self, teacher, student, activation="softmax"):
        return self.factor * keras.ops.mean(keras.ops.square(teacher - student), axis=-1)

    def get_config(self):
        return {"factor": self.factor, **super().get_config()}


def trained(**kwargs):
    distiller = Distiller(student=mlp(1, name="small"), teacher=mlp(2, "softmax"), **kwargs)
    # What is on disk is the same, and a batch is faster than its graph.
    distiller.compile("adam", loss=hard_loss(), metrics=["accuracy"], run_eagerly=True)
    distiller.fit(*data(), verbose=0)
    return distiller


@pytest.mark.filterwarnings("error::UserWarning")
def test_saved_and_loaded_it_goes_on_as_it_was(tmp_path):
    stock = keras.distillation.LogitsDistillation(2.0, loss=keras.losses.KLDivergence())
    losses = [SoftTargets(3.0, name="kd"), Scaled(0.5), stock]
    distiller = trained(distillation_losses=losses, distillation_loss_weights=[1.0, 2.0, 3.0], student_loss_weight=0.25)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    x, y = data()
    for net in ("student", "teacher"):
        for ours, theirs in zip(getattr(loaded, net).variables, getattr(distiller, net).variables, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    logs = [model.evaluate(x, y, verbose=0, return_dict=True) for model in (distiller, loaded)]
    assert set(logs[0]) >= {"kd_loss", "scaled_loss", "logits_distillation_loss", "student_loss"}
    assert logs[0] == pytest.approx(logs[1], rel=1e-6)
    # The optimizer's slots came along: the next step is the same one.
    for model in (distiller, loaded):
        model.fit(x, y, batch_size=16, verbose=0)
    for ours, theirs in zip(loaded.student.variables, distiller.student.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    assert loaded.distillation_loss_weights == [1.0, 2.0, 3.0]


def test_config_round_trip():
    distiller = trained(student_loss_weight=0.25, from_logits={"student": True})
    again = Distiller.from_config(distiller.get_config())
    assert again.get_config() == distiller.get_config()


def test_an_unbuilt_student_saved_after_training(tmp_path):
    keras.utils.set_random_seed(1)
    student = keras.Sequential([layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)])
    distiller = Distiller(student=student, teacher=mlp(2))
    distiller.compile("adam", loss=hard_loss())
    x, y = data()
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), student(x), rtol=1e-5, atol=1e-6)


def test_weights_alone_and_a_backup(tmp_path):
    distiller = trained()
    distiller.save_weights(tmp_path / "d.weights.h5")
    other = Distiller(student=mlp(5, name="small"), teacher=mlp(2, "softmax"))
    other.load_weights(tmp_path / "d.weights.h5")
    np.testing.assert_array_equal(other.student.layers[1].kernel, distiller.student.layers[1].kernel)


LOAD = """
    import sys
    sys.modules["kdopt"] = None  # an import of it fails
    import keras, numpy as np
    model = keras.saving.load_model(sys.argv[1])
    x = np.load(sys.argv[2])
    np.testing.assert_allclose(model.predict(x, verbose=0), np.load(sys.argv[3]), rtol=1e-5, atol=1e-6)
    print(type(model).__name__, model.name, model.compiled)
"""


def test_the_students_file_names_no_class_of_ours(tmp_path):
    student = mlp(1, name="small")
    distiller = Distiller(student=student, teacher=mlp(2, "softmax"))
    distiller.compile("adam", loss=hard_loss(), run_eagerly=True)
    x, y = data()
    distiller.fit(x, y, batch_size=16, verbose=0)
    student.save(tmp_path / "student.keras")
    with zipfile.ZipFile(tmp_path / "student.keras") as file:
        assert b"kdopt" not in file.read("config.json")
    loaded = keras.saving.load_model(tmp_path / "student.keras")
    assert not loaded.compiled
    np.testing.assert_allclose(loaded(x), student(x), rtol=1e-5, atol=1e-6)
    assert all(v.regularizer is None and v.constraint is None for v in student.trainable_variables)


@pytest.mark.slow
def test_the_student_is_plain_keras(tmp_path):
    distiller = trained()
    student = distiller.student
    x, _ = data()
    student.save(tmp_path / "student.keras")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", student(x))
    files = [str(tmp_path / name) for name in ("student.keras", "x.npy", "y.npy")]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOAD), *files], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-3:] == ["Functional", "small", "False"]
    assert all(v.regularizer is None and v.constraint is None for v in student.trainable_variables)
