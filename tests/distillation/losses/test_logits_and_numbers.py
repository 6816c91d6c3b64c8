"""Losses on outputs against NumPy, in float64, written from the papers."""

import keras
import numpy as np
import pytest
from bound_losses import assert_gradient, gradient, normal
from distillation_oracles import hinton, softmax

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.channel_wise import ChannelWise
from kdopt.distillation.losses.decoupled import DecoupledKD
from kdopt.distillation.losses.logits import SoftTargetsMSE
from kdopt.distillation.losses.regression import Regression
from kdopt.distillation.losses.standardized import DIST, LogitStandardization, correlation

SHAPES = [(6, 5), (2, 3, 4)]


def pair(shape, scale=3.0):
    return normal(*shape, seed=1, scale=scale), normal(*shape, seed=2, scale=scale)


def labels_for(shape):
    return np.random.default_rng(3).integers(0, shape[-1], shape[:-1]).astype("int32")


def each_row(function, *arrays):
    """Calls a function of vectors on every row, float64."""
    arrays = [np.asarray(one, "float64") for one in arrays]
    found = np.empty(arrays[0].shape[:-1])
    for place in np.ndindex(found.shape):
        found[place] = function(*(one[place] for one in arrays))
    return found


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def zhao(teacher, student, label, temperature):
    """(TCKD, NCKD, p_t of the teacher) of one sample, by probabilities; Zhao et al. 2022, section 3.1."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    rest = [k for k in range(len(p)) if k != label]
    target = kl([p[label], 1 - p[label]], [q[label], 1 - q[label]])
    p_hat, q_hat = (one[rest] / one[rest].sum() for one in (p, q))
    return target, kl(p_hat, q_hat), p[label]


def decoupled_oracle(teacher, student, labels, temperature, alpha, beta):
    def one(t, s, y):
        target, other, _ = zhao(t, s, int(y[0]), temperature)
        return temperature**2 * (alpha * target + beta * other)

    return each_row(one, teacher, student, labels[..., None])


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoupled_is_the_two_parts_of_the_paper(shape, temperature):
    teacher, student = pair(shape)
    labels = labels_for(shape)
    loss = DecoupledKD(alpha=0.7, beta=3.0, temperature=temperature)
    expected = decoupled_oracle(teacher, student, labels, temperature, 0.7, 3.0)
    np.testing.assert_allclose(loss.compute_loss(teacher, student, labels=labels), expected, rtol=1e-4, atol=1e-6)


def test_decoupled_with_the_doubt_of_the_teacher_as_beta_is_hintons_loss():
    """KD = TCKD + (1 - p_t) NCKD, of each sample (equation 6 of the paper)."""
    teacher, student = pair((8, 5))
    labels = labels_for((8, 5))
    doubt = [1 - zhao(t, s, y, 4.0)[2] for t, s, y in zip(teacher, student, labels, strict=True)]
    found = [
        float(DecoupledKD(1.0, float(doubt[n]), 4.0).compute_loss(teacher[[n]], student[[n]], labels=labels[[n]])[0])
        for n in range(8)
    ]
    np.testing.assert_allclose(found, hinton(teacher, student, 4.0), rtol=1e-4)


def test_decoupled_gradient_target_of_the_teacher_and_unlabeled_samples():
    teacher, student = pair((6, 5))
    likely = teacher.argmax(-1)
    labels = labels_for((6, 5))
    labels[:3] = -1
    by_teacher = DecoupledKD(target="teacher").compute_loss(teacher, student)
    expected = decoupled_oracle(teacher, student, likely, 4.0, 1.0, 8.0)
    np.testing.assert_allclose(by_teacher, expected, rtol=1e-4)
    mixed = np.where(labels < 0, likely, labels)
    loss = DecoupledKD()
    expected = decoupled_oracle(teacher, student, mixed, 4.0, 1.0, 8.0)
    np.testing.assert_allclose(loss.compute_loss(teacher, student, labels=labels), expected, rtol=1e-4)
    assert_gradient(
        lambda s: loss.compute_loss(teacher, s, labels=labels),
        lambda s: decoupled_oracle(teacher, s, mixed, 4.0, 1.0, 8.0),
        student,
    )
    with pytest.raises(ValueError, match='target="teacher"'):
        loss.compute_loss(teacher, student)


def test_decoupled_stays_finite_where_the_teacher_is_certain():
    teacher = np.array([[200.0, -200.0, 0.0], [0.0, 300.0, 0.0]], "float32")
    student = np.array([[-200.0, 0.0, 200.0], [0.0, 0.0, 0.0]], "float32")
    labels = np.array([0, 1], "int32")
    loss = DecoupledKD(temperature=1.0)
    assert np.isfinite(loss.compute_loss(teacher, student, labels=labels)).all()
    assert np.isfinite(gradient(lambda s: loss.compute_loss(teacher, s, labels=labels), student)).all()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("shape", SHAPES)
def test_soft_targets_mse(shape, activation):
    teacher, student = pair(shape)
    found = SoftTargetsMSE().compute_loss(teacher, student, activation)
    by_logits = each_row(lambda t, s: sum((t - s) ** 2) / len(t), teacher, student)
    np.testing.assert_allclose(found, by_logits, rtol=1e-5)
    squash = softmax if activation == "softmax" else lambda z: 1 / (1 + np.exp(-z))

    def probabilities(t, s):
        return 9.0 * np.mean((squash(t / 3.0) - squash(s / 3.0)) ** 2)

    loss = SoftTargetsMSE("probabilities", 3.0)
    np.testing.assert_allclose(
        loss.compute_loss(teacher, student, activation), each_row(probabilities, teacher, student), rtol=1e-4
    )
    assert_gradient(
        lambda s: loss.compute_loss(teacher, s, activation), lambda s: each_row(probabilities, teacher, s), student
    )


def dist_oracle(teacher, student, beta, gamma, temperature):
    p, q = (softmax(np.asarray(z, "float64") / temperature).reshape(-1, z.shape[-1]) for z in (teacher, student))
    rows = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)])
    columns = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)])
    return (temperature**2 * (beta * (1 - rows) + gamma * np.mean(1 - columns))).reshape(teacher.shape[:-1])


@pytest.mark.parametrize("shape", SHAPES)
def test_dist_is_pearsons_correlation(shape):
    teacher, student = pair(shape, 1.0)
    loss = DIST(beta=0.7, gamma=2.0, temperature=3.0)
    expected = dist_oracle(teacher, student, 0.7, 2.0, 3.0)
    np.testing.assert_allclose(loss.compute_loss(teacher, student), expected, rtol=1e-4)
    assert_gradient(
        lambda s: loss.compute_loss(teacher, s), lambda s: dist_oracle(teacher, s, 0.7, 2.0, 3.0), student, rtol=2e-3
    )


def test_dist_of_a_sure_teacher_whose_classes_are_nearly_all_improbable():
    teacher, student = normal(8, 20, seed=1, scale=12.0), normal(8, 20, seed=2, scale=12.0)
    expected = dist_oracle(teacher, student, 1.0, 1.0, 1.0)
    np.testing.assert_allclose(DIST().compute_loss(teacher, student), expected, rtol=1e-3)


def test_dist_leaves_masked_positions_out_of_its_columns():
    teacher, student = pair((2, 4, 3), 1.0)
    mask = np.array([[True, True, True, False], [True, True, False, False]])
    found = np.asarray(DIST().compute_loss(teacher, student, mask=mask))
    np.testing.assert_allclose(found[mask], dist_oracle(teacher[mask], student[mask], 1.0, 1.0, 1.0), rtol=1e-4)


def test_the_distiller_gives_dist_the_mask():
    def net(seed):
        keras.utils.set_random_seed(seed)
        embedding = keras.layers.Embedding(7, 4, mask_zero=True, embeddings_initializer="random_normal")
        return keras.Sequential([keras.Input((5,), dtype="int32"), embedding, keras.layers.Dense(3)])

    student, teacher = net(1), net(2)
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 1, 2, 3, 4]])
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[DIST()], student_loss_weight=0.0)
    with distiller.one_step():
        found = distiller.compute_loss(x, y_pred=distiller(x), training=False)
    expected = dist_oracle(np.asarray(teacher(x))[x > 0], np.asarray(student(x))[x > 0], 1.0, 1.0, 1.0)
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-4)


@pytest.mark.parametrize("offset", [0.0, 0.3, 1000.0])
def test_correlation_with_a_constant_is_zero(offset):
    constant = np.full((3, 10), offset, "float32")
    other = normal(3, 10)
    np.testing.assert_allclose(correlation(constant, other), np.zeros(3), atol=1e-6)
    np.testing.assert_array_equal(gradient(lambda s: correlation(other, s), constant), np.zeros_like(constant))


def standardized_oracle(teacher, student, temperature):
    def z(values):  # algorithm 1 of the paper: the deviation over all K classes
        return (values - np.mean(values)) / np.sqrt(np.sum((values - np.mean(values)) ** 2) / len(values))

    return each_row(lambda t, s: hinton(z(t), z(s), temperature), teacher, student)


@pytest.mark.parametrize("shape", SHAPES)
def test_logit_standardization(shape):
    teacher, student = pair(shape)
    loss = LogitStandardization(2.0)
    expected = standardized_oracle(teacher, student, 2.0)
    np.testing.assert_allclose(loss.compute_loss(teacher, student), expected, rtol=1e-4)
    assert_gradient(
        lambda s: loss.compute_loss(teacher, s), lambda s: standardized_oracle(teacher, s, 2.0), student, rtol=2e-3
    )


def test_logit_standardization_leaves_scale_and_shift_free():
    teacher, student = pair((6, 5))
    loss = LogitStandardization()
    expected = loss.compute_loss(teacher, student)
    for scale, shift in ((0.01, 0.0), (7.0, -3.0), (1e-4, 0.0)):
        np.testing.assert_allclose(loss.compute_loss(teacher, scale * student + shift), expected, rtol=1e-3)
    np.testing.assert_allclose(loss.compute_loss(student, 5 * student + 1), np.zeros(6), atol=1e-5)


@pytest.mark.parametrize(("distance", "d"), [("l2", np.square), ("l1", np.abs)])
@pytest.mark.parametrize("shape", [(6, 2), (2, 3, 1)])
def test_regression(shape, distance, d):
    teacher, student = pair(shape, 1.0)
    labels = normal(*shape, seed=4)
    found = Regression(distance).compute_loss(teacher, student)
    np.testing.assert_allclose(found, each_row(lambda t, s: np.mean(d(s - t)), teacher, student), rtol=1e-5)

    def bounded(t, s, y):
        ours, theirs = np.mean(d(s - y)), np.mean(d(t - y))
        return ours if ours + 0.2 > theirs else 0.0

    expected = each_row(bounded, teacher, student, labels)
    assert 0 < np.count_nonzero(expected) < expected.size
    loss = Regression(distance, margin=0.2)
    np.testing.assert_allclose(loss.compute_loss(teacher, student, labels=labels), expected, rtol=1e-5)
    assert_gradient(
        lambda s: loss.compute_loss(teacher, s, labels=labels), lambda s: each_row(bounded, teacher, s, labels), student
    )
    with pytest.raises(ValueError, match="compares both models with the labels"):
        loss.compute_loss(teacher, student)


@pytest.mark.parametrize(
    ("loss", "message"), [(Regression(), None), (Regression(margin=0.1), r"has shape .*, but its labels have shape")]
)
def test_regression_needs_labels_of_its_shape_only_with_a_margin(loss, message):
    def net(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])

    distiller = Distiller(student=net(1), teacher=net(2), distillation_losses=[loss], student_loss_weight=0.0)
    x, classes = normal(8, 3), np.arange(8) % 4

    def value():
        return distiller.compute_loss(x, classes, distiller(x), training=False)

    if message is None:
        expected = np.mean((np.asarray(distiller.teacher(x)) - np.asarray(distiller.student(x))) ** 2)
        np.testing.assert_allclose(value(), expected, rtol=1e-5)
    else:
        with pytest.raises(ValueError, match=message):
            value()


def channel_wise_oracle(teacher, student, temperature):
    t, s = (np.asarray(z, "float64").reshape(len(z), -1, z.shape[-1]) for z in (teacher, student))
    found = np.zeros(len(t))
    for n in range(len(t)):
        for c in range(t.shape[-1]):
            found[n] += kl(softmax(t[n, :, c] / temperature), softmax(s[n, :, c] / temperature))
    return temperature**2 / t.shape[-1] * found


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 3, 4, 3)])
def test_channel_wise(shape):
    teacher, student = pair(shape)
    loss = ChannelWise(3.0)
    expected = channel_wise_oracle(teacher, student, 3.0)
    np.testing.assert_allclose(loss.compute_loss(teacher, student), expected, rtol=1e-4)
    assert_gradient(lambda s: loss.compute_loss(teacher, s), lambda s: channel_wise_oracle(teacher, s, 3.0), student)


def test_channel_wise_needs_positions():
    with pytest.raises(ValueError, match="compares positions"):
        ChannelWise().compute_loss(*pair((4, 3)))
