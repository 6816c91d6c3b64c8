"""A plan carried out: a new model, proven to be the old one without the channels."""

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kdopt.core.notices import warn_user
from kdopt.graph.channels.constants import Constants
from kdopt.graph.channels.dead import dead_channels
from kdopt.graph.channels.groups import ChannelGraph, trace_channels
from kdopt.graph.rebuild import without
from kdopt.graph.trace import graph_of, infer
from kdopt.pruning.structural.costs import Costs
from kdopt.pruning.structural.plan import plan_channels
from kdopt.pruning.structural.record import ChannelPlan

_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}  # by the least precise dtype that a layer computes in
_TOLERANCE = 1e-4
_OPEN_SIZES = (64, 96, 128, 32, 16)  # of inputs, until the model takes one


def apply_plan(model: keras.Model, plan: ChannelPlan, check: bool = True) -> keras.Model:
    """Makes the smaller model of a plan.

    Plain Keras: it saves, loads, trains, distills, quantizes and exports like any other. Layer names, trainable flags,
    dtype policies and input and output names stay; compiled as `model` is, with a new optimizer.

    Args:
        model: The model the plan was made for; left as it is. Its weights may have changed since, if what was dead
            still is.
        plan: Of `plan_channels`.
        check: Whether to compare it, on random inputs, with `model` in which the kernels that read the removed channels
            have zeros there; but for dead channels, without which the model is as it was. Defaults to `True`; costs two
            forward passes.

    Returns: new `keras.Model`.
    Raises: ValueError for a plan of another model, or of weights of which others were dead; TypeError for a model with
        a layer that cannot be made again from its config; RuntimeError if the comparison fails, which is a defect of a
        channel rule.

    Example:
    ```
    small = apply_plan(model, plan_channels(model, macs=0.5))
    ```
    """
    if not isinstance(plan, ChannelPlan):
        raise TypeError(f"`plan` must be a ChannelPlan, e.g. ChannelPlan.load(path); got {type(plan).__name__}.")
    if not isinstance(check, (bool, np.bool_)):
        raise TypeError(f"`check` must be True or False; got {check!r}.")
    plan.check(model)
    graph = trace_channels(model, allow_normalized_axes=plan.normalized)
    removed = _identities(model, plan, graph)
    dead = dead_channels(model, graph)
    if (count := int(np.isin(dead.roots, removed).sum())) < plan.dead:
        raise ValueError(
            f"With {plan.dead} of the channels that go nothing was lost when the plan was made; in {model.name!r} as "
            f"it is now that holds for {count}. Make a new plan for these weights."
        )
    folds = dead.folds(removed)
    costs = Costs(model, graph, lambda gone: Constants(graph, gone, folds, plan.branches), branches=plan.branches)
    if (count := costs.parameters(removed)) != plan.parameters[1]:
        raise ValueError(
            f"The plan leaves {plan.parameters[1]:,} parameters, but of {model.name!r} as it is now {count:,} would be "
            "left: branches that may go are others. Make a new plan for these weights."
        )
    small = without(model, graph, removed, folds, plan.branches)
    if check:
        _compare(model, small, graph, np.setdiff1d(removed, dead.roots), plan.normalized)
    return small


def prune_channels(model: keras.Model, **arguments: Any) -> tuple[keras.Model, ChannelPlan]:
    """`plan_channels` and `apply_plan` in one.

    Args:
        model: Built `keras.Model`; left as it is.
        **arguments: Those of `plan_channels`, and `check` of `apply_plan`.

    Returns: (smaller model, plan).
    Raises: What these do.

    Example:
    ```
    small, plan = prune_channels(model, macs=0.5, criterion="l2", round_to=8)
    ```
    """
    check = arguments.pop("check", True)
    if unknown := set(arguments) - set(inspect.signature(plan_channels).parameters):
        raise TypeError(f"prune_channels has no argument {', '.join(map(repr, sorted(unknown)))}.")
    plan = plan_channels(model, **arguments)
    return apply_plan(model, plan, check), plan


def _signature() -> inspect.Signature:
    """That of `plan_channels`, and `check`."""
    signature = inspect.signature(plan_channels)
    check = inspect.Parameter("check", inspect.Parameter.KEYWORD_ONLY, default=True, annotation=bool)
    returns = tuple[keras.Model, ChannelPlan]
    return signature.replace(parameters=[*signature.parameters.values(), check], return_annotation=returns)


prune_channels.__signature__ = _signature()  # type: ignore[attr-defined]  # what `help` shows


