"""Features before the ReLU against NumPy, in float64, and the margin against a million samples."""

import keras
import numpy as np
import pytest
from bound_losses import assert_gradient, bound, by_position, normal, values_of
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.overhaul import OverhaulFeature, negative_mean, partial_distance


def test_negative_mean_is_that_of_a_million_samples():
    mean, deviation = np.array([0.0, 0.5, -0.8, 2.0, -5.0]), np.array([1.0, 0.3, 2.0, 1.5, 0.1])
    samples = mean + deviation * np.random.default_rng(0).normal(size=(1_000_000, 5))
    expected = [column[column < 0].mean() for column in samples.T]
    found = negative_mean(mean.astype("float32"), deviation.astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_negative_mean_where_hardly_anything_is_negative_and_where_nothing_varies():
    found = negative_mean(np.array([4.0, 50.0, 0.0, -2.0], "float32"), np.array([1.0, 0.1, 0.0, 0.0], "float32"))
    np.testing.assert_allclose(found, [-3.0, -0.3, 0.0, -2.0], rtol=1e-6, atol=1e-6)


def oracle(teacher, student, margin):
    def distance(t, s):
        total = 0.0
        for a, b, m in zip(t, s, margin, strict=True):
            a = max(a, m)
            total += 0.0 if b <= a <= 0 else (a - b) ** 2
        return total / len(t)

    return by_position(distance, teacher, student)


def normalization(gamma, beta):
    layer = layers.BatchNormalization()
    layer.build((None, len(gamma)))
    layer.gamma.assign(gamma)
    layer.beta.assign(beta)
    return layer


def test_overhaul():
    teacher, student = normal(2, 3, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    gamma, beta = normal(5, seed=3), normal(5, seed=4)
    margin = np.asarray(negative_mean(beta, np.abs(gamma)), "float64")
    assert np.all(margin < 0)
    loss = bound(OverhaulFeature("a"), teacher, student, operation=normalization(gamma, beta))
    expected = oracle(teacher, student, margin)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-4, atol=1e-7)
    assert_gradient(lambda s: values_of(loss, teacher, s), lambda s: oracle(teacher, s, margin), student, rtol=2e-3)
    fixed = bound(OverhaulFeature("a", margin=-0.3), teacher, student)
    expected = oracle(teacher, student, [-0.3] * 5)
    np.testing.assert_allclose(values_of(fixed, teacher, student), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(("center", "scale"), [(False, True), (True, False), (False, False)])
def test_the_margin_of_a_normalization_without_beta_or_gamma(center, scale):
    teacher, student = normal(2, 3, 3, 2, seed=1), normal(2, 3, 3, 2, seed=2)
    layer = layers.BatchNormalization(center=center, scale=scale)
    layer.build((None, 2))
    beta, gamma = np.array([0.0, 0.4]) * center, np.array([2.0, 3.0]) if scale else np.ones(2)
    for variable, value in ((layer.beta, beta), (layer.gamma, gamma)):
        if variable is not None:
            variable.assign(value)
    loss = bound(OverhaulFeature("a"), teacher, student, operation=layer)
    margin = np.asarray(negative_mean(beta.astype("float32"), gamma.astype("float32")), "float64")
    expected = oracle(teacher, student, margin)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-4, atol=1e-6)


def test_partial_distance_case_by_case():
    teacher = np.array([[-1.0], [-1.0], [-1.0], [2.0], [2.0], [0.0], [0.0]], "float32")
    student = np.array([[-3.0], [-0.5], [1.0], [-1.0], [3.0], [-1.0], [1.0]], "float32")
    np.testing.assert_allclose(partial_distance(teacher, student), [0, 0.25, 4, 9, 1, 0, 1])


def net(seed, width):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(width, 3, name="conv")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def test_a_loaded_distiller_reads_the_margin_of_the_loaded_teacher(tmp_path):
    teacher = net(2, 4)
    teacher.get_layer("norm").gamma.assign([0.1, 2.0, -1.0, 0.5])
    teacher.get_layer("norm").beta.assign([0.3, -1.0, 0.2, 0.0])
    distiller = Distiller(
        student=net(1, 3),
        teacher=teacher,
        distillation_losses=[OverhaulFeature("norm")],
        student_loss_weight=0.0,
    )
    distiller.compile("sgd", run_eagerly=True)
    x = normal(4, 4, 4, 2)
    expected = distiller.evaluate(x, verbose=0, return_dict=True)["loss"]
    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    assert loaded.evaluate(x, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_margin_it_cannot_read_is_refused():
    maps = normal(2, 3, 3, 5)
    with pytest.raises(ValueError, match="Tap the BatchNormalization before the ReLU"):
        bound(OverhaulFeature("a"), maps, maps, operation=layers.ReLU())
    with pytest.raises(ValueError, match="number <= 0"):
        OverhaulFeature("a", margin=0.1)
