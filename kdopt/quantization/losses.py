"""Auxiliary training losses: what rounding costs, as a part of the loss.

mse            sum over rounded tensors of mean((q(x) - x)^2)
cross_entropy  - sum over classes of p log p_q, mean over samples: p of the model without rounding, a constant;
               p_q of the model with rounding
"""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from kdopt.core.validation import check_one_of, check_positive

LOSSES = ("mse", "cross_entropy")


def check_losses(losses: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of the losses by name, checked.

    Raises: TypeError, ValueError.
    """
    if losses is None:
        return {}
    if not isinstance(losses, Mapping):
        raise TypeError(f"`losses` must be a dict, {' or '.join(LOSSES)} -> weight; got {type(losses).__name__}.")
    made = {
        check_one_of("losses", name, LOSSES): check_positive(f"losses[{name!r}]", value, zero=True)
        for name, value in losses.items()
    }
    return {name: weight for name, weight in made.items() if weight}


def cross_entropy(exact: list[Any], rounded: list[Any], logits: list[bool]) -> Any:
    """Cross-entropy of outputs with rounding against those without, whose gradient is stopped.

    Args:
        exact: Outputs (..., classes) without rounding.
        rounded: The same with it.
        logits: For each, whether it holds logits; else probabilities.

    Returns: Scalar, mean over samples and outputs, in nats.
    """
    found = []
    for p, q, raw in zip(exact, rounded, logits, strict=True):
        p, q = (ops.cast(y, "float32") for y in (p, q))
        target = ops.stop_gradient(ops.softmax(p, axis=-1) if raw else p)
        found.append(ops.mean(keras.losses.categorical_crossentropy(target, q, from_logits=raw)))
    return ops.mean(ops.stack(found))
