"""Which Variables of a model a penalty goes on."""

from collections.abc import Callable
from typing import Any

import keras

from kdopt.core.kernels import KernelView, Skipped, select
from kdopt.core.notices import warn_user
from kdopt.regularizers.base import Penalty
from kdopt.regularizers.coupling import coupled_groups, needs_model
from kdopt.regularizers.norm_scale import BatchNormScale

Layers = list[Any] | Callable[[KernelView], bool] | None


def choose(model: keras.Model, penalty: Penalty, layers: Layers, caller: str) -> tuple[list[KernelView], list[Skipped]]:
    """The Variables of `model` that `penalty` is made for, in the chosen layers.

    Args:
        model: Built `keras.Model`.
        penalty: Decides what it can be on: kernels, or the gammas of BatchNormalization.
        layers: As `kdopt.core.kernels.select` takes them. A layer
            of a kind without a rule is left out, with a warning where `layers` is `None`.
        caller: String, for messages.

    Returns: the chosen, at least one, and the layers left out with the reason.
    Raises: ValueError for a model that is not built, a name without a kernel, nothing to choose from.
    """
    if not model.built:
        raise ValueError(
            f"{caller}: the model {model.name!r} is not built, so it has no weights yet. Call it once on data, or "
            "model.build(input_shape)."
        )
    found, skipped = penalty.targets(model)
    chosen = select(found, layers, skipped) if found or layers is None else _refuse(layers, skipped, caller)
    if needs_model(penalty) and chosen:
        _, chosen, alone = coupled_groups(model, chosen, only=isinstance(penalty, BatchNormScale))
        skipped = [*skipped, *alone]
    if not chosen:
        where = "this model has" if layers is None else "`layers` chose"
        raise ValueError(f"{caller}: {where} no weight that {type(penalty).__name__} can be on.{_why(skipped)}")
    unknown = [skip for skip in skipped if not skip.known]
    if unknown and layers is None:
        listed = "; ".join(f"{skip.name!r}: {skip.reason}" for skip in unknown)
        warn_user(f"{caller} leaves out layers of a kind it does not know. {listed}.")
    return chosen, skipped


def _refuse(layers: Layers, skipped: list[Skipped], caller: str) -> list[KernelView]:
    raise ValueError(f"{caller}: nothing to choose `layers`={layers!r} from.{_why(skipped)}")


def _why(skipped: list[Skipped]) -> str:
    listed = "; ".join(f"{skip.name!r}: {skip.reason}" for skip in skipped)
    return f" Left out: {listed}." if listed else ""
