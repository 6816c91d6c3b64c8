"""Features brought to the same positions, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from bound_losses import normal

from kdopt.distillation.projectors import align, channels_of, projector, resize


def averaged(maps, factors):
    """Blocks of positions, by loops."""
    n, h, w, c = maps.shape
    found = np.zeros((n, h // factors[0], w // factors[1], c))
    for row, column in np.ndindex(found.shape[1:3]):
        block = maps[:, row * factors[0] : (row + 1) * factors[0], column * factors[1] : (column + 1) * factors[1]]
        found[:, row, column] = block.mean(axis=(1, 2))
    return found


def interpolated(rows, size):
    """Linear interpolation along axis 1 at pixel centers: position (i + 1/2) * old / new - 1/2, clipped."""
    rows = np.asarray(rows, "float64")
    old = rows.shape[1]
    found = []
    for i in range(size):
        place = min(max((i + 0.5) * old / size - 0.5, 0.0), old - 1.0)
        low = int(np.floor(place))
        high, part = min(low + 1, old - 1), place - low
        found.append((1 - part) * rows[:, low] + part * rows[:, high])
    return np.stack(found, axis=1)


def bilinear(maps, height, width):
    return np.swapaxes(interpolated(np.swapaxes(interpolated(maps, height), 1, 2), width), 1, 2)


@pytest.mark.parametrize(("new", "factors"), [((4, 3), (2, 2)), ((2, 6), (4, 1)), ((1, 1), (8, 6))])
def test_sizes_that_divide_are_averaged(new, factors):
    maps = normal(2, 8, 6, 3)
    np.testing.assert_allclose(resize(maps, new), averaged(maps, factors), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("new", [(5, 4), (3, 6), (16, 9), (8, 4)])
def test_other_sizes_are_interpolated_bilinearly(new):
    maps = normal(2, 8, 6, 3)
    np.testing.assert_allclose(resize(maps, new), bilinear(maps, *new), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("new", [3, 4, 6, 10])
def test_sequences(new):
    rows = normal(2, 8, 3)
    expected = rows.reshape(2, 4, 2, 3).mean(axis=2) if new == 4 else interpolated(rows, new)
    np.testing.assert_allclose(resize(rows, (new,)), expected, rtol=1e-4, atol=1e-5)


def test_the_larger_of_two_is_brought_to_the_smaller():
    large, small = normal(2, 8, 6, 3), normal(2, 4, 3, 5, seed=1)
    for pair in ((large, small), (small, large)):
        found = align(*pair)
        for given, got in zip(pair, found, strict=True):
            expected = averaged(large, (2, 2)) if given is large else small
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    same = align(large, large)
    assert same[0] is large
    high, wide = normal(2, 8, 3, 2), normal(2, 4, 6, 2, seed=1)  # each is the larger one along one axis
    found = align(high, wide)
    np.testing.assert_allclose(found[0], averaged(high, (2, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found[1], averaged(wide, (1, 2)), rtol=1e-5, atol=1e-6)


def test_a_map_beside_a_sequence_is_read_row_by_row():
    maps, rows = normal(2, 3, 4, 5), normal(2, 6, 7, seed=1)
    found, kept = align(maps, rows)
    flat = np.array([[maps[n, h, w] for h in range(3) for w in range(4)] for n in range(2)])
    np.testing.assert_allclose(found, flat.reshape(2, 6, 2, 5).mean(axis=2), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(kept, rows)


def test_beside_a_vector_positions_are_averaged():
    maps, rows, vectors = normal(2, 3, 4, 5), normal(2, 6, 7, seed=1), normal(2, 4, seed=2)
    np.testing.assert_allclose(align(maps, vectors)[0], maps.mean(axis=(1, 2)), rtol=1e-5, atol=1e-6)
    found = align(vectors, rows)
    np.testing.assert_allclose(found[1], rows.mean(axis=1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[0], vectors)
    mask = np.array([[True] * 2 + [False] * 4, [False] * 6])
    found = align(vectors, rows, None, mask)[1]
    np.testing.assert_allclose(found, [rows[0, :2].mean(axis=0), np.zeros(7)], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [((None, 8, 6, 3), (None, None, None, 3)), ((None, None, None, 3), (None, 4, 3, 3)), ((None, None, None, 3),) * 2],
)
def test_unknown_sizes_in_a_graph_take_the_students(teacher, student):
    @tf.function(input_signature=[tf.TensorSpec(teacher), tf.TensorSpec(student)])
    def run(t, s):
        return align(t, s)

    large, small = normal(2, 8, 6, 3), normal(2, 4, 3, 3, seed=1)
    found = run(large, small)
    np.testing.assert_allclose(found[0], bilinear(large, 4, 3), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[1], small)


def test_sequences_of_unknown_length_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec((None, None, 3)), tf.TensorSpec((None, None, 4))])
    def run(t, s):
        return align(t, s)

    rows, student = normal(2, 8, 3), normal(2, 5, 4, seed=1)
    np.testing.assert_allclose(run(rows, student)[0], interpolated(rows, 5), rtol=1e-4, atol=1e-5)


def test_a_map_of_unknown_size_beside_a_sequence_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, 6, 4))])
    def run(t, s):
        return align(t, s)

    maps, student = normal(2, 3, 4, 3), normal(2, 6, 4, seed=1)
    expected = interpolated(maps.reshape(2, 12, 3), 6)
    np.testing.assert_allclose(run(maps, student)[0], expected, rtol=1e-4, atol=1e-5)


def test_channels_and_projectors():
    assert channels_of((None, 4, 4, 8), "teacher", "conv") == 8
    with pytest.raises(ValueError, match="no fixed number of channels"):
        channels_of((None, None), "student", "tap")
    layer = projector(3, "p")
    maps = normal(2, 4, 3, 5)
    found = layer(maps)
    np.testing.assert_allclose(found, np.einsum("bhwc,cd->bhwd", maps, layer.kernel) + layer.bias, rtol=1e-4, atol=1e-5)
    assert layer.dtype_policy.name == "float32"
