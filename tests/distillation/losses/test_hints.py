"""Features as they are against NumPy, in float64: hints, cosines, and what masks leave out."""

import numpy as np
import pytest
from bound_losses import assert_gradient, bound, by_position, computed, gradient, normal, recorded, values_of

from kdopt.distillation.losses.hint import CosineFeature, Hint, unit


def mean_square(t, s):
    return sum((a - b) ** 2 for a, b in zip(t, s, strict=True)) / len(t)


def cosine_distance(t, s):
    return 1 - np.dot(t, s) / (np.linalg.norm(t) * np.linalg.norm(s))


@pytest.mark.parametrize(("loss", "distance"), [(Hint, mean_square), (CosineFeature, cosine_distance)])
@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (2, 3, 4, 5)])
def test_hint_and_cosine(loss, distance, shape):
    teacher, student = normal(*shape, seed=1), normal(*shape, seed=2)
    np.testing.assert_allclose(computed(loss(), teacher, student), by_position(distance, teacher, student), rtol=1e-4)
    made = bound(loss(), teacher, student)
    assert_gradient(lambda s: values_of(made, teacher, s), lambda s: by_position(distance, teacher, s), student)


def test_hint_through_a_projector_and_another_resolution():
    teacher, student = normal(2, 8, 6, 5, seed=1), normal(2, 4, 3, 3, seed=2)
    loss = bound(Hint(), teacher, student)
    kernel, bias = (np.asarray(v, "float64") for v in loss.parts[0].weights)
    averaged = teacher.astype("float64").reshape(2, 4, 2, 3, 2, 5).mean(axis=(2, 4))
    mapped = np.einsum("bhwc,cd->bhwd", student, kernel) + bias
    found = values_of(loss, teacher, student)
    np.testing.assert_allclose(found, by_position(mean_square, averaged, mapped), rtol=1e-4)


def test_a_masked_sequence_counts_where_it_is_not_masked():
    teacher, student = normal(2, 4, 3, seed=1), normal(2, 4, 3, seed=2)
    mask = np.array([[True, True, False, False], [True, True, True, True]])
    beside_vector = bound(Hint(), teacher[:, 0], student)
    found = beside_vector.compute([recorded(teacher[:, 0])], [recorded(student, mask)])[0]
    averaged = np.stack([student[0, :2].mean(0), student[1].mean(0)])
    np.testing.assert_allclose(found, by_position(mean_square, teacher[:, 0], averaged), rtol=1e-5)
    vector_beside = bound(Hint(), teacher, student[:, 0])
    found = vector_beside.compute([recorded(teacher, mask)], [recorded(student[:, 0])])[0]
    averaged = np.stack([teacher[0, :2].mean(0), teacher[1].mean(0)])
    np.testing.assert_allclose(found, by_position(mean_square, averaged, student[:, 0]), rtol=1e-5)


def test_unit_is_gentle_at_zero():
    values = np.array([[0.0, 0.0], [3.0, 4.0], [1e-4, 0.0]], "float32")
    np.testing.assert_allclose(unit(values), [[0, 0], [0.6, 0.8], [1, 0]], rtol=1e-6)
    slope = gradient(lambda v: unit(v)[:, 1], values)
    np.testing.assert_array_equal(slope[0], [0, 0])
    np.testing.assert_allclose(slope[1], [-12 / 125, 9 / 125], rtol=1e-5)  # (I - u u^T) / |v|
