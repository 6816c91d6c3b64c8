"""Adaptive rounding (AdaRound): each weight goes up or down so that its layer's output stays, not to the nearest step.

A kernel w with steps s and integers in [-n, n] becomes, with one trained v a weight,

    w~ = s * clip(floor(w / s) + h(v), -n, n),   h(v) = clip(sigmoid(v) * (zeta - gamma) + gamma, 0, 1)
    loss = |f(w x) - f(w~ x_q)|^2 / |f(w x_q) - f(w_near x_q)|^2 + weight * mean(1 - |2 h(v) - 1|^beta)

where x is the layer's input in float, x_q that of the rounded layers before it, and f a BatchNormalization and a ReLU
behind it. The paper's sum over weights is a mean here and its error a share of that of rounding to nearest, so that
`weight` depends on neither units nor sizes.

Reference: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, equations 21 - 25.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import ops

ITERATIONS = 1000
ZETA, GAMMA = 1.1, -0.1
WEIGHT, RATE, WARM_START, BETAS = 3.0, 0.03, 0.2, (20.0, 2.0)
# Places of the output, and samples, that one step of the optimizer sees.
_PLACES, _FEWEST, _MOST = 8192, 4, 256


@dataclass(frozen=True)
class KernelGrid:
    """Where the weights of a kernel may lie: whole multiples of a step.

    Attributes:
        steps: Array that broadcasts to the kernel.
        limit: Integer n, multiples lie in [-n, n].
    """

    steps: np.ndarray
    limit: int


def rectified_sigmoid(v: Any) -> Any:
    """h(v) in [0, 1], which reaches both ends: equation 23."""
    return ops.clip(ops.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def undecided(h: Any, beta: Any) -> Any:
    """1 - |2 h - 1|^beta of each weight: 0 where it goes up or down, 1 halfway; equation 24."""
    return 1.0 - ops.power(ops.abs(2.0 * h - 1.0), beta)


def beta_at(share: float) -> float:
    """The exponent of the regularizer after a share in [0, 1] of the iterations: 20 in the warm start, then to 2."""
    first, last = BETAS
    done = max(0.0, (share - WARM_START) / (1 - WARM_START))
    return last + (first - last) * 0.5 * (1 + float(np.cos(np.pi * done)))


def adapt(
    kernel: np.ndarray,
    grid: KernelGrid,
    output: Callable[[Any, Any], Any],
    inputs: Any,
    target: Any,
    iterations: int = ITERATIONS,
) -> np.ndarray:
    """The kernel on its grid, rounded so that the output comes near a target.

    Weights that lie on the grid already, as do zeros and the largest of each channel, stay to the last bit.

    Args:
        kernel: Float array.
        grid: Its grid.
        output: Function `(kernel, inputs) -> output`.
        inputs: Tensor (samples, ...).
        target: Tensor like the output.
        iterations: Integer >= 1, steps of Adam. Defaults to `1000`.

    Returns: Float array.
    """
    places = kernel / grid.steps
    below, fixed = np.floor(places), (np.abs(places - np.round(places)) < 1e-4) | (np.abs(places) > grid.limit)
    channels = tuple(axis for axis, size in enumerate(grid.steps.shape) if size == 1)
    largest = np.max(np.abs(kernel), axis=channels, keepdims=True)

    def on_grid(up: Any) -> Any:
        weights = ops.clip(below + up, -grid.limit, grid.limit) * grid.steps
        return ops.where(fixed, kernel, ops.clip(weights, -largest, largest))

    nearest = np.round(places) - below
    moved = output(on_grid(nearest), inputs) - output(ops.convert_to_tensor(kernel), inputs)
    usual = float(ops.mean(ops.square(moved)))
    if not usual:
        return np.asarray(on_grid(nearest))

    def error(h: Any, rows: Any) -> Any:
        x, y = ops.take(inputs, rows, axis=0), ops.take(target, rows, axis=0)
        return ops.mean(ops.square(output(on_grid(h), x) - y)) / usual

    h = _decided(places - below, error, _rows(target.shape, iterations))
    return np.asarray(on_grid((h >= 0.5).astype("float32")))


def _decided(start: np.ndarray, error: Callable[[Any, Any], Any], batches: np.ndarray) -> np.ndarray:
    """h of each weight, near 0 or 1, after one step of Adam a batch.

    Args:
        start: Float array in [0, 1), the h to start at.
        error: Function `(h, numbers of samples) -> scalar`.
        batches: Integer array (iterations, samples), numbers of samples.
    """
    import tensorflow as tf

    share = (np.clip(start, 1e-4, 1 - 1e-4) - GAMMA) / (ZETA - GAMMA)
    v = keras.Variable(np.log(share / (1 - share)), dtype="float32")
    optimizer = keras.optimizers.Adam(RATE)
    optimizer.build([v])
    done = np.arange(len(batches)) / len(batches)

    def run(rows: Any, betas: Any, weights: Any) -> None:
        def update(number: Any) -> Any:
            with tf.GradientTape() as tape:
                h = rectified_sigmoid(v)
                loss = error(h, rows[number]) + weights[number] * ops.mean(undecided(h, betas[number]))
            optimizer.apply(tape.gradient(loss, [v.value]), [v])
            return (number + 1,)

        tf.while_loop(lambda number: number < len(batches), update, (0,))

    betas = np.array([beta_at(share) for share in done], "float32")
    given = [tf.constant(values) for values in (batches, betas, (WEIGHT * (done >= WARM_START)).astype("float32"))]
    # A graph for each kernel, which is run once: made by a call, TensorFlow would warn of frequent retracing.
    tf.function(run, autograph=False).get_concrete_function(*given)(*given)
    return np.asarray(rectified_sigmoid(v))


def _rows(shape: tuple[int, ...], iterations: int) -> np.ndarray:
    """Numbers of the samples of each step, in random order: few where an output has many places."""
    count = int(np.clip(_PLACES // max(1, int(np.prod(shape[1:-1]))), _FEWEST, _MOST))
    count, random = min(count, shape[0]), np.random.default_rng(0)
    epochs = -(-iterations * count // shape[0])
    order = np.concatenate([random.permutation(shape[0]) for _ in range(epochs)])
    return order[: iterations * count].reshape(iterations, count).astype("int32")
