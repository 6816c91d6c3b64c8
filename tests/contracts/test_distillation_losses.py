"""What every registered distillation loss keeps: a new member inherits these tests."""

import functools
import inspect
import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from bound_losses import many, normal, numeric_gradient
from distillation_cases import CASES, LEARNED, TRAINED
from distillation_nets import data
from keras import ops

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DISTILLATION_LOSSES
from kdopt.distillation.losses.overhaul import OverhaulFeature

LOSSES = DISTILLATION_LOSSES.names()
each_loss = pytest.mark.parametrize("name", LOSSES)


def test_every_registered_loss_has_a_case():
    """Add the new loss to `CASES` in `distillation_cases.py`."""
    assert set(CASES) == set(LOSSES)
    for name, case in CASES.items():
        assert type(case.make()) is type(case.full()) is type(by_name(name))


def by_name(name):
    """With all arguments by default, as far as there are defaults."""
    return OverhaulFeature("a") if name == "overhaul_feature" else DISTILLATION_LOSSES.get(name)


def situations(name, make=None):
    """(activation, loss, function (teacher, student) -> list of values, teacher, student) for each case of a loss."""
    case = CASES[name]
    for loss, shapes in case.on_shapes(make):
        scale = 3.0 if loss.on_outputs else 1.0
        teacher, student = ([normal(*shape, seed=k, scale=scale) for shape in shapes] for k in (1, 2))
        if not loss.on_outputs:
            yield loss, _of_features(loss, case.record), teacher, student
            continue
        for activation in loss.activations:
            yield loss, _of_outputs(loss, activation), teacher, student


def _of_features(loss, record):
    return lambda teacher, student: loss.compute([record(t) for t in teacher], [record(s) for s in student])


def _of_outputs(loss, activation):
    def values(teacher, student):
        options = {"labels": np.argmax(teacher[0], -1).astype("int32")} if loss.uses_labels else {}
        given = (activation,) if loss.reads_logits else ()
        return [loss.compute_loss(teacher[0], student[0], *given, **options)]

    return values


def by_sample(values):
    """The mean over positions, summed over taps: shape (batch,)."""
    return sum(np.asarray(one).reshape(len(one), -1).mean(axis=-1) for one in many(values))


@each_loss
def test_one_finite_float32_value_a_sample(name):
    for loss, values, teacher, student in situations(name):
        found = values(teacher, student)
        for one in found:
            assert one.dtype == "float32"
            assert len(one.shape) >= 1
            assert tuple(one.shape) in {s.shape[: len(one.shape)] for s in student}
            assert np.isfinite(one).all()
        if not loss.within_batch:  # a sample's value is its own: it does not change with who else is in the batch
            alone = values([t[:1] for t in teacher], [s[:1] for s in student])
            for whole, one in zip(found, alone, strict=True):
                np.testing.assert_allclose(one, whole[:1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - LEARNED))
def test_least_when_the_student_is_the_teacher(name):
    for _, values, teacher, other in situations(name):
        students = [tf.Variable(t) for t in teacher]
        with tf.GradientTape() as tape:
            least = values(teacher, students)
        for slope in tape.gradient(least, students):
            if slope is not None:
                np.testing.assert_allclose(slope, np.zeros_like(slope), atol=2e-4)
        for step in (0.1, 1.0):
            moved = values(teacher, [t + step * (o - t) for t, o in zip(teacher, other, strict=True)])
            assert np.all(by_sample(moved) > by_sample(least) + 1e-7)


# CRD holds its scale fixed, FactorTransfer's parts learn by one half of it each: they have tests of their own.
@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"crd", "factor_transfer"}))
def test_the_gradient_is_that_of_differences(name):
    """Of the student's tensors and of the loss's own parts."""
    for loss, values, teacher, student in situations(name, CASES[name].smooth):
        variables = [tf.Variable(s) for s in student]
        variables += [variable.value for part in loss.parts for variable in part.trainable_variables]
        with tf.GradientTape() as tape:
            total = sum(ops.sum(one) for one in values(teacher, variables[: len(student)]))
        for place, (variable, slope) in enumerate(zip(variables, tape.gradient(total, variables), strict=True)):
            chosen = np.random.default_rng(place).choice(slope.shape.num_elements(), 3, replace=False)
            moved = functools.partial(with_variable, variable, values, teacher, variables[: len(student)])
            expected = numeric_gradient(moved, np.array(variable), chosen, 0.03)
            scale = max(largest(slope), 1e-2)
            np.testing.assert_allclose(np.reshape(slope, -1)[chosen], expected, rtol=2e-3, atol=3e-3 * scale)


def with_variable(variable, values, teacher, student, value):
    """What comes out where a variable has this value."""
    before = np.array(variable)
    variable.assign(value)
    found = values(teacher, student)
    variable.assign(before)
    return np.concatenate([np.reshape(one, -1) for one in found])


def degenerate(shapes):
    zeros, constant = ([np.full(shape, value, "float32") for shape in shapes] for value in (0.0, 0.3))
    equal_rows = [np.broadcast_to(normal(*shape)[:1], shape) for shape in shapes]
    return zeros, constant, equal_rows


