"""What stays, against a sort."""

import numpy as np
import pytest

from kdopt.pruning.masks import keep_highest

ONES = np.broadcast_to(1, 10**6)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("size", [40, 63, 180])
@pytest.mark.parametrize("unit", [1, 4])
def test_equals_a_sort(sparsity, size, unit):
    scores = np.random.default_rng(0).random(size)
    zeros = min(round(sparsity * size), size - 1)
    expected = np.ones(size, bool)
    expected[np.argsort(scores, kind="stable")[:zeros]] = False
    kept = keep_highest(scores, np.full(size, unit), sparsity * size * unit)
    np.testing.assert_array_equal(kept, expected)


def test_equal_scores_give_the_exact_number_first_in_order():
    kept = keep_highest(np.array([1, 1, 0, 1, 1]), ONES[:5], 3)
    np.testing.assert_array_equal(kept, [False, False, False, True, True])
    assert np.count_nonzero(keep_highest(np.zeros(10), ONES[:10], 3)) == 7


def test_one_unit_always_stays():
    assert np.count_nonzero(keep_highest(np.arange(3.0), ONES[:3], 3)) == 1
    np.testing.assert_array_equal(keep_highest(np.arange(3.0), np.array([1, 2, 3]), 6), [False, False, True])


def test_units_of_different_sizes_lose_the_nearest_number_of_weights():
    scores, sizes = np.array([0.3, 0.1, 0.4, 0.2]), np.array([5, 4, 1, 2])
    # From the lowest: 4, 6, 11 weights.
    for lost, gone in ((0, []), (1, []), (3, [1]), (4, [1]), (6, [1, 3]), (8, [1, 3]), (9, [0, 1, 3])):
        assert np.flatnonzero(~keep_highest(scores, sizes, lost)).tolist() == gone


def test_infinite_stays_and_nan_is_refused():
    np.testing.assert_array_equal(keep_highest(np.array([np.inf, 1, 2, 3]), ONES[:4], 2), [True, False, False, True])
    with pytest.raises(ValueError, match="1 of 3 pruning scores are NaN or infinite"):
        keep_highest(np.array([1.0, np.nan, 2.0]), ONES[:3], 1)


def test_ties_among_units_of_different_sizes_go_first_in_order():
    scores, sizes = np.zeros(40), np.arange(1, 41)
    np.testing.assert_array_equal(np.flatnonzero(~keep_highest(scores, sizes, 10)), [0, 1, 2, 3])
