"""Attention by activations and neuron selectivity against NumPy, in float64, by loops over positions and channels."""

import warnings

import keras
import numpy as np
import pytest
from bound_losses import assert_gradient, bound, computed, normal, values_of
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.selectivity import NST


def energies(features, power):
    """F of each position, flat, of each sample."""
    features = np.asarray(features, "float64")
    flat = features.reshape(len(features), -1, features.shape[-1])
    return np.array([[sum(abs(a) ** power for a in place) for place in sample] for sample in flat])


def attention_oracle(teacher, student, distance, power):
    found = []
    for t, s in zip(energies(teacher, power), energies(student, power), strict=True):
        if distance == "mse":
            found.append(np.sum((s / np.linalg.norm(s) - t / np.linalg.norm(t)) ** 2))
        else:
            p, q = t / t.sum(), s / s.sum()
            found.append(np.sum(p * np.log(p / q)))
    return np.array(found)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("distance", ["mse", "kl"])
@pytest.mark.parametrize("shapes", [((2, 4, 3, 5), (2, 4, 3, 2)), ((3, 6, 4), (3, 6, 7))])
def test_attention_transfer(shapes, distance, power):
    teacher, student = (normal(*shape, seed=seed) for seed, shape in enumerate(shapes))
    loss = bound(AttentionTransfer(distance=distance, power=power), teacher, student)
    assert not loss.parts
    expected = attention_oracle(teacher, student, distance, power)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=1e-4)
    assert_gradient(
        lambda s: values_of(loss, teacher, s), lambda s: attention_oracle(teacher, s, distance, power), student
    )


def test_attention_transfer_behind_a_normalization_is_warned_of():
    def net(width):
        inputs = keras.Input((4, 3))
        x = layers.LayerNormalization(name="norm")(layers.Dense(width, name="dense")(inputs))
        return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))

    with pytest.warns(UserWarning, match="which 'norm', 'norm' has made the same everywhere"):
        Distiller(student=net(4), teacher=net(8), distillation_losses=AttentionTransfer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Distiller(student=net(4), teacher=net(8), distillation_losses=AttentionTransfer("dense"))


def test_attention_transfer_does_not_see_how_large_features_are():
    teacher, student = normal(2, 3, 3, 5, seed=1), normal(2, 3, 3, 4, seed=2)
    expected = computed(AttentionTransfer(), teacher, student)
    for scale in (1e-4, 1e3):
        np.testing.assert_allclose(computed(AttentionTransfer(), scale * teacher, student), expected, rtol=1e-4)
        np.testing.assert_allclose(computed(AttentionTransfer(), teacher, scale * student), expected, rtol=1e-4)


def kernel_of(kernel, sigma):
    return {
        "linear": lambda x, y: x @ y,
        "polynomial": lambda x, y: (x @ y) ** 2,
        "gaussian": lambda x, y: np.exp(-np.sum((x - y) ** 2) / (2 * sigma**2)),
    }[kernel]


def channels(sample):
    """The maps of single channels, flat, of length 1; a silent one stays zero."""
    flat = sample.reshape(-1, sample.shape[-1]).T
    return [c / np.linalg.norm(c) if np.any(c) else c for c in flat]


def nst_oracle(teacher, student, kernel, sigma):
    k = kernel_of(kernel, sigma)
    found = []
    for t, s in zip(np.asarray(teacher, "float64"), np.asarray(student, "float64"), strict=True):
        ts, ss = channels(t), channels(s)
        found.append(
            sum(k(a, b) for a in ts for b in ts) / len(ts) ** 2
            + sum(k(a, b) for a in ss for b in ss) / len(ss) ** 2
            - 2 * sum(k(a, b) for a in ts for b in ss) / (len(ts) * len(ss))
        )
    return np.array(found)


@pytest.mark.parametrize("kernel", ["linear", "polynomial", "gaussian"])
@pytest.mark.parametrize("silent", [False, True])
def test_nst(kernel, silent):
    teacher, student = normal(2, 4, 3, 5, seed=1), normal(2, 4, 3, 4, seed=2)
    if silent:  # channels that never fire
        teacher[..., 0] = student[..., 1] = student[0, ..., 2] = 0
    loss = bound(NST(kernel=kernel, sigma=0.7), teacher, student)
    expected = nst_oracle(teacher, student, kernel, 0.7)
    np.testing.assert_allclose(values_of(loss, teacher, student), expected, rtol=2e-4, atol=1e-6)
    if not silent:
        assert_gradient(
            lambda s: values_of(loss, teacher, s), lambda s: nst_oracle(teacher, s, kernel, 0.7), student, rtol=2e-3
        )


def test_nst_averages_the_larger_map():
    teacher, student = normal(2, 8, 6, 3, seed=1), normal(2, 4, 3, 5, seed=2)
    averaged = teacher.reshape(2, 4, 2, 3, 2, 3).mean(axis=(2, 4))
    expected = nst_oracle(averaged, student, "polynomial", 1.0)
    np.testing.assert_allclose(computed(NST(), teacher, student), expected, rtol=1e-3, atol=1e-6)
