"""Forward and backward passes over a model that leave no trace in it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from kdopt.core.backend import require_tensorflow

HALF_PRECISION_LOSS_SCALE = 1024.0


@contextmanager
def untouched(model: keras.Model) -> Iterator[None]:
    """Puts back afterwards what a pass may write: statistics, seeds, counters, metrics, losses from `add_loss`."""
    kept = [(variable, keras.ops.convert_to_numpy(variable)) for variable in _written(model)]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)
        model._clear_losses()


def _written(model: keras.Model) -> list[keras.Variable]:
    variables = list(model.metrics_variables) if getattr(model, "compiled", False) else []
    for layer in model._flatten_layers():
        variables += layer._non_trainable_variables
        variables += [generator.state for generator in layer._seed_generators]
    return list({id(v): v for v in variables if v._initializer is None}.values())


def compiled(model: keras.Model, step: Callable[..., Any]) -> Callable[..., Any]:
    """`step(*structures of tensors)` in a graph, traced once for all batch sizes.

    As it is where the user asked for `run_eagerly`.
    """
    require_tensorflow("A pruning criterion with data")
    import tensorflow as tf

    traced: dict[str, Any] = {}

    def run(*structures: Any) -> Any:
        tensors = [part for part in keras.tree.flatten(structures) if part is not None]
        specs = [tf.TensorSpec([None, *t.shape[1:]] if t.shape.rank else [], t.dtype) for t in tensors]
        key = repr((keras.tree.map_structure(lambda part: part is None, structures), specs))
        if key not in traced:
            function = tf.function(lambda *parts: step(*_filled(structures, parts)), autograph=False)
            traced[key] = function.get_concrete_function(*specs)
        return traced[key](*tensors)

    return step if getattr(model, "run_eagerly", False) else run


def _filled(structures: Any, parts: Sequence[Any]) -> Any:
    """`structures` with its tensors replaced in order; `None` stays."""
    following = iter(parts)
    return keras.tree.map_structure(lambda old: None if old is None else next(following), structures)


def predict(model: keras.Model, x: Any) -> Any:
    """The model's outputs in inference mode: no dropout, BatchNormalization with its moving statistics."""
    model._clear_losses()
    return model(x, training=False) if model._call_has_training_arg else model(x)


def loss_of(model: keras.Model, x: Any, y: Any, sample_weight: Any) -> Any:
    """The loss that `model.compile` set, penalties included, of one batch in inference mode."""
    return model._compute_loss(x=x, y=y, y_pred=predict(model, x), sample_weight=sample_weight, training=False)


def check_compiled(model: keras.Model, owner: str) -> None:
    """Raises: ValueError if the model has no loss."""
    if not getattr(model, "compiled", False):
        raise ValueError(f"Criterion {owner} needs a loss: compile the model first, `model.compile(loss=...)`.")


def loss_scale(model: keras.Model) -> float:
    """Factor that keeps float16 gradients from vanishing; 1 in other precisions."""
    half = any(layer.compute_dtype == "float16" for layer in model._flatten_layers())
    return HALF_PRECISION_LOSS_SCALE if half else 1.0


def gradients_of(model: keras.Model, variables: Sequence[keras.Variable], target: Callable[[], Any]) -> list[Any]:
    """d target() / d variable: dense float32 tensors; `None` where the target does not depend on it."""
    import tensorflow as tf

    values, scale = [variable.value for variable in variables], loss_scale(model)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for value in values:
            tape.watch(value)
        scaled = target() * scale
    found = tape.gradient(scaled, values)
    return [None if g is None else tf.cast(tf.convert_to_tensor(g), "float32") / scale for g in found]


def check_finite(scores: np.ndarray, name: str, owner: str) -> np.ndarray:
    """Raises: ValueError that names the kernel if a score is NaN or infinite."""
    if not np.isfinite(scores).all():
        raise ValueError(
            f"Criterion {owner}: scores of {name!r} are NaN or infinite. Look for NaN in the data and in the weights; "
            "in float16 a gradient may have overflowed."
        )
    return scores
