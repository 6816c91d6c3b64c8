import numpy as np
import pytest

from kdopt.pruning.masks import lowest, make_masks


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("shape", [(40,), (7, 9), (3, 3, 4, 5)])
def test_lowest_equals_a_sort(sparsity, shape):
    scores = np.random.default_rng(0).random(shape)
    zeros = min(round(sparsity * scores.size), scores.size - 1)
    expected = np.ones(scores.size, bool)
    expected[np.argsort(scores, axis=None, kind="stable")[:zeros]] = False
    np.testing.assert_array_equal(lowest(scores, sparsity), expected.reshape(shape))


def test_equal_scores_give_the_exact_number_first_in_order():
    np.testing.assert_array_equal(lowest(np.array([1, 1, 0, 1, 1]), 0.6), [False, False, False, True, True])
    assert np.count_nonzero(lowest(np.zeros(10), 0.3)) == 7


def test_one_weight_always_stays():
    assert np.count_nonzero(lowest(np.arange(3.0), 0.99)) == 1


def test_global_scope_takes_from_the_weakest_layer():
    weak, strong = np.arange(1, 11) / 100, np.arange(1, 11) / 1.0
    masks = make_masks([weak, strong.reshape(2, 5)], 0.6, "global")
    assert [np.count_nonzero(mask) for mask in masks] == [0, 8]
    assert masks[1].shape == (2, 5)
    assert [np.count_nonzero(m) for m in make_masks([weak, strong], 0.6, "layer")] == [4, 4]


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scores_must_be_finite(wrong):
    with pytest.raises(ValueError, match="1 of 3 pruning scores are NaN or infinite"):
        lowest(np.array([1.0, wrong, 2.0]), 0.5)
