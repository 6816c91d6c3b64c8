"""Losses with trained parts against NumPy, in float64: FactorTransfer, VID, CRD."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from bound_losses import assert_gradient, bound, normal, recorded, tapped, values_of
from keras import layers, ops

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.contrastive import CRD, contrast
from kdopt.distillation.losses.factors import FactorTransfer, factor_distance
from kdopt.distillation.losses.variational import VID, negative_log_likelihood


def factor_oracle(teacher, student):
    found = []
    for t, s in zip(np.asarray(teacher, "float64"), np.asarray(student, "float64"), strict=True):
        t, s = t.ravel(), s.ravel()
        found.append(np.mean(np.abs(t / math.sqrt(np.sum(t**2)) - s / math.sqrt(np.sum(s**2)))))
    return np.array(found)


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 3, 4, 2)])
def test_factor_distance(shape):
    teacher, student = normal(*shape, seed=1), normal(*shape, seed=2)
    np.testing.assert_allclose(factor_distance(teacher, student), factor_oracle(teacher, student), rtol=1e-4)
    assert_gradient(lambda s: factor_distance(teacher, s), lambda s: factor_oracle(teacher, s), student)


@pytest.mark.parametrize("training", [False, True])
def test_the_paraphraser_learns_to_rebuild_and_the_student_to_translate(training):
    teacher, student = normal(4, 4, 3, 6, seed=1), normal(4, 4, 3, 5, seed=2)
    loss = bound(FactorTransfer(rate=0.5), teacher, student)
    loss.training = training
    paraphraser, decoder, translator = loss.parts
    assert [part.output_shape[-1] for part in loss.parts] == [3, 6, 3]
    variable = tf.Variable(student)
    with tf.GradientTape(persistent=True) as tape:
        value = ops.sum(values_of(loss, teacher, variable.value()))
        rebuilt = decoder(paraphraser(teacher, training=training), training=training)
        rebuilding = ops.sum(ops.mean(ops.square(teacher - rebuilt), axis=(1, 2, 3)))
        factors = tf.stop_gradient(paraphraser(teacher, training=training))
        translating = ops.sum(factor_distance(factors, translator(variable.value(), training=training)))
    np.testing.assert_allclose(value, rebuilding + translating, rtol=1e-4)
    for part, source in ((paraphraser, rebuilding), (decoder, rebuilding), (translator, translating)):
        own = [variable.value for variable in part.trainable_variables]
        for got, expected in zip(tape.gradient(value, own), tape.gradient(source, own), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        tape.gradient(value, variable), tape.gradient(translating, variable), rtol=1e-3, atol=1e-6
    )


def likelihood_oracle(teacher, mean, variance):
    """-log N(t; m, sigma^2) of each position, mean over channels, without log sqrt(2 pi)."""
    t, m = (np.asarray(one, "float64") for one in (teacher, mean))
    found = np.zeros(t.shape[:-1])
    for place in np.ndindex(*t.shape):
        sigma = math.sqrt(variance[place[-1]])
        log_density = -0.5 * ((t[place] - m[place]) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
        found[place[:-1]] += (-log_density - math.log(2 * math.pi) / 2) / t.shape[-1]
    return found


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 4)])
def test_vid_is_a_gaussian_likelihood(shape):
    teacher, student = normal(*shape, seed=1), normal(*shape, seed=2)
    variance = np.array([0.3, 1.0, 2.5, 7.0])
    found = negative_log_likelihood(teacher, student, variance.astype("float32"))
    np.testing.assert_allclose(found, likelihood_oracle(teacher, student, variance), rtol=1e-4, atol=1e-6)
    assert_gradient(
        lambda s: negative_log_likelihood(teacher, s, variance.astype("float32")),
        lambda s: likelihood_oracle(teacher, s, variance),
        student,
    )


@pytest.mark.parametrize("start", [2e-5, 0.1, 5.0, 400.0])
def test_vid_starts_at_its_variance_and_trains_it(start):
    teacher, student = normal(2, 3, 4, seed=1), normal(2, 3, 5, seed=2)
    loss = bound(VID(variance=start, projector=layers.Dense(4)), teacher, student)
    projector, variance = loss.parts
    np.testing.assert_allclose(variance(teacher), np.full(4, start), rtol=1e-3)
    expected = likelihood_oracle(teacher, projector(student), [start] * 4)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-3)
    variance.alpha.assign([-1.0, 0.0, 1.0, 2.0])
    expected = likelihood_oracle(teacher, projector(student), np.log1p(np.exp([-1.0, 0.0, 1.0, 2.0])) + 1e-5)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-4)


@pytest.mark.parametrize("start", [0, 1e-5, 1e4])
def test_vid_refuses_a_variance_that_it_cannot_start_at(start):
    with pytest.raises(ValueError, match="`variance` must be"):
        VID(variance=start)


def contrast_oracle(anchors, others, temperature, bank=(), scale=None):
    """By h = r / (r + N) and loops; `scale` is z, by default the mean of exp over all negatives."""
    a, o = (np.asarray(one, "float64") for one in (anchors, others))
    bank = [np.asarray(one, "float64") / np.linalg.norm(one) for one in bank]
    count = len(a) - 1 + len(bank)
    negatives = [[x for j, x in enumerate(o) if j != i] + bank for i in range(len(a))]
    if scale is None:
        scale = np.mean([np.exp(a[i] @ x / temperature) for i in range(len(a)) for x in negatives[i]])

    def h(x, y):
        r = np.exp(x @ y / temperature) / scale
        return r / (r + count)

    return np.array(
        [-np.log(h(a[i], o[i])) - sum(np.log(1 - h(a[i], x)) for x in negatives[i]) for i in range(len(a))]
    ), scale


def embeddings(*shape, seed):
    values = normal(*shape, seed=seed)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("bank", [None, 6])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_contrast(temperature, bank):
    anchors, others = embeddings(5, 4, seed=1), embeddings(5, 4, seed=2)
    kept = None if bank is None else normal(bank, 4, seed=3)
    expected, scale = contrast_oracle(anchors, others, temperature, () if kept is None else kept)
    np.testing.assert_allclose(contrast(anchors, others, temperature, kept), expected, rtol=2e-4)
    # The scale is what the authors fix after their first batch: no gradient passes through it.
    assert_gradient(
        lambda s: contrast(s, others, temperature, kept),
        lambda s: contrast_oracle(s, others, temperature, () if kept is None else kept, scale)[0],
        anchors,
        rtol=2e-3,
    )


def crd_oracle(loss, teacher, student, banks=((), ())):
    def embedded(values, head):
        kernel, bias = (np.asarray(weight, "float64") for weight in head.weights)
        rows = np.asarray(values, "float64").reshape(len(values), -1) @ kernel + bias
        return np.array([row / np.linalg.norm(row) for row in rows])

    t, s = (embedded(values, head) for values, head in zip((teacher, student), loss.parts, strict=True))
    both = contrast_oracle(s, t, loss.temperature, banks[0])[0] + contrast_oracle(t, s, loss.temperature, banks[1])[0]
    return both, t, s


def test_crd_within_the_batch():
    teacher, student = normal(5, 3, 2, 2, seed=1), normal(5, 4, seed=2)
    loss = bound(CRD(dimensions=6, temperature=0.2), teacher, student)
    for head in loss.parts:
        head.bias.assign(normal(6, seed=9, scale=0.1))
    np.testing.assert_allclose(values_of(loss, teacher, student), crd_oracle(loss, teacher, student)[0], rtol=1e-3)


def test_crd_keeps_the_last_embeddings_as_negatives():
    batches = [(normal(3, 5, seed=k), normal(3, 4, seed=k + 50)) for k in range(4)]
    loss = bound(CRD(dimensions=6, temperature=0.3, bank=7), *batches[0])
    bank = loss.extras[0]
    start = np.array(bank.teacher), np.array(bank.student)
    pushed = [list(side) for side in start]  # the newest first
    for training, (teacher, student) in zip((True, False, True, True), batches, strict=True):
        loss.training = training
        expected, t, s = crd_oracle(loss, teacher, student, pushed)
        np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-3)
        if training:
            pushed = [[*new, *old][:7] for new, old in zip((t, s), pushed, strict=True)]
        np.testing.assert_allclose(bank.teacher, pushed[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(bank.student, pushed[1], rtol=1e-4, atol=1e-6)
    assert len(pushed[0]) == 7  # of the 9 pushed the oldest two are gone, and all of the start
    assert not set(np.ravel(start[0]).tolist()) & set(np.ravel(bank.teacher).tolist())


def test_crd_wants_fixed_shapes():
    with pytest.raises(ValueError, match="must be fixed"):
        CRD().build([tapped((None, None, 3))], [tapped((None, 4))])


def small_net(seed, width):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(width, activation="relu")(inputs)))


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_the_bank_is_filled_in_a_compiled_fit_and_saved(tmp_path):
    loss = CRD(dimensions=4, temperature=0.5, bank=10)
    distiller = Distiller(
        student=small_net(1, 5), teacher=small_net(2, 7), distillation_losses=[loss], student_loss_weight=0.0
    )
    distiller.compile(keras.optimizers.SGD(0.01))
    x = normal(16, 6)
    start = np.array(loss.extras[0].teacher)
    distiller.fit(x, batch_size=4, epochs=1, verbose=0)
    kept = np.array(loss.extras[0].teacher)
    assert not np.isin(kept, start).any()
    np.testing.assert_allclose(np.linalg.norm(kept, axis=-1), np.ones(10), rtol=1e-5)
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    np.testing.assert_array_equal(loaded.distillation_losses[0].extras[0].teacher, kept)
    both = [one.evaluate(x, verbose=0, return_dict=True)["loss"] for one in (distiller, loaded)]
    assert both[1] == pytest.approx(both[0], rel=1e-5)
    np.testing.assert_array_equal(loss.extras[0].teacher, kept)  # evaluation leaves it as it is


def test_parts_of_a_masked_sequence_see_zeros():
    teacher, student = normal(2, 4, 3, seed=1), normal(2, 4, 3, seed=2)
    mask = np.array([[True, True, False, False], [True, True, True, True]])
    loss = bound(FactorTransfer(), teacher, student)
    found = loss.compute([recorded(teacher)], [recorded(student, mask)])[0]
    seen = mask[..., None].astype("float32")
    np.testing.assert_allclose(found, values_of(loss, teacher * seen, student * seen), rtol=1e-5)
