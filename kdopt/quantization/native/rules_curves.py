"""Rules for activations that TFLite has no operation for: made of EXP, LOG, RSQRT, products and sums, each rounded."""

from typing import Any

from keras import activations, layers, ops
from keras.src.activations import activations as kinds
from keras.src.ops import nn

from kdopt.quantization.native.rules import quantization_rule

HALVES = ("below", "positive", "negative")
EXPONENTIAL = (*HALVES, "exp", "minus_one")
LOGARITHM = (*HALVES, "lowered", "exp", "plus_one", "log")


def _halves(scope: Any, x: Any) -> tuple[Any, Any]:
    """max(x, 0) and min(x, 0).

    The converter would fuse a RELU of `x` into the operation before it, past the rounding of `x`.
    """
    below = scope.inner("below", ops.relu(x * -1.0))
    return scope.inner("positive", x + below), scope.inner("negative", below * -1.0)


def _elu(scope: Any, x: Any, alpha: float) -> Any:
    """max(x, 0) + alpha (exp(min(x, 0)) - 1)."""
    positive, negative = _halves(scope, x)
    below = scope.inner("minus_one", scope.inner("exp", ops.exp(negative)) - 1.0)
    return positive + (below if alpha == 1 else scope.inner("scaled", below * alpha))


@quantization_rule(activations.elu, layers.ELU, nn.Elu, inner=(*EXPONENTIAL, "scaled"))
def elu(scope: Any, operation: Any, x: Any) -> Any:
    return _elu(scope, x, float(getattr(operation, "alpha", 1.0)))


@quantization_rule(activations.selu, nn.Selu, inner=(*EXPONENTIAL, "scaled", "sum"))
def selu(scope: Any, operation: Any, x: Any) -> Any:
    """Reference: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, equation 2."""
    return scope.inner("sum", _elu(scope, x, 1.6732632423543772)) * 1.0507009873554805


@quantization_rule(activations.celu, nn.Celu, inner=(*HALVES, "stretched", "exp", "minus_one", "scaled"))
def celu(scope: Any, operation: Any, x: Any) -> Any:
    """max(x, 0) + alpha (exp(min(x, 0) / alpha) - 1)."""
    alpha = float(getattr(operation, "alpha", 1.0))
    if alpha == 1:
        return _elu(scope, x, 1.0)
    positive, negative = _halves(scope, x)
    grown = scope.inner("exp", ops.exp(scope.inner("stretched", negative * (1 / alpha))))
    return positive + scope.inner("scaled", scope.inner("minus_one", grown - 1.0) * alpha)


def _logarithm(scope: Any, positive: Any, negative: Any) -> Any:
    """log(1 + exp(-|x|)), in (0, log 2]: the exponential of x itself would take the whole range of its grid."""
    grown = scope.inner("exp", ops.exp(scope.inner("lowered", negative - positive)))
    return scope.inner("log", ops.log(scope.inner("plus_one", grown + 1.0)))


def _softplus(scope: Any, x: Any) -> Any:
    positive, negative = _halves(scope, x)
    return positive + _logarithm(scope, positive, negative)


@quantization_rule(activations.softplus, nn.Softplus, inner=LOGARITHM)
def softplus(scope: Any, operation: Any, x: Any) -> Any:
    """log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|))."""
    return _softplus(scope, x)


@quantization_rule(activations.log_sigmoid, nn.LogSigmoid, inner=LOGARITHM)
def log_sigmoid(scope: Any, operation: Any, x: Any) -> Any:
    """-log(1 + exp(-x)) = min(x, 0) - log(1 + exp(-|x|))."""
    positive, negative = _halves(scope, x)
    return negative - _logarithm(scope, positive, negative)


@quantization_rule(activations.mish, kinds.Mish, inner=(*LOGARITHM, "softplus"))
def mish(scope: Any, operation: Any, x: Any) -> Any:
    """Reference: Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", BMVC 2020, equation 1."""
    return x * scope.fixed(ops.tanh(scope.inner("softplus", _softplus(scope, x))), -1.0, 127 / 128)


@quantization_rule(activations.softsign, nn.Softsign, inner=("magnitude", "plus_one"))
def softsign(scope: Any, operation: Any, x: Any) -> Any:
    """x / (1 + |x|)."""
    return x / scope.inner("plus_one", scope.inner("magnitude", ops.abs(x)) + 1.0)


@quantization_rule(activations.squareplus, nn.Squareplus, inner=("square", "raised", "reciprocal", "root", "sum"))
def squareplus(scope: Any, operation: Any, x: Any) -> Any:
    """(x + sqrt(x^2 + b)) / 2, the root as y rsqrt(y)."""
    raised = scope.inner("raised", scope.inner("square", x * x) + float(getattr(operation, "b", 4)))
    root = scope.inner("root", raised * scope.inner("reciprocal", ops.rsqrt(raised)))
    return scope.inner("sum", x + root) * 0.5


@quantization_rule(activations.sparse_plus, nn.SparsePlus, inner=("clipped", "half", "square", "above"))
def sparse_plus(scope: Any, operation: Any, x: Any) -> Any:
    """min(max((x + 1) / 2, 0), 1)^2 + max(x - 1, 0)."""
    raised = ops.relu(x + 1.0)
    half = scope.inner("half", scope.inner("clipped", raised if scope.exporting else ops.minimum(raised, 2.0)) * 0.5)
    return scope.inner("square", half * half) + scope.inner("above", ops.relu(x - 1.0))
