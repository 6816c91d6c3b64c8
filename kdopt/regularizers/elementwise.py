"""Penalties that are sums over single weights, and Hoyer's, which is a ratio of two."""

from typing import Any

from keras import ops

from kdopt.core.validation import check_fraction, check_positive
from kdopt.regularizers.base import PENALTIES, Penalty, Tensor
from kdopt.regularizers.strength import Strength


def soft_threshold(weights: Tensor, threshold: Tensor) -> Tensor:
    """sign(w) * max(|w| - threshold, 0)"""
    return ops.sign(weights) * ops.maximum(ops.abs(weights) - threshold, 0.0)


def elastic_net(weights: Tensor, l1_ratio: float) -> Tensor:
    """l1_ratio * sum |w| + (1 - l1_ratio) / 2 * sum w^2"""
    return l1_ratio * ops.sum(ops.abs(weights)) + (1 - l1_ratio) / 2 * ops.sum(ops.square(weights))


def hoyer_square(weights: Tensor) -> Tensor:
    """(sum |w|)^2 / sum w^2, in [1, number of weights]; 0 where all weights are 0."""
    largest = ops.stop_gradient(ops.max(ops.abs(weights)))
    weights = weights / ops.where(largest > 0, largest, 1.0)  # the ratio does not change, and no square underflows
    squares = ops.sum(ops.square(weights))
    return ops.square(ops.sum(ops.abs(weights))) / ops.where(squares > 0, squares, 1.0)


def transformed_l1(weights: Tensor, a: float) -> Tensor:
    """sum (a + 1) * |w| / (a + |w|)"""
    size = ops.abs(weights)
    return ops.sum((a + 1) * size / (a + size))


def transformed_l1_threshold(weights: Tensor, threshold: Tensor, a: float) -> Tensor:
    """argmin_x 0.5 * (x - w)^2 + threshold * (a + 1) * |x| / (a + |x|) for each weight.

        0                                                             for |w| <= t
        sign(w) * (2/3 * (a + |w|) * cos(phi / 3) - 2/3 * a + |w| / 3)    otherwise,
            phi = arccos(1 - 27/2 * threshold * a * (a + 1) / (a + |w|)^3)

    with t = threshold * (a + 1) / a, or sqrt(2 * threshold * (a + 1)) - a / 2 where threshold > a^2 / (2 * (a + 1)).
    """
    size = ops.abs(weights)
    convex = threshold <= a * a / (2 * (a + 1))
    smallest = ops.where(convex, threshold * (a + 1) / a, ops.sqrt(2 * threshold * (a + 1)) - a / 2)
    cosine = 1 - 13.5 * threshold * a * (a + 1) / (a + size) ** 3
    phi = ops.arccos(ops.clip(cosine, -1.0, 1.0))
    kept = ops.sign(weights) * (2 / 3 * (a + size) * ops.cos(phi / 3) - 2 / 3 * a + size / 3)
    return ops.where(size > smallest, kept, ops.zeros_like(kept))


@PENALTIES.register("l1")
class L1(Penalty):
    """The sum of magnitudes.

        penalty(w) = strength * sum |w|              prox: sign(w) * max(|w| - step_size * strength, 0)

    Added to the loss it pulls weights towards zero but leaves none there; with `Proximal` zeros are exact.

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.

    Example:
    ```
    float(L1(0.1)([1.0, -2.0]))      # 0.3
    ```

    Reference: Tibshirani, "Regression Shrinkage and Selection via the Lasso", J. R. Stat. Soc. B 1996.
    """

    def measure(self, weights: Tensor) -> Tensor:
        return ops.sum(ops.abs(weights))

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        return soft_threshold(weights, threshold)


@PENALTIES.register("l1l2")
class L1L2(Penalty):
    """The elastic net: magnitudes and squares.

        penalty(w) = strength * (l1_ratio * sum |w| + (1 - l1_ratio) / 2 * sum w^2)

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        l1_ratio: Float in [0, 1]; 1 is `L1`. Defaults to `0.5`.

    Example:
    ```
    float(L1L2(0.1)([1.0, -2.0]))      # 0.1 * (0.5 * 3 + 0.25 * 5) = 0.275
    ```

    Reference: Zou & Hastie, "Regularization and variable selection via the elastic net", J. R. Stat.
        Soc. B 2005; written as in scikit-learn's `ElasticNet`.
    """

    def __init__(self, strength: Strength = 1e-4, l1_ratio: float = 0.5) -> None:
        super().__init__(strength)
        self.l1_ratio = check_fraction("l1_ratio", l1_ratio, one=True)

    def measure(self, weights: Tensor) -> Tensor:
        return elastic_net(weights, self.l1_ratio)

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        return soft_threshold(weights, threshold * self.l1_ratio) / (1 + threshold * (1 - self.l1_ratio))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l1_ratio": self.l1_ratio}


@PENALTIES.register("hoyer_square")
class HoyerSquare(Penalty):
    """The squared ratio of the l1 to the l2 norm: about the number of weights that count.

        penalty(w) = strength * (sum |w|)^2 / sum w^2          (0 where all weights are 0)

    Does not change when all weights are scaled, so it makes few weights large instead of all small. Its
    gradient grows as the weights shrink. No proximal operator in closed form.

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.

    Example:
    ```
    float(HoyerSquare(1.0)([1.0, -2.0, 0.0]))      # 9 / 5 = 1.8
    ```

    Reference: Yang et al., "DeepHoyer: Learning Sparser Neural Network with Differentiable
        Scale-Invariant Sparsity Measures", ICLR 2020.
    """

    def measure(self, weights: Tensor) -> Tensor:
        return hoyer_square(weights)


@PENALTIES.register("transformed_l1")
class TransformedL1(Penalty):
    """Between the number of non-zero weights (a -> 0) and the sum of magnitudes (a -> infinity).

        penalty(w) = strength * sum (a + 1) * |w| / (a + |w|)

    Large weights are hardly pulled, small ones more than by `L1`. Not convex.

    Args:
        strength: Float >= 0, or a schedule. Defaults to `1e-4`.
        a: Float > 0. Defaults to `1.0`.

    Example:
    ```
    float(TransformedL1(1.0)([1.0, -3.0]))      # 1 + 1.5 = 2.5
    ```

    Reference: Zhang & Xin, "Minimization of transformed l1 penalty: theory, difference of convex function
        algorithm, and robust application in compressed sensing", Math. Program. 2018; prox:
        Zhang & Xin, "Minimization of Transformed L1 Penalty: Closed Form Representation and Iterative
        Thresholding Algorithms", Commun. Math. Sci. 2017.
    """

    def __init__(self, strength: Strength = 1e-4, a: float = 1.0) -> None:
        super().__init__(strength)
        self.a = check_positive("a", a)

    def measure(self, weights: Tensor) -> Tensor:
        return transformed_l1(weights, self.a)

    def shrink(self, weights: Tensor, threshold: Tensor) -> Tensor:
        return transformed_l1_threshold(weights, threshold, self.a)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "a": self.a}
