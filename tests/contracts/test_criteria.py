"""Every registered criterion keeps these promises."""

import keras
import numpy as np
import pytest

from kdopt.criteria import CRITERIA

SHAPES = [(7,), (5, 4), (3, 3, 2, 4), (2, 2, 2, 3, 3)]


@pytest.mark.parametrize("name", CRITERIA.names())
@pytest.mark.parametrize("shape", SHAPES)
def test_shape_finite_and_permutation(name, shape):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape).astype("float32")
    weights.flat[0] = 0
    criterion = CRITERIA.get(name)
    score = criterion.score(weights)
    assert score.shape == shape
    assert np.all(np.isfinite(score))
    order = rng.permutation(shape[-1])
    np.testing.assert_allclose(criterion.score(weights[..., order]), score[..., order], rtol=1e-6)


@pytest.mark.parametrize("name", CRITERIA.names())
def test_round_trip(name):
    criterion = CRITERIA.get(name)
    again = CRITERIA.get(keras.saving.serialize_keras_object(criterion))
    assert type(again) is type(criterion)
    assert again.get_config() == criterion.get_config()


def test_l1_is_the_magnitude():
    np.testing.assert_array_equal(CRITERIA.get("l1").score(np.array([-2.0, 0.5, 0.0])), [2.0, 0.5, 0.0])
