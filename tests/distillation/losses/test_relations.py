"""Losses on relations between samples against NumPy, in float64, by loops over pairs and triples."""

import math

import numpy as np
import pytest
from bound_losses import assert_gradient, bound, computed, gradient, normal, recorded, values_of

from kdopt.distillation.losses.relational import RelationalAngle, RelationalDistance, angles, relative_distances
from kdopt.distillation.losses.similarity import PKT, CorrelationCongruence, SimilarityPreserving


def flat(values):
    return np.asarray(values, "float64").reshape(len(values), -1)


def pairs(samples):
    return [(i, j) for i in range(samples) for j in range(samples) if i != j]


def huber(x):
    return x**2 / 2 if abs(x) <= 1 else abs(x) - 0.5


def distance_oracle(teacher, student):
    n = len(teacher)
    sides = []
    for x in (flat(teacher), flat(student)):
        d = {(i, j): np.linalg.norm(x[i] - x[j]) for i, j in pairs(n)}
        sides.append((d, sum(d.values()) / len(d)))
    (d_t, mu_t), (d_s, mu_s) = sides
    found = np.zeros(n)
    for i, j in pairs(n):
        found[i] += huber(d_t[i, j] / mu_t - d_s[i, j] / mu_s) / (n - 1)
    return found


def cosine_at(x, i, j, k):
    e, f = x[i] - x[j], x[k] - x[j]
    lengths = np.linalg.norm(e) * np.linalg.norm(f)
    return e @ f / lengths if lengths else 0.0


def angle_oracle(teacher, student):
    t, s = flat(teacher), flat(student)
    n = len(t)
    found = np.zeros(n)
    for j in range(n):
        for i in range(n):
            for k in range(n):
                found[j] += huber(cosine_at(t, i, j, k) - cosine_at(s, i, j, k)) / n**2
    return found


def similarity_oracle(teacher, student):
    g = []
    for x in (flat(teacher), flat(student)):
        rows = np.array([[a @ b for b in x] for a in x])
        g.append(np.array([row / np.linalg.norm(row) for row in rows]))
    return np.sum((g[0] - g[1]) ** 2, axis=1) / len(teacher)


def units(x):
    return np.array([row / np.linalg.norm(row) for row in flat(x)])


def taylor(x, y, gamma, order):
    return sum(math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * (x @ y) ** p for p in range(order + 1))


def exact(x, y, gamma, _):
    return math.exp(-gamma * np.sum((x - y) ** 2))


def congruence_oracle(teacher, student, gamma=0.4, order=2, kernel=taylor):
    t, s = units(teacher), units(student)
    n = len(t)
    found = np.zeros(n)
    for i in range(n):
        for j in range(n):
            found[i] += (kernel(t[i], t[j], gamma, order) - kernel(s[i], s[j], gamma, order)) ** 2 / n
    return found


def pkt_oracle(teacher, student):
    sides = []
    for x in (units(teacher), units(student)):
        k = {(i, j): (x[i] @ x[j] + 1) / 2 for i, j in pairs(len(x))}
        sides.append({(i, j): k[i, j] / sum(k[i, m] for m in range(len(x)) if m != i) for i, j in k})
    p, q = sides
    found = np.zeros(len(teacher))
    for i, j in p:
        found[i] += p[i, j] * np.log(p[i, j] / q[i, j])
    return found


ORACLES = [
    (RelationalDistance, distance_oracle),
    (RelationalAngle, angle_oracle),
    (SimilarityPreserving, similarity_oracle),
    (CorrelationCongruence, congruence_oracle),
    (PKT, pkt_oracle),
]
each_relation = pytest.mark.parametrize(("loss", "oracle"), ORACLES, ids=lambda x: x.__name__)