@each_loss
def test_degenerate_inputs_have_finite_values_and_gentle_gradients(name):
    """Dead and constant features, equal samples, a batch of one: no NaN, and no gradient that throws it off."""
    for _, values, teacher, student in situations(name):
        alike = degenerate([one.shape for one in student])
        alone = [one[:1] for one in teacher], [one[:1] for one in student]
        for t, s in [*((teacher, one) for one in alike), (alike[0], student), (alike[0], alike[0]), alone]:
            students = [tf.Variable(one) for one in s]
            with tf.GradientTape() as tape:
                found = values(t, students)
            assert all(np.isfinite(one).all() for one in found)
            assert max(map(largest, tape.gradient(found, students))) < 100.0


@functools.cache
def distiller_of(name):
    """One for the three tests below, the last of which trains it."""
    return CASES[name].distiller()


def total_loss(distiller, x, y, sample_weight=None, training=False):
    with distiller.one_step():
        return distiller.compute_loss(x, y, distiller(x, training=training), sample_weight, training=training)


@each_loss
def test_the_gradient_reaches_the_student_and_the_losses_own_parts_only(name):
    case, distiller = CASES[name], distiller_of(name)
    x, y = map(ops.convert_to_tensor, data(case.net))
    groups = [model.trainable_variables for model in (distiller.student, distiller.teacher, *distiller._own_parts())]
    with tf.GradientTape() as tape:
        loss = total_loss(distiller, x, y, training=True)
    ours, theirs, *own = tape.gradient(loss, [[variable.value for variable in group] for group in groups])
    assert any(largest(slope) > 1e-6 for slope in ours)
    assert theirs == [None] * len(theirs)
    assert bool(own) == (name in TRAINED)
    for part in own:
        assert None not in part
        assert max(map(largest, part)) > 1e-7
    assert {id(v) for v in distiller.trainable_variables} == {id(v) for k, g in enumerate(groups) if k != 1 for v in g}


def largest(slope):
    return 0.0 if slope is None else np.abs(tf.convert_to_tensor(slope)).max()


@each_loss
def test_sample_weight_zero_leaves_a_samples_own_value_out(name):
    case, distiller = CASES[name], distiller_of(name)
    x, y = map(ops.convert_to_tensor, data(case.net))
    half = len(x) // 2
    first = (np.arange(len(x)) < half).astype("float32")
    weights = (None, first, 1 - first, 3 * first, 0 * first)
    whole, one, other, thrice, none = (float(total_loss(distiller, x, y, weight)) for weight in weights)
    assert one + other == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert thrice == pytest.approx(3 * one, rel=1e-4)
    assert none == 0.0
    if not distiller.distillation_losses[0].within_batch:
        assert one == pytest.approx(float(total_loss(distiller, x[:half], y[:half])) / 2, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (place % 3 > 0)) for place, name in enumerate(LOSSES)]
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # the layers after the tap
def test_a_few_steps_descend_and_leave_the_teacher_alone(name):
    case, distiller = CASES[name], distiller_of(name)
    batch = tuple(map(ops.convert_to_tensor, data(case.net)))
    before = distiller.teacher.get_weights()
    losses = []
    for _ in range(3):
        distiller.reset_metrics()
        losses.append(float(distiller.train_step(batch)["loss"]))
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()
    for kept, now in zip(before, distiller.teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(now, kept)


def arguments_of(kind):
    """What its constructor takes, also by `**options`."""
    found = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {one.name for one in parameters if one.kind is not one.VAR_KEYWORD}
            if not any(one.kind is one.VAR_KEYWORD for one in parameters):
                break
    return found - {"self"}


@each_loss
def test_round_trip(name):
    case = CASES[name]
    default, full = by_name(name), case.full()
    unchanged = {key for key, value in full.get_config().items() if value == default.get_config()[key]}
    assert unchanged <= case.fixed  # the case names all arguments
    assert set(full.get_config()) == arguments_of(type(full))
    for loss in (default, full):
        told = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
        again = DISTILLATION_LOSSES.get(told)
        assert type(again) is type(loss)
        assert again is not loss
        assert again.get_config() == loss.get_config()
    assert default.name == name
    if not full.on_outputs:
        assert again.student_tap == [re.compile("relu_.", re.I), -2]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_many_losses_at_once_in_a_compiled_step():
    """One graph of all that learn nothing of their own but projectors: it logs what each costs eagerly and alone."""
    names = [name for name, case in CASES.items() if case.net == "classifier" and name not in LEARNED]
    x, y = data("classifier")
    first = CASES[names[0]].distiller()
    made = [CASES[name].make() for name in names]
    together = {"student": first.student, "teacher": first.teacher, "student_loss_weight": 0.0}
    distiller = Distiller(**together, distillation_losses=made)
    distiller.compile(keras.optimizers.SGD(0.01))
    expected = {
        name: float(total_loss(Distiller(**together, distillation_losses=[CASES[name].make()]), x, y, training=True))
        for name, loss in zip(names, made, strict=True)
        if not loss.parts  # else they start elsewhere
    }
    logs = distiller.fit(x, y, batch_size=len(x), epochs=2, verbose=0).history
    for name, value in expected.items():
        assert logs[f"{name}_loss"][0] == pytest.approx(value, rel=1e-3), name
    assert all(np.isfinite(values).all() for values in logs.values())
    assert logs["loss"][1] < logs["loss"][0]
    assert len(logs) == 1 + len(names)
    assert len(expected) > 10
