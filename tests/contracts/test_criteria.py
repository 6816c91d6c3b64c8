"""Every registered criterion keeps these promises."""

import functools
import warnings

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.criteria import CRITERIA, Criterion, GradientCriterion, Random

NAMES = CRITERIA.names()
SHAPES = [(7,), (5, 4), (3, 3, 2, 4), (2, 2, 2, 3, 3)]
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(10, 6, 6, 2)).astype("float32")
TOKENS = RNG.integers(0, 5, size=(10, 4))
LABELS = RNG.integers(0, 3, size=10)
DATA = ([IMAGES, TOKENS], LABELS)


def on_values_alone(name):
    """Whether the criterion scores a bare array."""
    return CRITERIA.get(name).needs == "weights" and name != "bn_scale"


@functools.cache
def all_kinds():
    """Every kind of kernel there is, in one compiled model with BatchNormalization and Dropout."""
    image, tokens = keras.Input((6, 6, 2)), keras.Input((4,), dtype="int32")
    h = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same", name="conv")(image)))
    h = layers.SeparableConv2D(4, 3, name="separable")(layers.DepthwiseConv2D(3, name="depthwise")(h))
    h = layers.Conv2DTranspose(4, 2, name="transposed")(h)
    h = layers.Conv3D(4, 1, name="conv3d")(layers.Reshape((3, 3, 1, 4))(h))
    h = layers.Conv1D(6, 3, name="conv1d")(layers.Reshape((9, 4))(h))
    t = layers.Embedding(5, 6, name="table")(tokens)
    t = layers.MultiHeadAttention(2, 3, name="attention")(t, h)
    t = layers.TimeDistributed(layers.Dense(4, name="timed"))(t)
    t = layers.EinsumDense("abc,cd->abd", (None, 4), name="einsum")(layers.Dropout(0.5)(t))
    model = keras.Model([image, tokens], layers.Dense(3, name="head")(layers.GRU(3, name="gru")(t)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.evaluate(*DATA, verbose=0)  # Keras hangs a few things on its layers in the first call
    return model


def state_of(model):
    """All values, and what hangs on the layers."""
    values = [variable.numpy() for variable in [*model.variables, *model.metrics_variables]]
    return values, [set(vars(layer)) for layer in model._flatten_layers()], model.losses


def scores_of_all_kinds(name):
    """(scores by path, paths refused by name, state of the model before, state after)."""
    model, criterion, refused = all_kinds(), CRITERIA.get(name), []
    before, views = state_of(model), find_kernels(model)[0]
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                scores = criterion.scores(model, views, DATA)
            return dict(zip([v.path for v in views], scores, strict=True)), refused, before, state_of(model)
        except ValueError as error:
            kept = [view for view in views if repr(view.name) not in str(error)]
            if len(kept) == len(views):
                raise
            refused += [view.path for view in views if view not in kept]
            views = kept


@pytest.mark.parametrize("name", [name for name in NAMES if on_values_alone(name)])
def test_scores_of_values_alone(name):
    criterion = CRITERIA.get(name)
    for shape in SHAPES:
        weights = RNG.normal(size=shape).astype("float32")
        weights.flat[0] = 0
        score = criterion.score(weights)
        assert score.shape == shape
        assert score.dtype == weights.dtype
        assert np.all(np.isfinite(score))
        assert np.all(score >= 0)
        if not isinstance(criterion, Random):  # whose scores belong to places
            order = RNG.permutation(shape[-1])
            np.testing.assert_allclose(criterion.score(weights[..., order]), score[..., order], rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if not on_values_alone(name)])
def test_without_what_it_needs_it_says_so(name):
    with pytest.raises(ValueError, match="needs"):
        CRITERIA.get(name).score(np.ones((2, 2), "float32"))
    if CRITERIA.get(name).needs != "weights":
        model = all_kinds()
        with pytest.raises(ValueError, match="needs data: pass `data="):
            CRITERIA.get(name).scores(model, find_kernels(model)[0][:1])


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_kernel_has_scores_or_is_refused_and_the_model_stays_as_it_is(name):
    taken, refused, before, after = scores_of_all_kinds(name)
    shapes = {view.path: tuple(view.variable.shape) for view in find_kernels(all_kinds())[0]}
    assert set(taken) | set(refused) == set(shapes)
    for path, score in taken.items():
        assert score.shape == shapes[path]
        assert score.dtype == np.float32, path
        assert np.all(np.isfinite(score)), path
        assert np.all(score >= 0), path
        assert np.any(score > 0), path
    expected = {
        "bn_scale": set(shapes) - {"conv"},
        "wanda": {path for path in shapes if path.endswith("recurrent_kernel")},
        **{key: {p for p in shapes if "gru_cell" in p} for key in ("activation_mean", "apoz", "gradient_norm")},
    }
    assert set(refused) == expected.get(name, set())
    for old, new in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(new, old)
    assert before[1:] == after[1:]
    assert after[2] == []


def two_layers(order):
    stack = [layers.Dense(5, name="a"), layers.BatchNormalization(), layers.ReLU(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *stack])
    rng = np.random.default_rng(1)
    values = [rng.uniform(0.2, 1, size=w.shape) * rng.choice([-1, 1], size=w.shape) for w in model.get_weights()]
    values[5] = np.abs(values[5])  # variance
    model.set_weights([v[..., order] for v in values[:6]] + [values[6][order], values[7]])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize("name", [name for name in NAMES if name != "random"])
def test_channels_in_another_order_have_the_same_scores(name):
    order = np.array([3, 0, 4, 1, 2])
    data = IMAGES[:, 0, :2].reshape(10, 4), LABELS
    results = []
    for channels in (np.arange(5), order):
        model = two_layers(channels)
        (score,) = CRITERIA.get(name).scores(model, find_kernels(model)[0][:1], data)
        results.append(score)
    np.testing.assert_allclose(results[0][:, order], results[1], rtol=1e-3, atol=1e-6 * results[0].max())
    assert np.ptp(results[0].sum(0)) > 0


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_and_description(name):
    criterion = CRITERIA.get(name)
    others = {"batch_size": 7, "seed": 5, "per_sample": True, "outputs": 2}
    others |= {"epochs": 3, "learning_rate": 0.5, "penalty": 0.0}
    changed = {key: others[key] for key in criterion.get_config()}
    for made in (criterion, type(criterion)(**changed)):
        again = CRITERIA.get(keras.saving.serialize_keras_object(made))
        assert type(again) is type(made)
        assert again.get_config() == made.get_config()
        assert again.needs == made.needs
    assert type(criterion)(**changed).get_config() == changed

    assert "score" in type(criterion).__doc__
    assert "Reference: " in type(criterion).__doc__
    assert criterion.needs in ("weights", "gradients", "data")
    assert isinstance(criterion, GradientCriterion) == (criterion.needs == "gradients")
    assert isinstance(criterion, Criterion)
