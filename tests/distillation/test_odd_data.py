"""Data, outputs and arguments that are unlike most: masks, sparse tensors, infinite answers, corruptions in place."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, hard_loss, mlp
from keras import layers, ops

from kdopt.distillation import Distiller, MeanTeacher, MutualLearning, SoftTargets, agreement, recommend
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargetsMSE
from kdopt.distillation.reduction import common_mask


def tokens(seed, masked=True):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    return keras.Model(inputs, layers.Dense(3, name="each")(layers.Embedding(9, 4, mask_zero=masked)(inputs)))


PADDED = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]])


def evaluate(distiller):
    distiller.compile("sgd")
    return distiller.evaluate(PADDED, verbose=0, return_dict=True)


def squares(teacher, student):
    return ops.mean(ops.square(teacher - student), axis=-1)


def test_masked_positions_in_functions():
    student, teacher = tokens(1), tokens(2)
    losses = [squares, SoftTargetsMSE(name="known")]
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=losses, student_loss_weight=0.0)
    logs = evaluate(distiller)
    expected = ((np.asarray(student(PADDED)) - np.asarray(teacher(PADDED))) ** 2).mean(-1)[PADDED > 0].mean()
    np.testing.assert_allclose(logs["squares_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(logs["known_loss"], expected, rtol=1e-4)
    blind = Distiller(
        student=student,
        teacher=teacher,
        distillation_losses=lambda t, s: ops.mean(ops.square(t - s), axis=(1, 2)),
        student_loss_weight=0.0,
    )
    with pytest.raises(ValueError, match="one value for each position"):
        evaluate(blind)


@pytest.mark.parametrize(("masks", "seen"), [((True, True), 0), ((True, False), 0), ((False, True), 0), ((0, 0), -1)])
def test_positions_that_one_of_the_models_masks_do_not_count(masks, seen):
    def model(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((5,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=bool(masks[seed - 1]))(inputs)
        x = layers.Dense(4, name="tokens", activation="tanh")(x)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    student, teacher = model(1), model(2)
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [3, 0, 0, 0, 0]])
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("tokens"))
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, np.array([0, 1, 2]), verbose=0, return_dict=True)
    t, s = (np.asarray(m.get_layer("tokens")(m.layers[1](x))) for m in (teacher, student))
    each = ((t - s) ** 2).mean(-1)
    np.testing.assert_allclose(logs["hint_loss"], each[x > seen].mean(), rtol=1e-4)


def test_a_masked_sequence_beside_one_of_another_length():
    def model(stride):
        inputs = keras.Input((6,), dtype="int32")
        x = layers.Embedding(9, 4, mask_zero=stride == 1)(inputs)
        x = layers.Dense(4, name="tokens")(x[:, ::stride] if stride > 1 else x)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    x, y = np.array([[1, 2, 3, 4, 0, 0]]), np.array([1])
    distiller = Distiller(student=model(2), teacher=model(1), distillation_losses=Hint("tokens"))
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="6 positions of the teacher and 3 of the student.*which are padding"):
        distiller.fit(x, y, verbose=0)


def test_a_position_counts_where_neither_masks_it():
    one, other = ops.ones((1, 3, 2)), ops.ones((1, 3, 2))
    assert common_mask(one, other) is None
    one._keras_mask = np.array([[True, True, False]])
    np.testing.assert_array_equal(common_mask(other, one), [[True, True, False]])
    other._keras_mask = np.array([[True, False, True]])
    np.testing.assert_array_equal(common_mask(one, other), [[True, False, False]])


def test_masked_positions_in_an_agreement():
    student, teacher = tokens(1), tokens(2, masked=False)
    z, t = np.asarray(student(PADDED)), np.asarray(teacher(PADDED))
    labels = np.where(PADDED > 0, t.argmax(-1), -1)
    found = agreement(teacher, student, (PADDED, labels), corruptions=None)
    assert found.teacher_accuracy == 1.0
    assert found.top1_agreement == np.mean((z.argmax(-1) == t.argmax(-1))[PADDED > 0])
    with pytest.raises(ValueError, match="Every position of output 'each' is masked"):
        agreement(teacher, student, PADDED * 0, corruptions=None)


def test_a_function_that_averages_over_the_batch():
    distiller = Distiller(student=mlp(1), teacher=mlp(2), distillation_losses=lambda t, s: ops.mean(t - s, axis=0))
    distiller.compile("sgd", hard_loss())
    with pytest.raises(ValueError, match="one value per sample"):
        distiller.fit(*data(), verbose=0)


def test_outputs_without_an_axis_for_units():
    def scalar(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6,))
        return keras.Model(inputs, ops.mean(layers.Dense(3)(inputs), axis=-1))

    student, teacher = scalar(1), scalar(2)
    for use in (
        lambda: Distiller(student=student, teacher=teacher),
        lambda: recommend(teacher, student),
        lambda: agreement(teacher, student, data()[0]),
    ):
        with pytest.raises(ValueError, match="without an axis for units"):
            use()
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=lambda t, s: ops.square(t - s))
    distiller.compile("sgd", "mse")
    distiller.fit(data()[0], np.ones(16), verbose=0)


def test_sparse_inputs():
    def model(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6,), sparse=True)
        return keras.Model(inputs, layers.Dense(3)(inputs))

    x, y = data()
    rows = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(x), y)).batch(8)
    distiller = Distiller(student=model(1), teacher=model(2))
    distiller.compile("sgd", hard_loss())
    assert np.isfinite(distiller.fit(rows, verbose=0).history["loss"][0])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_answers_of_a_teacher(value):
    teacher, student = mlp(2, name="big"), mlp(1)
    teacher.layers[-1].bias.assign([value, 0, 0])
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", hard_loss())
    with pytest.raises(ValueError, match="'big' gives NaN or infinity: 16 of"):
        distiller.fit(*data(), verbose=0)
    assert np.isfinite(student.layers[-1].kernel).all()


def test_corruptions_that_work_in_place_or_lose_samples():
    x = data()[0]
    before = x.copy()

    def worse(values, severity):
        values += 100 * severity
        return values

    found = agreement(mlp(1), mlp(2), x, corruptions={"worse": worse, "same": lambda v, _: v}, severities=2)
    np.testing.assert_array_equal(x, before)
    assert [(one.name, one.severity) for one in found.corruptions] == [("worse", 2.0), ("same", 2.0)]
    assert found.corruptions[1].top1_agreement == found.top1_agreement
    with pytest.raises(ValueError, match=r"the shape it gets, \(16, 6\); it returned \(1, 6\)"):
        agreement(mlp(1), mlp(2), x, corruptions={"fewer": lambda v, _: v[:1]})


def test_arguments_are_fixed_and_nothing_but_students_is_exported(tmp_path):
    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    for name in ("student", "distillation_losses", "distillation_loss_weights", "from_logits", "student_loss_weight"):
        with pytest.raises(AttributeError, match=f"`{name}` of a Distiller is fixed"):
            setattr(distiller, name, None)
    for model in (distiller, MutualLearning(students=[mlp(1), mlp(2)])):
        with pytest.raises(TypeError, match="no model to ship"):
            model.export(tmp_path / "e")
    with pytest.raises(TypeError, match="`teacher` is a Distiller"):
        Distiller(student=mlp(3), teacher=distiller)


def test_averages_that_a_coarse_dtype_would_lose():
    inputs = keras.Input((6,), dtype="bfloat16")
    student = keras.Model(inputs, layers.Dense(3, dtype="bfloat16")(inputs))
    with pytest.raises(ValueError, match="which bfloat16 cannot hold"):
        Distiller(student=student, teacher=MeanTeacher())
    mixed = keras.Model(inputs, layers.Dense(3, dtype="mixed_bfloat16")(inputs))
    Distiller(student=mixed, teacher=MeanTeacher(), distillation_losses=SoftTargets(1.0))


def test_a_metric_of_the_name_of_a_loss():
    distiller = Distiller(student=mlp(1), teacher=mlp(2))
    metric = keras.metrics.SparseCategoricalAccuracy(name="soft_targets_loss")
    distiller.compile("sgd", hard_loss(), metrics=[metric])
    with pytest.raises(ValueError, match="'soft_targets_loss' would be in the logs twice"):
        distiller.fit(*data(), verbose=0)
