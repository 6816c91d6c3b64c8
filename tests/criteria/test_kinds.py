"""What each kind of layer reads and makes, found by experiment: change one weight, look at the output."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.criteria import CRITERIA

RNG = np.random.default_rng(0)
IMAGE = (4, 4, 4)
# Kernels of one place and stride 1, so that each weight meets every place of the input once.
KINDS = {
    "dense": ((5,), lambda: layers.Dense(3)),
    "dense on sequences": ((4, 5), lambda: layers.Dense(3)),
    "conv1d": ((6, 3), lambda: layers.Conv1D(4, 1)),
    "conv2d": (IMAGE, lambda: layers.Conv2D(3, 1)),
    "conv2d in groups": (IMAGE, lambda: layers.Conv2D(6, 1, groups=2)),
    "conv3d": ((2, 3, 2, 3), lambda: layers.Conv3D(4, 1)),
    "depthwise1d": ((6, 3), lambda: layers.DepthwiseConv1D(1, depth_multiplier=2)),
    "depthwise2d": (IMAGE, lambda: layers.DepthwiseConv2D(1, depth_multiplier=2)),
    "transposed1d": ((6, 3), lambda: layers.Conv1DTranspose(4, 1)),
    "transposed2d": (IMAGE, lambda: layers.Conv2DTranspose(3, 1)),
    "transposed3d": ((2, 3, 2, 3), lambda: layers.Conv3DTranspose(2, 1)),
    "einsum": ((4, 5), lambda: layers.EinsumDense("abc,cd->abd", (None, 3))),
    "einsum to heads": ((4, 6), lambda: layers.EinsumDense("abc,cde->abde", (None, 2, 3))),
    "einsum from heads": ((4, 2, 3), lambda: layers.EinsumDense("abcd,cde->abe", (None, 5))),
    "einsum turned": ((4, 5), lambda: layers.EinsumDense("abc,dc->adb", (3, None))),
    "einsum with ellipsis": ((2, 4, 5), lambda: layers.EinsumDense("...c,cd->...d", 3)),
    "einsum per place": ((4, 5), lambda: layers.EinsumDense("abc,bcd->abd", (4, 3))),
    "time distributed": ((4, 5), lambda: layers.TimeDistributed(layers.Dense(3))),
}


def one_layer(kind):
    shape, make = KINDS[kind]
    x = keras.Input(shape)
    model = keras.Model(x, make()(x))
    model.compile("sgd", "mse")
    return model, RNG.uniform(0.5, 1.5, size=(7, *shape)).astype("float32"), find_kernels(model)[0]


def with_value(view, value, model, x):
    before = view.variable.numpy()
    view.variable.assign(value)
    output = model(x).numpy()
    view.variable.assign(before)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_weight_reads_and_makes(kind):
    model, x, (view,) = one_layer(kind)
    check_wanda(model, x, view)
    check_activation_mean(model, x, view)


def check_wanda(model, x, view):
    """With the kernel w at one place and zero elsewhere, the output is w * x_i: its norm is the score."""
    (score,) = CRITERIA.get("wanda").scores(model, [view], x)
    for place in np.ndindex(*score.shape):
        alone = np.zeros_like(score)
        alone[place] = view.numpy()[place]
        np.testing.assert_allclose(score[place], np.linalg.norm(with_value(view, alone, model, x)), rtol=1e-4)


def check_activation_mean(model, x, view):
    """The sum over the weights that change the same outputs is the mean activation of these outputs."""
    (score,) = CRITERIA.get("activation_mean").scores(model, [view], x)
    kernel, output = view.numpy(), model(x).numpy()
    totals, means, seen = {}, {}, np.zeros(output.shape, int)
    for place in np.ndindex(*score.shape):
        changed = kernel.copy()
        changed[place] += 1
        moved = ~np.isclose(with_value(view, changed, model, x), output, atol=1e-6)
        key = moved.tobytes()
        totals[key] = totals.get(key, 0) + score[place]
        seen += moved * (key not in means)
        means[key] = np.abs(output[moved]).mean()
    np.testing.assert_array_equal(seen, 1)  # every output belongs to one channel
    for key, total in totals.items():
        np.testing.assert_allclose(total, means[key], rtol=1e-4)


@pytest.mark.parametrize("kind", ["dense on sequences", "conv2d", "depthwise2d", "einsum to heads", "transposed2d"])
def test_gradient_norm_of_a_sum_of_squares(kind):
    """For the loss mean(y^2) the gradient is 2 y / size: its norm per channel is known."""
    model, x, (view,) = one_layer(kind)
    output = model(x).numpy()
    zeros = np.zeros_like(output)
    (score,) = CRITERIA.get("gradient_norm").scores(model, [view], (x, zeros))
    (energy,) = CRITERIA.get("activation_mean").scores(model, [view], x)
    gradient = 2 * output / output.size
    np.testing.assert_allclose(np.square(channel_sums(score, energy)).sum(), np.square(gradient).sum(), rtol=1e-3)


def channel_sums(score, other):
    """Sums over the weights of each channel; `other` tells channels apart."""
    groups = np.unique(other.ravel(), return_inverse=True)[1]
    return np.bincount(groups, weights=score.ravel())


@pytest.mark.parametrize("name", ["activation_mean", "wanda", "gradient_norm"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_separable_equals_its_two_halves(name, data_format):
    """Against a depthwise and a pointwise layer with the same weights."""
    shape, axis = ((7, 3), -1) if data_format == "channels_last" else ((3, 7), 1)
    both = keras.Sequential(
        [keras.Input(shape), layers.SeparableConv1D(4, 3, activation="tanh", data_format=data_format)]
    )
    halves = [layers.DepthwiseConv1D(3, use_bias=False, data_format=data_format)]
    halves += [layers.Conv1D(4, 1, activation="tanh", data_format="channels_last")]
    turn = [layers.Permute((2, 1))] if axis == 1 else []
    split = keras.Sequential([keras.Input(shape), halves[0], *turn, halves[1], *turn])
    both.layers[0].bias.assign([0.1, -0.2, 0.3, 0.4])
    split.set_weights(both.get_weights())
    x = RNG.normal(size=(6, *shape)).astype("float32")
    y = RNG.normal(size=both(x).shape).astype("float32")
    np.testing.assert_allclose(both(x), split(x), atol=1e-5)
    results = []
    for model in (both, split):
        model.compile("sgd", "mse")
        results.append(CRITERIA.get(name).scores(model, find_kernels(model)[0], (x, y)))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    np.testing.assert_allclose(both(x), split(x), atol=1e-5)


def test_embedding():
    model = keras.Sequential([keras.Input((3,), dtype="int32"), layers.Embedding(4, 2)])
    tokens = np.array([[0, 1, 1], [3, 1, 0]])
    (view,) = find_kernels(model)[0]
    (wanda,) = CRITERIA.get("wanda").scores(model, [view], tokens)
    np.testing.assert_allclose(wanda, np.abs(view.numpy()) * np.sqrt([[2], [3], [0], [1]]), rtol=1e-5)
    (mean,) = CRITERIA.get("activation_mean").scores(model, [view], tokens)
    np.testing.assert_allclose(mean.sum(0), np.abs(view.numpy()[tokens]).mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("layer", [layers.SimpleRNN, layers.GRU, layers.LSTM])
def test_recurrent_kernels_read_the_sequence(layer):
    model = keras.Sequential([keras.Input((4, 3)), layers.Bidirectional(layer(2))])
    x = RNG.normal(size=(5, 4, 3)).astype("float32")
    views = [view for view in find_kernels(model)[0] if view.variable is view.layer.kernel]
    assert len(views) == 2
    for view, score in zip(views, CRITERIA.get("wanda").scores(model, views, x), strict=True):
        norm = np.linalg.norm(x.reshape(-1, 3), axis=0)
        np.testing.assert_allclose(score, np.abs(view.numpy()) * norm[:, None], rtol=1e-4)


def test_attention_projections():
    x = keras.Input((4, 6))
    model = keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x))
    data = RNG.normal(size=(5, 4, 6)).astype("float32")
    views = {view.name: view for view in find_kernels(model)[0]}
    scores = dict(zip(views, CRITERIA.get("wanda").scores(model, list(views.values()), data), strict=True))
    norm = np.linalg.norm(data.reshape(-1, 6), axis=0)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(scores[name], np.abs(views[name].numpy()) * norm[:, None, None], rtol=1e-4)
    means = dict(zip(views, CRITERIA.get("activation_mean").scores(model, list(views.values()), data), strict=True))
    value = np.einsum("abc,cde->abde", data, views["value"].numpy())
    np.testing.assert_allclose(means["value"].sum(0), np.abs(value).mean((0, 1)), rtol=1e-4)
