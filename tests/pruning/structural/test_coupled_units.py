"""Channels that several kernels make, or that a kernel reads along two axes; work that no kernel does."""

import keras
import numpy as np
from keras import layers as L

from kdopt.core import measure
from kdopt.pruning.structural import apply_plan, plan_channels


def test_a_channel_has_the_mean_of_the_scores_of_all_that_make_it():
    x = keras.Input((3,))
    h = L.Dense(4, name="one")(x)
    model = keras.Model(x, L.Dense(2, name="out")(L.Add()([h, L.Dense(4, name="two")(h)])))
    model.get_layer("one").kernel.assign(np.ones((3, 1)) * [1.0, 2.0, 3.0, 4.0])  # sums 3, 6, 9, 12
    model.get_layer("two").kernel.assign(np.ones((4, 1)) * [9.0, 1.0, 1.0, 0.1])  # sums 36, 4, 4, 0.4
    plan = plan_channels(model, channels=0.5)
    assert plan.removed == ((0, 1, (1, 3)), (2, 1, (1, 3)))  # means 19.5, 5, 6.5, 6.2


def test_heads_and_widths_of_the_values_go_in_one_plan():
    """The output projection reads both, so the comparison must leave out what one and what the other says."""
    x = keras.Input((5, 8))
    model = keras.Model(x, L.MultiHeadAttention(4, 3, value_dim=6, name="attention")(x, x))
    for weight in model.weights:
        weight.assign(np.random.default_rng(0).normal(size=weight.shape))
    plan = plan_channels(model, channels=0.5, scope="layer")
    small = apply_plan(model, plan)  # compares
    attention = small.get_layer("attention")
    assert (attention.num_heads, attention.value_dim) == (2, 3)


def test_work_that_no_kernel_does_is_counted_and_stays():
    x = keras.Input((6, 4))
    h = L.Dense(8, name="in")(x)
    h = L.Dense(4, name="mid")(h)
    model = keras.Model(x, L.Dot(axes=2, name="dot")([h, h]))
    plan = plan_channels(model, channels=0.5)
    assert plan.macs == (measure.macs(model), measure.macs(apply_plan(model, plan)))
    assert plan.macs == (6 * 4 * 8 + 6 * 8 * 4 + 6 * 6 * 4, 6 * 4 * 4 + 6 * 4 * 4 + 6 * 6 * 4)
