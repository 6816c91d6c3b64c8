import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.criteria import CRITERIA, Random
from kdopt.criteria.base import per_weight

W = np.array([[-2.0, 0.5, 0.0], [1.0, -0.5, 3.0]], "float32")


def test_l1_and_l2_of_weights_and_of_channels():
    np.testing.assert_array_equal(CRITERIA.get("l1").score(W), [[2, 0.5, 0], [1, 0.5, 3]])
    np.testing.assert_array_equal(CRITERIA.get("l2").score(W), [[4, 0.25, 0], [1, 0.25, 9]])
    np.testing.assert_allclose(CRITERIA.get("l2").score(W).sum(0), np.linalg.norm(W, axis=0) ** 2, rtol=1e-6)


def test_lamp_by_hand_with_ties_and_zeros():
    """Squares 4, 0.25, 0 / 1, 0.25, 9: 0.25 appears twice, both see 4 + 0.25 + 1 + 0.25 + 9."""
    expected = [[4 / 13, 0.25 / 14.5, 0], [1 / 14, 0.25 / 14.5, 1]]
    np.testing.assert_allclose(CRITERIA.get("lamp").score(W), expected, rtol=1e-6)
    np.testing.assert_array_equal(CRITERIA.get("lamp").score(np.zeros((2, 3), "float32")), 0)
    assert np.isnan(CRITERIA.get("lamp").score(np.array([1, np.nan], "float32"))).any()  # never hidden


def test_lamp_equals_its_definition_and_orders_as_magnitude():
    weights = np.random.default_rng(0).normal(size=(6, 7)).astype("float32").round(1)  # rounded: ties
    expected = [
        w**2 / np.sum(weights[np.abs(weights) >= abs(w)].astype("float64") ** 2) if w else 0 for w in weights.flat
    ]
    score = CRITERIA.get("lamp").score(weights)
    np.testing.assert_allclose(score.ravel(), expected, rtol=1e-6)
    np.testing.assert_allclose(CRITERIA.get("lamp").score(weights.astype("float64")), score, rtol=1e-6)
    order = np.argsort(np.abs(weights).ravel(), kind="stable")
    assert np.all(np.diff(score.ravel()[order]) >= 0)


def test_fpgm_sums_to_the_distances_of_the_paper():
    weights = np.random.default_rng(0).normal(size=(3, 3, 2, 5)).astype("float32")
    filters = [weights[..., i] for i in range(5)]
    expected = [sum(np.linalg.norm(a - b) for b in filters) for a in filters]
    score = CRITERIA.get("fpgm").score(weights)
    np.testing.assert_allclose(score.sum((0, 1, 2)), expected, rtol=1e-5)
    np.testing.assert_allclose(score, np.broadcast_to(score[:1, :1, :1], score.shape))


def test_fpgm_of_equal_filters_is_zero_however_large_they_are():
    weights = np.full((4, 3), 1e3, "float32")
    np.testing.assert_array_equal(CRITERIA.get("fpgm").score(weights), 0)
    weights[:, 2] += 1e-2
    np.testing.assert_allclose(CRITERIA.get("fpgm").score(weights).sum(0), [0.02, 0.02, 0.04], rtol=1e-2)


def test_fpgm_takes_the_channel_axis_of_the_layer():
    model = keras.Sequential([keras.Input((6, 6, 2)), layers.Conv2DTranspose(4, 3)])
    (view,), _ = find_kernels(model)
    kernel = view.numpy()
    expected = [sum(np.linalg.norm(kernel[:, :, i] - kernel[:, :, j]) for j in range(4)) for i in range(4)]
    score = CRITERIA.get("fpgm").score(kernel, view)
    np.testing.assert_allclose(score.sum((0, 1, 3)), expected, rtol=1e-5)


def test_bn_scale_sums_to_gamma_per_channel():
    stack = [layers.Conv2D(4, 3), layers.BatchNormalization(), layers.ReLU(), layers.DepthwiseConv2D(3)]
    model = keras.Sequential([keras.Input((6, 6, 2)), *stack, layers.BatchNormalization()])
    gamma, depthwise_gamma = np.array([0.5, -2.0, 0.0, 1.0]), np.array([1.0, -3.0, 4.0, 0.5])
    stack[1].gamma.assign(gamma)
    model.layers[-1].gamma.assign(depthwise_gamma)
    first, second = CRITERIA.get("bn_scale").scores(model, find_kernels(model)[0])
    assert (first.shape, second.shape) == ((3, 3, 2, 4), (3, 3, 4, 1))
    np.testing.assert_allclose(first.sum((0, 1, 2)), np.abs(gamma), rtol=1e-6)
    np.testing.assert_allclose(second.sum((0, 1, 3)), np.abs(depthwise_gamma), rtol=1e-6)


@pytest.mark.parametrize(
    ("stack", "reason"),
    [
        ([layers.Dense(2, name="a")], "'a': no BatchNormalization alone"),
        (
            [layers.Dense(2, name="a"), layers.BatchNormalization(scale=False)],
            "'a': its BatchNormalization has scale=False",
        ),
        ([layers.Dense(2, name="a"), layers.ReLU(), layers.BatchNormalization()], "'a': no BatchNormalization alone"),
    ],
)
def test_bn_scale_names_the_layer_without_gamma(stack, reason):
    model = keras.Sequential([keras.Input((3,)), *stack])
    with pytest.raises(ValueError, match=reason):
        CRITERIA.get("bn_scale").scores(model, find_kernels(model)[0])
    with pytest.raises(ValueError, match="a kernel without a view"):
        CRITERIA.get("bn_scale").score(np.ones((3, 2)))


def test_random_repeats_with_its_seed_and_differs_between_kernels_and_seeds():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.Dense(4)])
    views, _ = find_kernels(model)
    first, second = Random(seed=3).scores(model, views)
    again, _ = Random(seed=3).scores(model, views)
    np.testing.assert_array_equal(first, again)
    assert np.all(first != second)
    assert np.all(first != Random(seed=4).scores(model, views)[0])
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        Random(seed=-1)


def test_per_weight_shares_evenly_in_the_order_of_its_axes():
    values = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    spread = per_weight(values, (-1, -2), (5, 3, 2))  # values[last, middle]
    assert spread.shape == (5, 3, 2)
    np.testing.assert_allclose(spread.sum(0), values.T)
    np.testing.assert_allclose(spread[0, 1, 0], 2 / 5)
