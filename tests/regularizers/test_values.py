"""Values and gradients against NumPy and finite differences."""

import numpy as np
import penalty_oracles as oracle
import pytest
import tensorflow as tf
from penalty_oracles import CONV, DENSE, DEPTHWISE, LAYOUT, TRANSPOSED

from kdopt.regularizers import (
    L1,
    L1L2,
    BatchNormScale,
    GroupLasso,
    HoyerSquare,
    OrderedL1,
    SparseGroupLasso,
    TransformedL1,
)

SHAPES = [DENSE, CONV, DEPTHWISE, TRANSPOSED]
GROUPS = ["out_channels", "in_channels", "rows", "columns", "blocks"]


def check(penalty, function, shape):
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape) + np.sign(rng.normal(size=shape)) * 0.01  # no finite difference across zero
    strength = float(penalty.strength)
    np.testing.assert_allclose(float(penalty(w.astype("float32"))), strength * function(w), rtol=2e-6)
    variable = tf.Variable(w)
    with tf.GradientTape() as tape:
        value = penalty(variable)
    slope = strength * oracle.finite_difference(function, w)
    np.testing.assert_allclose(tape.gradient(value, variable), slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_elementwise(shape):
    check(L1(0.3), oracle.l1, shape)
    check(BatchNormScale(0.3), oracle.l1, shape)
    check(L1L2(0.3), oracle.l1l2, shape)
    check(L1L2(0.3, l1_ratio=0.2), lambda w: oracle.l1l2(w, 0.2), shape)
    check(HoyerSquare(0.3), oracle.hoyer_square, shape)
    check(TransformedL1(0.3), oracle.transformed_l1, shape)
    check(TransformedL1(0.3, a=0.2), lambda w: oracle.transformed_l1(w, 0.2), shape)


@pytest.mark.parametrize("groups", GROUPS)
def test_groupwise(groups):
    for shape in SHAPES:
        check_groupwise(shape, groups, LAYOUT[shape], (2, 3) if groups == "blocks" else None)


def check_groupwise(shape, groups, layout, block):
    args = (groups, layout, block)
    options = {"groups": groups, "layout": layout, "block_shape": block}
    check(GroupLasso(0.3, **options), lambda w: oracle.group_lasso(w, *args), shape)
    unscaled = GroupLasso(0.3, scale_by_size=False, **options)
    check(unscaled, lambda w: oracle.group_lasso(w, *args, scale=False), shape)
    mixed = SparseGroupLasso(0.3, 0.25, **options)
    check(mixed, lambda w: 0.25 * oracle.l1(w) + 0.75 * oracle.group_lasso(w, *args), shape)
    check(OrderedL1(0.3, **options), lambda w: oracle.ordered_l1(w, *args), shape)
    steep = OrderedL1(0.3, slope=3.0, fraction=1.0, **options)
    check(steep, lambda w: oracle.ordered_l1(w, *args, slope=3.0, fraction=1.0), shape)


def test_examples_of_the_docstrings():
    assert float(L1(0.1)([1.0, -2.0])) == pytest.approx(0.3)
    assert float(L1L2(0.1)([1.0, -2.0])) == pytest.approx(0.275)
    assert float(HoyerSquare(1.0)([1.0, -2.0, 0.0])) == pytest.approx(1.8)
    assert float(TransformedL1(1.0)([1.0, -3.0])) == pytest.approx(2.5)
    corner = [[3.0, 0.0], [4.0, 0.0]]
    assert float(GroupLasso(0.1, scale_by_size=False)(corner)) == pytest.approx(0.5)
    assert float(SparseGroupLasso(0.1, scale_by_size=False)(corner)) == pytest.approx(0.6)
    assert float(OrderedL1(0.1, fraction=1.0)([[3.0, 4.0], [0.0, 1.0]])) == pytest.approx(1.15)


def test_hoyer_does_not_depend_on_scale_even_where_squares_underflow():
    w = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    values = [float(HoyerSquare(1.0)(w * scale)) for scale in (1, 1e-30, 1e20)]
    np.testing.assert_allclose(values, values[0], rtol=1e-5)


def test_transformed_l1_prox_is_the_best_point_of_a_fine_grid():
    """Not convex: the global minimum, on both sides of its jump."""
    grid = np.linspace(-3, 3, 600001)
    for a in (0.1, 1.0, 10.0):
        for t in (0.01, 0.3, 2.0):
            w = np.linspace(-2.9, 2.9, 59)
            x = TransformedL1(1.0, a=a).prox(w, t).numpy()
            price = t * (a + 1) * np.abs(grid) / (a + np.abs(grid))
            best = np.array([(0.5 * (grid - v) ** 2 + price).min() for v in w])
            ours = 0.5 * (x - w) ** 2 + t * (a + 1) * np.abs(x) / (a + np.abs(x))
            np.testing.assert_allclose(ours, best, atol=1e-9)


BAD = [
    (lambda: GroupLasso(groups="channels"), "`groups` must be one of"),
    (lambda: GroupLasso(groups="blocks"), "`block_shape` belongs to groups='blocks'"),
    (lambda: GroupLasso(groups="rows", block_shape=(1, 4)), "`block_shape` belongs to groups='blocks'"),
    (lambda: GroupLasso(groups="blocks", block_shape=(0, 4)), "`block_shape` must be an integer >= 1"),
    (lambda: GroupLasso(groups="blocks", block_shape=4), "`block_shape` must be two integers"),
    (lambda: GroupLasso(layout="conv"), "`layout` must be one of"),
    (lambda: SparseGroupLasso(l1_ratio=1.5), "`l1_ratio` must be a fraction"),
    (lambda: L1L2(l1_ratio=-1), "`l1_ratio` must be a fraction"),
    (lambda: TransformedL1(a=0), "`a` must be a number > 0"),
    (lambda: OrderedL1(slope=-1), "`slope` must be a number >= 0"),
    (lambda: OrderedL1(fraction=2), "`fraction` must be a fraction"),
    (lambda: L1(lambda step: -1.0), "strength\\(step=0\\)` must be a number >= 0"),
]


def test_bad_arguments_are_refused():
    for make, message in BAD:
        with pytest.raises(ValueError, match=message):
            make()