@each_relation
@pytest.mark.parametrize("shapes", [((6, 7), (6, 3)), ((4, 3, 2, 3), (4, 2, 2, 2)), ((5, 6), (5, 3, 2))])
def test_relations(loss, oracle, shapes):
    teacher, student = (normal(*shape, seed=seed + 1) for seed, shape in enumerate(shapes))
    made = bound(loss(), teacher, student)
    assert not made.parts
    expected = oracle(teacher, student)
    np.testing.assert_allclose(values_of(made, teacher, student), expected, rtol=2e-4, atol=1e-6)
    assert_gradient(lambda s: values_of(made, teacher, s), lambda s: oracle(teacher, s), student, rtol=2e-3)


@each_relation
def test_far_from_the_origin(loss, oracle):
    """Features of ReLUs share a large mean; their differences must not drown in float32."""
    teacher, student = 100 + normal(5, 8, seed=1), 100 + normal(5, 4, seed=2)
    expected = oracle(teacher, student)
    np.testing.assert_allclose(computed(loss(), teacher, student), expected, rtol=1e-2, atol=1e-6)


@each_relation
def test_scale_is_free(loss, oracle):
    teacher, student = normal(5, 4, seed=1), normal(5, 3, seed=2)
    expected = computed(loss(), teacher, student)
    np.testing.assert_allclose(computed(loss(), 5 * teacher, 0.01 * student), expected, rtol=1e-3, atol=1e-6)


def test_relative_distances_have_mean_one():
    found = np.asarray(relative_distances(normal(6, 3)))
    assert found.sum() == pytest.approx(6 * 5, rel=1e-5)
    np.testing.assert_array_equal(np.diag(found), np.zeros(6))
    np.testing.assert_allclose(relative_distances(100 + 0.1 * normal(6, 3)), found, rtol=1e-3, atol=1e-6)


def test_angles_of_a_right_triangle():
    found = np.asarray(angles(np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]], "float32")))
    np.testing.assert_allclose(found[0], [[0, 0, 0], [0, 1, 0], [0, 0, 1]], atol=1e-6)
    np.testing.assert_allclose([found[1, 0, 2], found[2, 0, 1]], [3 / 5, 4 / 5], rtol=1e-6)


def test_equal_rows_and_rows_equal_but_for_rounding():
    teacher, student = normal(6, 4, seed=1), normal(6, 4, seed=2)
    student[1] = student[0]
    student[3] = np.nextafter(student[2], np.float32(10))
    loss = bound(RelationalAngle(), teacher, student)
    rounded = np.array(student)
    rounded[3] = student[2]
    np.testing.assert_allclose(values_of(loss, teacher, student), angle_oracle(teacher, rounded), rtol=1e-4)
    assert np.abs(gradient(lambda s: values_of(loss, teacher, s), student)).max() < 1.0
    near = bound(RelationalDistance(), teacher, student)
    assert np.abs(gradient(lambda s: values_of(near, teacher, s), student)).max() < 1.0


def test_a_series_of_order_30_is_the_gaussian_kernel():
    teacher, student = normal(5, 4, seed=1), normal(5, 3, seed=2)
    found = computed(CorrelationCongruence(gamma=2.0, order=30), teacher, student)
    expected = congruence_oracle(teacher, student, 2.0, 30, exact)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    low = computed(CorrelationCongruence(gamma=2.0, order=2), teacher, student)
    assert np.abs(low - expected).max() > 1e-2  # order 2 is another number there


@each_relation
def test_masks_leave_padding_out_on_each_side(loss, oracle):
    teacher, student = normal(5, 7, seed=1), normal(5, 4, 3, seed=2)
    mask = np.arange(4)[None] < np.array([4, 2, 3, 4, 1])[:, None]
    made = bound(loss(), teacher, student)
    found = made.compute([recorded(teacher)], [recorded(student, mask)])[0]
    np.testing.assert_allclose(found, oracle(teacher, student * mask[..., None]), rtol=2e-4, atol=1e-6)
    swapped = bound(loss(), student, teacher)
    found = swapped.compute([recorded(student, mask)], [recorded(teacher)])[0]
    np.testing.assert_allclose(found, oracle(student * mask[..., None], teacher), rtol=2e-4, atol=1e-6)
