"""What only the values of a batch can tell: a broken teacher, logits taken for probabilities."""

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, mlp

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.hint import Hint


def broken():
    teacher = mlp(2, name="big")
    kernel = np.array(teacher.layers[1].kernel)
    kernel[0, 0] = np.nan
    teacher.layers[1].kernel.assign(kernel)
    return teacher


_SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ({"jit_compile": True}, {"steps_per_execution": 2})]


@pytest.mark.parametrize("how", [{}, *_SLOW])
def test_a_teacher_that_gives_nan_is_named_and_the_student_is_as_it_was(how):
    student = mlp(1)
    distiller = Distiller(student=student, teacher=broken(), distillation_losses=["soft_targets", Hint(1)])
    distiller.compile("adam", loss=hard_loss(), **how)
    before = [np.array(w) for w in student.weights]
    x, y = data(64)
    with pytest.raises(
        ValueError, match=r"The teacher 'big' gives NaN or infinity: \d+ of the values.*The student is as it was"
    ):
        distiller.fit(x, y, batch_size=16, verbose=0)
    for now, then in zip(student.weights, before, strict=True):
        np.testing.assert_array_equal(now, then)
    assert int(distiller.optimizer.iterations) == 0
    distiller.teacher.layers[1].kernel.assign(mlp(2).layers[1].kernel)
    assert np.isfinite(distiller.fit(x, y, verbose=0).history["loss"]).all()  # mended, it goes on


def test_nan_in_the_data_is_told_from_a_broken_teacher():
    x, y = data()
    x[3, :2] = np.nan
    distiller = Distiller(student=mlp(1), teacher=mlp(2, name="big"))
    distiller.compile("adam", loss=hard_loss())
    with pytest.raises(ValueError, match="The inputs hold NaN, and so .* 'big' .*The student is as it was"):
        distiller.fit(x, y, verbose=0)
    assert np.isfinite(distiller.fit(*data(), verbose=0).history["loss"]).all()


def test_one_broken_teacher_of_several_is_the_one_that_is_named():
    distiller = Distiller(student=mlp(1), teacher=[mlp(3, name="good"), broken()])
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="'big' gives NaN"):
        distiller.fit(*data(), verbose=0)


def test_a_teacher_that_breaks_later_is_named_after_the_epoch():
    teacher = mlp(2, name="big")
    distiller = Distiller(student=mlp(1), teacher=teacher)
    distiller.compile("sgd", loss=hard_loss())

    class Break(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                teacher.layers[1].kernel.assign(np.full((6, 8), np.nan))

    with pytest.raises(ValueError, match="'big' gives NaN"):
        distiller.fit(*data(64), batch_size=16, callbacks=[Break()], verbose=0)


@pytest.mark.parametrize(
    ("ends", "told", "message"),
    [
        ("softmax", True, "`from_logits` says that the (teacher|student) gives logits.*are they probabilities"),
        (None, False, "`from_logits` says that the (teacher|student) gives probabilities.*are they logits"),
    ],
)
def test_values_that_contradict_from_logits_are_warned_of_once(ends, told, message):
    distiller = Distiller(student=mlp(1, ends), teacher=mlp(2, ends), from_logits=told)
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=ends is None))
    with pytest.warns(UserWarning, match=message) as caught:
        distiller.fit(*data(), epochs=3, verbose=0)
    assert len([one for one in caught if "from_logits` says" in str(one.message)]) == 2  # one for each model


@pytest.mark.filterwarnings("error::UserWarning")
def test_nothing_is_said_of_sound_values():
    for ends, told in (("softmax", False), (None, True), (None, None)):
        distiller = Distiller(student=mlp(1, ends), teacher=mlp(2, ends), from_logits=told)
        distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=ends is None))
        distiller.fit(*data(), verbose=0)


def test_callbacks_in_every_form_are_kept():
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.append(type(self.model).__name__)

    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    distiller.compile("sgd", loss=hard_loss())
    x, y = data()
    distiller.fit(x, y, callbacks=See(), verbose=0)
    distiller.fit(x, y, callbacks=[See()], verbose=0)
    distiller.fit(x, y, 8, 1, 0, [See()])
    distiller.fit(x, y, callbacks=keras.callbacks.CallbackList([See()], model=distiller), verbose=0)
    assert seen == ["Distiller"] * 4
