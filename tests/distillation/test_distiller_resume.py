"""A killed `fit` goes on as if nothing had happened, with all that losses train of their own."""

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, mlp

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.adversarial import AdversarialFeature
from kdopt.distillation.losses.contrastive import CRD
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.selftaught import MeanTeacher


class Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def made(teacher, **options):
    keras.utils.set_random_seed(9)
    given = [Hint(1), AdversarialFeature(1, optimizer=keras.optimizers.Adam(0.01)), CRD(1, dimensions=4, bank=32)]
    student = mlp(1, width=4)
    teachers = {"model": lambda: mlp(2), "average": lambda: MeanTeacher(0.5)}
    distiller = Distiller(student=student, teacher=teachers[teacher](), distillation_losses=given)
    distiller.compile(keras.optimizers.Adam(0.01), loss=hard_loss(), **options)
    return distiller


def fit(distiller, *callbacks):
    x, y = data(16)
    distiller.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=list(callbacks))


def state(distiller):
    extras = [variable for extra in distiller._lesson.knowledge.extras for variable in extra.variables]
    averages = [variable for model in distiller._lesson.models for variable in model.variables]
    return [np.array(variable) for variable in (*distiller.variables, *extras, *averages)]


COMPILED = [pytest.param(teacher, {}, marks=pytest.mark.slow) for teacher in ("model", "average")]


@pytest.mark.parametrize(("teacher", "options"), [("model", {"run_eagerly": True}), *COMPILED])
def test_a_killed_fit_goes_on_as_it_was(tmp_path, teacher, options):
    whole = made(teacher, **options)
    fit(whole)
    killed = made(teacher, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(killed, keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False), Kill())
    again = made(teacher, **options)
    fit(again, keras.callbacks.BackupAndRestore(tmp_path))
    assert not np.allclose(state(killed)[0], state(whole)[0])
    for ours, expected in zip(state(again), state(whole), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
