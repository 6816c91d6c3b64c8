"""Products of the features of two layers against NumPy, in float64, by loops over positions."""

import numpy as np
import tensorflow as tf
from bound_losses import assert_gradient, bound, normal, recorded, tapped, values_of

from kdopt.distillation.losses.fsp import FSP


def gram(first, second):
    """G_ij of one sample: maps of equal height and width."""
    height, width = first.shape[:2]
    g = np.zeros((first.shape[-1], second.shape[-1]))
    for h in range(height):
        for w in range(width):
            g += np.outer(first[h, w], second[h, w])
    return g / (height * width)


def pooled(maps, factor):
    h, w, c = maps.shape
    return maps.reshape(h // factor, factor, w // factor, factor, c).mean(axis=(1, 3))


def test_three_layers():
    shapes = [(2, 8, 4, 3), (2, 4, 2, 4), (2, 4, 2, 2)]
    teacher = [normal(*shape, seed=k) for k, shape in enumerate(shapes)]
    student = [normal(*shape, seed=k + 5) for k, shape in enumerate(shapes)]
    loss = bound(FSP(), teacher, student)
    found = loss.compute([recorded(t) for t in teacher], [recorded(s) for s in student])
    assert len(found) == 2

    def expected(place, first):
        values = []
        for n in range(2):
            t_1, s_1 = (np.asarray(side[place][n], "float64") for side in (teacher, [first, *student[1:]]))
            if place == 0:  # the earlier layer is averaged down to the later one
                t_1, s_1 = pooled(t_1, 2), pooled(s_1, 2)
            difference = gram(t_1, teacher[place + 1][n]) - gram(s_1, student[place + 1][n])
            values.append(np.mean(difference**2))
        return np.array(values)

    for place in range(2):
        np.testing.assert_allclose(found[place], expected(place, student[0]), rtol=1e-4)

    def first_value(s):
        return loss.compute([recorded(t) for t in teacher], [recorded(s), *map(recorded, student[1:])])[0]

    assert_gradient(first_value, lambda s: expected(0, s), student[0])


def test_other_widths_are_mapped_and_sequences_taken():
    teacher = [normal(2, 6, 3, seed=1), normal(2, 6, 4, seed=2)]
    student = [normal(2, 6, 2, seed=3), normal(2, 6, 5, seed=4)]
    loss = bound(FSP(), teacher, student)
    mapped = [s @ np.asarray(part.kernel) for s, part in zip(student, loss.parts, strict=True)]
    grams = [
        [sum(np.outer(a, b) for a, b in zip(x, y, strict=True)) / 6 for x, y in zip(*side, strict=True)]
        for side in (teacher, mapped)
    ]
    expected = [np.mean((t - s) ** 2) for t, s in zip(*grams, strict=True)]
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-4)


def test_maps_of_unknown_size_in_a_graph():
    shapes = [(None, None, None, 3), (None, None, None, 2)]
    loss = FSP()
    loss.build([tapped(shape) for shape in shapes], [tapped(shape) for shape in shapes])

    @tf.function(input_signature=[tf.TensorSpec(shape) for shape in shapes * 2])
    def run(*maps):
        return loss.compute([recorded(one) for one in maps[:2]], [recorded(one) for one in maps[2:]])[0]

    maps = [normal(2, 8, 6, 3, seed=0), normal(2, 4, 3, 2, seed=1), normal(2, 8, 6, 3, seed=2), normal(2, 4, 3, 2)]
    expected = [np.mean((gram(pooled(a, 2), b) - gram(pooled(c, 2), d)) ** 2) for a, b, c, d in zip(*maps, strict=True)]
    np.testing.assert_allclose(run(*maps), expected, rtol=1e-4)
