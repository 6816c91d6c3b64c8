"""Who loses how much, against formulas made another way."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.pruning.allocation import (
    ALLOCATIONS,
    ErdosRenyi,
    Global,
    PerLayer,
    Threshold,
    Uniform,
    allocation_of,
    erdos_renyi_densities,
)
from kdopt.pruning.selection import Selection

RANDOM = np.random.default_rng(0)
MODEL = keras.Sequential(
    [
        keras.Input((8, 8, 3)),
        layers.Conv2D(8, 3, name="conv"),
        layers.Flatten(),
        layers.Dense(30, name="wide"),
        layers.Dense(4, name="last"),
    ]
)
SIZES = np.array([3 * 3 * 3 * 8, 288 * 30, 30 * 4])
SCALES = (1.0, 0.1, 10.0)
SCORES = [
    scale * RANDOM.random(tuple(layer.kernel.shape))
    for scale, layer in zip(SCALES, (MODEL.get_layer(name) for name in ("conv", "wide", "last")), strict=True)
]


def zeros(allocation, sparsity, progress=1.0, pattern="unstructured"):
    selection = Selection(MODEL, None, pattern, allocation)
    return np.array([np.count_nonzero(~mask) for mask in selection.masks(SCORES, sparsity, progress)[:3]])


def test_uniform():
    np.testing.assert_array_equal(zeros("uniform", 0.7), np.round(0.7 * SIZES))


def test_global_is_one_sort():
    together = np.concatenate([score.reshape(-1) for score in SCORES])
    cut = np.sort(together)[round(0.95 * together.size)]
    np.testing.assert_array_equal(zeros("global", 0.95), [np.count_nonzero(score < cut) for score in SCORES])


def test_global_compares_channels_by_their_mean():
    means = [score.mean(axis=tuple(range(score.ndim - 1))) for score in SCORES]
    selection = Selection(MODEL, ["conv", "wide", "last"], "channel", "global")
    masks = selection.masks(SCORES, 0.9)
    kept, gone = [], []
    for mean, mask in zip(means, masks, strict=False):
        stays = mask.any(axis=tuple(range(mask.ndim - 1)))
        kept += list(mean[stays])
        gone += list(mean[~stays])
    assert max(gone) < min(kept)


def test_erdos_renyi_kernel():
    shapes = [score.shape for score in SCORES]
    raw = np.array([sum(shape) / np.prod(shape) for shape in shapes])
    for density in (0.02, 0.1, 0.3):
        found = 1 - zeros("erdos_renyi", 1 - density) / SIZES
        assert abs((found * SIZES).sum() - density * SIZES.sum()) <= 2
        scale = (found / raw)[1]  # of the largest kernel, where rounding counts least
        assert np.all(np.abs(np.minimum(1, scale * raw) - found) * SIZES <= 1 + 0.01 * SIZES * found)
    assert found[2] == 1  # the smallest kernel stays dense first


def test_lamp():
    """Lee 2021, equation 2, summed by brute force; with l2 scores."""
    squares = [score**2 for score in SCORES]
    lamp = []
    for square in squares:
        flat = np.sort(square.reshape(-1))
        lamp.append(np.array([u / flat[i:].sum() for i, u in enumerate(flat)]))
    together = np.sort(np.concatenate(lamp))
    cut = together[round(0.9 * together.size)]
    selection = Selection(MODEL, None, "unstructured", "lamp")
    found = [np.count_nonzero(~mask) for mask in selection.masks(squares, 0.9)]
    assert found == [np.count_nonzero(part < cut) for part in lamp]


def test_per_layer_and_its_progress():
    np.testing.assert_array_equal(zeros({"wide": 0.9, "last": 0.5}, 0.0), [0, 7776, 60])
    np.testing.assert_array_equal(zeros({"wide": 0.9}, 0.0, progress=0.5), [0, 3888, 0])


def test_threshold_is_a_comparison():
    np.testing.assert_array_equal(zeros(Threshold(0.05), 0.0), [np.count_nonzero(s <= 0.05) for s in SCORES])
    with pytest.raises(ValueError, match="`threshold` must be a number >= 0; got nan"):
        Threshold(float("nan"))


@pytest.mark.parametrize("kind", [Uniform, Global, ErdosRenyi])
def test_floors_and_ceilings(kind):
    bounds = {"minimum": {"last": 0.4}, "maximum": {"wide": 0.6}}
    found = zeros(kind(**bounds), 0.6 if kind is not Uniform else 0.8) / SIZES
    assert found[2] >= 0.4 - 1 / SIZES[2]
    assert found[1] <= 0.6 + 1 / SIZES[1]
    if kind is Global:  # what one may not lose, the others do
        assert abs((found * SIZES).sum() - 0.6 * SIZES.sum()) <= 1


def test_names_and_configs():
    for name in ALLOCATIONS.names():
        if name in ("per_layer", "threshold"):
            with pytest.raises(ValueError, match="needs its numbers"):
                allocation_of(name)
            continue
        made = allocation_of(name)
        assert type(made).from_config(made.get_config()).get_config() == made.get_config()
    copied = PerLayer.from_config(PerLayer({"a": 0.5}, maximum=0.9).get_config())
    assert (copied.sparsities, copied.maximum) == ({"a": 0.5}, 0.9)
    with pytest.raises(ValueError, match="`allocation` names 'wid', which is not pruned here. Kernels: conv, last"):
        zeros({"wid": 0.5}, 0.0)
    with pytest.raises(ValueError, match=r"`sparsities\['wide'\]` must be a fraction in \[0, 1\); got 1.5"):
        zeros({"wide": 1.5}, 0.0)
    with pytest.raises(ValueError, match="Unknown allocation 'globl'. Did you mean 'global'"):
        zeros("globl", 0.5)


@pytest.mark.parametrize("kind", [Uniform, Global, ErdosRenyi])
def test_a_floor_grows_with_the_schedule(kind):
    """Half of the way up, half of the floor."""
    assert zeros(kind(minimum={"last": 0.8}), 0.001, progress=0.5)[2] == round(0.4 * SIZES[2])


def test_coupled_kernels_lose_the_largest_of_their_shares():
    x = keras.Input((8, 16))
    model = keras.Model(x, layers.MultiHeadAttention(4, 4)(x, x))
    own = Selection(model, None, "head", PerLayer({"query": 0.5, "key": 0.25}))
    masks = own.masks([np.ones(tuple(view.variable.shape)) for view in own.kernels], 0.5)
    assert [int(np.count_nonzero(~mask)) for mask in masks[:4]] == [128] * 4


def test_erdos_renyi_gives_what_a_full_kernel_cannot_take_to_the_others_again():
    """The second kernel is full only after the first one is."""
    weights, raw = np.array([10.0, 100.0, 1000.0]), np.array([2.0, 0.75, 0.1])
    densities = erdos_renyi_densities(weights, raw, 0.25)
    np.testing.assert_allclose(densities, [1, 1, 167.5 / 1000])


def test_a_ceiling_holds_a_threshold_back():
    found = zeros(Threshold(1e9, maximum={"wide": 0.25}, minimum=0.0), 0.0)
    assert found[1] == round(0.25 * SIZES[1])