def _identities(model: keras.Model, plan: ChannelPlan, graph: ChannelGraph) -> np.ndarray:
    """What the plan removes, as identities of this trace."""
    numbers = {id(weight): i for i, weight in enumerate(model.weights)}
    slots = {(numbers[id(slot.variable)], slot.axis): slot for slot in graph.labels.slots()}
    removed: set[int] = set()
    for index, axis, places in plan.removed:
        slot = slots.get((index, axis))
        if slot is None or slot.role != "makes":
            raise ValueError(
                f"The plan removes channels along axis {axis} of {model.weights[index].path!r}, which makes none."
            )
        removed.update(graph.labels.roots(slot.labels)[list(places)].tolist())
    stays = sorted({reason for root, reason in graph.labels.frozen().items() if root in removed})
    if stays:
        raise ValueError(f"The plan removes channels of {model.name!r} that must stay: {'; '.join(stays[:3])}.")
    found = np.array(sorted(removed), int)
    for key, slot in slots.items():
        gone = np.isin(graph.labels.roots(slot.labels), found)
        told = np.isin(np.arange(gone.size), [p for *one, places in plan.removed if tuple(one) == key for p in places])
        if slot.role == "makes" and (gone != told).any():
            raise ValueError(
                f"The plan was made for another model than {model.name!r}: here other channels of {slot.layer.name!r} "
                "hang together."
            )
    return found


def _compare(
    model: keras.Model, small: keras.Model, graph: ChannelGraph, removed: np.ndarray, normalized: bool
) -> None:
    inputs, expected = _run(model, _unread(graph, removed))
    if expected is None:
        warn_user("apply_plan: the smaller model was not compared; inputs for this model are not known.")
        return
    found = _difference(expected, infer(small, inputs))
    if np.isnan(found):
        warn_user("apply_plan: the smaller model was not compared; on random inputs all outputs are NaN or infinite.")
    elif normalized:
        warn_user(
            f"apply_plan: with normalized channels gone, outputs differ by {found:.2g} of the largest: train it on."
        )
    elif found > max(_TOLERANCES.get(layer.compute_dtype, _TOLERANCE) for layer in model._flatten_layers()):
        raise RuntimeError(
            f"The smaller model differs from {model.name!r} without these channels by {found:.2g} of the largest "
            "output. A channel rule of one of its layers is wrong: report it, and leave layers out with `exclude`."
        )


def _unread(graph: ChannelGraph, removed: np.ndarray) -> Callable[[Any], keras.StatelessScope]:
    """Layer -> a scope in which its kernels that read removed channels have zeros there; one copy at a time."""
    found: dict[int, list[Any]] = defaultdict(list)
    for slot in graph.labels.slots():
        gone = np.isin(graph.labels.roots(slot.labels), removed)
        if slot.role == "reads" and gone.any():
            shape = [gone.size if axis == slot.axis else 1 for axis in range(len(slot.variable.shape))]
            found[id(slot.variable)].append(gone.reshape(shape))

    def zeroed(variable: keras.Variable) -> Any:
        value = variable.value
        for gone in found[id(variable)]:
            value = keras.ops.where(gone, keras.ops.zeros_like(value), value)
        return value

    def scope(operation: Any) -> keras.StatelessScope:
        variables = getattr(operation, "variables", [])
        return keras.StatelessScope([(one, zeroed(one)) for one in variables if id(one) in found])

    return scope


def _run(model: keras.Model, around: Callable[[Any], keras.StatelessScope]) -> tuple[Any, list[Any] | None]:
    """(random inputs, outputs); `None` where there are none that the model takes."""
    opened = any(None in tensor.shape[1:] for tensor in graph_of(model).inputs)
    for size in _OPEN_SIZES if opened else _OPEN_SIZES[:1]:
        inputs = _random_inputs(model, size)
        try:
            return inputs, None if inputs is None else infer(model, inputs, around)
        except (ValueError, tf.errors.InvalidArgumentError):
            if not opened:
                raise
    return None, None


def _random_inputs(model: keras.Model, open_size: int) -> Any:
    random = np.random.default_rng(0)
    words = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]

    def draw(tensor: Any) -> np.ndarray:
        shape = [open_size if size is None else size for size in tensor.shape]
        shape[0] = tensor.shape[0] or 2
        if "float" not in str(tensor.dtype):
            return random.integers(0, min(words, default=2), shape).astype(str(tensor.dtype))
        return random.normal(size=shape).astype("float32")

    try:
        return keras.tree.map_structure(draw, graph_of(model)._inputs_struct)
    except (TypeError, ValueError):  # strings
        return None


def _difference(expected: list[Any], got: list[Any]) -> float:
    """Largest difference of all outputs, as a fraction of the largest value; infinite where one is and the other not.

    NaN if there is no number in any output.
    """
    worst = np.nan
    for pair in zip(expected, got, strict=True):
        one, other = (np.asarray(keras.ops.convert_to_numpy(tensor), "float64") for tensor in pair)
        number = np.isfinite(one)
        if (number != np.isfinite(other)).any():
            return np.inf
        if number.any():
            largest = max(np.abs(one[number]).max(), 1e-12)
            worst = float(np.fmax(worst, np.abs(one - other)[number].max() / largest))
    return worst
