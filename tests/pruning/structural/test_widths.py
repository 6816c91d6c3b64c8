"""Which multiple of channels a device computes at a time."""

import keras
import numpy as np
import pytest

from kdopt.pruning.structural import measure_round_to, plan_channels
from kdopt.pruning.structural.widths import best_multiple


@pytest.mark.parametrize("multiple", [1, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(multiple):
    """A device whose every call is disturbed by up to 20 %, upwards; the first of five is not the shortest."""
    random = np.random.default_rng(0)

    def latency_of(model):
        width = model.get_layer("narrow").filters
        return (0.3 + 0.01 * multiple * np.ceil(width / multiple)) * (1 + 0.2 * random.random() ** 4)

    assert measure_round_to(latency_of, widths=range(3, 131, 3), shape=(4, 4, 2)) == multiple


def test_a_device_without_steps_or_without_any_dependence_has_one():
    widths = np.arange(4, 133, 4)
    assert best_multiple(widths, np.full(widths.size, 2.0)) == 1
    assert best_multiple(np.arange(1, 65), 1 + 0.5 * np.arange(1, 65)) == 1


# Microseconds of a 1x1 convolution of 4, 8, ... 100 channels on a CPU with AVX-512: steps of 16, on a slope or without.
FLOAT32 = [6.9, 8.1, 9.4, 10.4, 16.0, 17.2, 18.3, 19.6, 25.1, 26.2, 27.3, 28.4, 34.9, 36.0, 37.1, 38.0, 43.1, 44.3]
FLOAT32 += [45.4, 46.5, 53.2, 54.3, 55.5, 56.4, 61.5]
INT8 = [5.1, 5.1, 5.7, 5.7, 8.1, 8.0, 8.7, 8.7, 11.0, 10.9, 11.5, 11.5, 13.8, 13.8, 14.4, 14.4, 16.6, 16.6, 17.2, 17.2]
INT8 += [19.4, 19.4, 20.0, 20.0, 22.2]


@pytest.mark.parametrize("times", [FLOAT32, INT8])
def test_the_steps_of_a_real_processor(times):
    assert best_multiple(np.arange(4, 101, 4), np.array(times)) == 16


def test_noise_is_no_step():
    for seed in range(20):
        noise = 1 + 0.05 * np.random.default_rng(seed).normal(size=33)
        assert best_multiple(np.arange(4, 133, 4), np.arange(4, 133, 4) * noise + 5) == 1


def test_wider_steps_that_are_faster_are_none():
    widths = np.arange(4, 133, 4)
    assert best_multiple(widths, 100 + widths - 0.5 * np.ceil(widths / 16)) == 1


def test_targets_have_names_and_others_are_refused():
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, name="wide"), keras.layers.Dense(2)])
    assert plan_channels(net, macs=0.6, round_to="avx512").layers[0].after == 32
    assert plan_channels(net, macs=0.6, round_to="arm").layers[0].after == 32
    assert plan_channels(net, macs=0.7, round_to="arm").layers[0].after == 40
    for wrong in ("gpu", 0, 2.5):
        with pytest.raises((ValueError, TypeError), match="round_to"):
            plan_channels(net, macs=0.5, round_to=wrong)
    with pytest.raises(ValueError, match="eight different"):
        measure_round_to(lambda model: 1.0, widths=[8, 16])
    with pytest.raises(ValueError, match="positive"):
        measure_round_to(lambda model: 0.0, shape=(2, 2, 2), repeats=1)


def test_the_summary_counts_every_layer():
    net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(64, name="wide"), keras.layers.Dense(2, name="out")])
    plan = plan_channels(net, channels=0.5)
    wide, out = plan.layers
    assert wide.macs == (8 * 64, 8 * 32)
    assert out.macs == (64 * 2, 32 * 2)
    lines = plan.summary().splitlines()
    assert lines[0].split() == ["layer", "channels", "MACs"]
    assert lines[1].split() == ["wide", "64", "->", "32", "512", "->", "256"]
    assert lines[2].startswith("out ")
    assert lines[2].split()[1:5] == ["2", "128", "->", "64"]
