import keras
import numpy as np
import pytest
import tensorflow as tf
from penalty_oracles import (
    LAYOUT,
    index_sets,
    pool_adjacent_violators,
)

from kdopt.core.kernels import find_kernels
from kdopt.regularizers import Grouping, GroupLasso, OrderedL1, attach
from kdopt.regularizers.grouping import layout_of
from kdopt.regularizers.ordered import not_increasing, order_weights

L = keras.layers


@pytest.mark.parametrize("groups", ["out_channels", "in_channels", "rows", "columns", "blocks"])
def test_each_group_holds_the_weights_it_should(groups):
    for shape in [(7,), *LAYOUT, (2, 2, 2, 3, 4)]:
        check_groups(shape, groups)


def check_groups(shape, groups):
    block = (2, 3) if groups == "blocks" else None
    grouping = Grouping(groups, block, LAYOUT.get(shape, "standard"))
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape)
    sets = index_sets(shape, groups, grouping.layout, block)
    norms = sorted(np.linalg.norm([w[i] for i in group]) for group in sets)
    parts = grouping.split(w)
    np.testing.assert_allclose(np.sort(grouping.norms(parts).numpy().ravel()), norms, rtol=1e-12)
    assert sorted(grouping.sizes(shape).numpy().ravel()) == sorted(map(len, sets))
    np.testing.assert_array_equal(grouping.merge(parts, shape), w)


@pytest.mark.parametrize("groups", ["out_channels", "in_channels", "rows", "blocks"])
def test_zeros_come_in_whole_groups(groups):
    for shape in LAYOUT:
        check_zeros(shape, groups)


def check_zeros(shape, groups):
    block = (2, 3) if groups == "blocks" else None
    penalty = GroupLasso(1.0, groups, block, scale_by_size=False, layout=LAYOUT[shape])
    w = np.random.default_rng(0).normal(size=shape)
    sets = index_sets(shape, groups, LAYOUT[shape], block)
    norms = [np.linalg.norm([w[i] for i in group]) for group in sets]
    cut = np.median(norms)
    x = penalty.prox(w, cut).numpy()
    for group, norm in zip(sets, norms, strict=True):
        ours = np.array([x[i] for i in group])
        before = np.array([w[i] for i in group])
        if norm <= cut:
            assert not ours.any()
        else:
            np.testing.assert_allclose(ours, before * (1 - cut / norm), rtol=1e-10)


def test_a_kernel_is_read_as_its_layer_does():
    inputs = keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, name="conv")(inputs)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(x)
    x = L.Conv2DTranspose(5, 2, name="transposed")(x)
    x = L.SeparableConv2D(6, 2, name="separable")(x)
    x = L.MultiHeadAttention(2, 3, name="attention")(*[L.Reshape((-1, 6))(x)] * 2)
    model = keras.Model(inputs, L.Dense(2, name="dense")(x))
    layouts = {view.name: layout_of(view) for view in find_kernels(model)[0]}
    assert {layouts[name] for name in ("conv", "dense", "separable/pointwise_kernel")} == {"standard"}
    assert {layouts[name] for name in ("depthwise", "separable/depthwise_kernel")} == {"depthwise"}
    assert layouts["transposed"] == "transposed"
    assert layouts["query"] == layouts["value"] == (-3,)
    assert layouts["attention_output"] == (-3, -2)


def test_a_head_of_zeros_in_attention():
    """Out channels of a query are its 2 x 3 widths of heads, each with one value an input."""
    x = keras.Input((5, 4))
    model = keras.Model(x, L.MultiHeadAttention(2, 3, name="attention")(x, x))
    model.compile("sgd", "mse")
    query = next(view for view in find_kernels(model)[0] if view.name == "query")
    w = query.numpy()
    handle = attach(model, GroupLasso(0.5, scale_by_size=False), layers=["query"])
    assert handle.value() == pytest.approx(0.5 * np.linalg.norm(w, axis=0).sum(), rel=1e-6)
    assert handle.penalty.get_config()["layout"] is None


@pytest.mark.parametrize("compiled", [False, True])
def test_pooling_equals_the_textbook(compiled):
    run = tf.function(not_increasing, jit_compile=True) if compiled else not_increasing
    rng = np.random.default_rng(0)
    cases = [rng.normal(size=40), np.arange(40.0), -np.arange(40.0), np.ones(40), np.round(rng.normal(size=40))]
    cases += [np.sort(rng.normal(size=40))[::-1] - np.linspace(3, 0, 40), np.repeat([1.0, 3.0, 2.0, 2.5], 10)]
    for values in cases:
        np.testing.assert_allclose(run(tf.constant(values)), pool_adjacent_violators(values), atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True])
def test_ordered_prox_equals_the_textbook_and_ties_rows(compiled):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(1, 6))
    w = np.concatenate([base * s for s in (1.0, 1.01, 0.99, 0.1, 0.02)] + [rng.normal(size=(5, 6))]).astype("float32")
    penalty, t = OrderedL1(0.3, slope=2.0, fraction=0.8), 0.5
    run = tf.function(penalty.prox, jit_compile=True) if compiled else penalty.prox
    x = run(tf.constant(w), t).numpy()
    norms = np.linalg.norm(w.astype("float64"), axis=1)
    order = np.argsort(-norms)
    cuts = t * 0.3 * np.array([1 + 2 * max(8 - i, 0) / 8 for i in range(10)])
    kept = np.empty(10)
    kept[order] = np.maximum(pool_adjacent_violators(norms[order] - cuts), 0)
    np.testing.assert_allclose(x, w * (kept / norms)[:, None], atol=1e-6)
    sizes = np.linalg.norm(x, axis=1)
    assert sizes[4] == 0
    np.testing.assert_allclose(sizes[:3], sizes[0], rtol=1e-6)  # three similar rows, one norm
    assert len(np.unique(np.round(np.linalg.norm(w, axis=1), 5))) == 10


def test_order_weights():
    np.testing.assert_allclose(order_weights(4, 1.0, 0.5), [2.0, 1.5, 1.0, 1.0])
    np.testing.assert_allclose(order_weights(4, 0.0, 0.5), 1)
    np.testing.assert_allclose(order_weights(1, 1.0, 0.0), [2.0])


def test_without_a_slope_ordered_is_the_group_lasso():
    w = np.random.default_rng(0).normal(size=(6, 5))
    ordered, lasso = OrderedL1(0.3, slope=0.0), GroupLasso(0.3, "in_channels", scale_by_size=False)
    np.testing.assert_allclose(float(ordered(w)), float(lasso(w)), rtol=1e-12)
    np.testing.assert_allclose(ordered.prox(w, 2.0), lasso.prox(w, 2.0), atol=1e-12)


def test_gradients_of_dead_groups_are_zero_in_a_compiled_step():
    """XLA evaluates both sides of a `where`."""

    @tf.function(jit_compile=True)
    def gradient(w):
        with tf.GradientTape() as tape:
            tape.watch(w)
            loss = GroupLasso(1.0)(w)
        return tape.gradient(loss, w)

    found = gradient(tf.constant([[3.0, 0.0], [4.0, 0.0]]))
    np.testing.assert_allclose(found, np.sqrt(2) * np.array([[0.6, 0.0], [0.8, 0.0]]), rtol=1e-5)
