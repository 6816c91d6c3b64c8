"""A plan carried out: a new model, proven to be the old one without the channels."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kdopt.core.notices import warn_user
from kdopt.graph.channels.dead import dead_channels
from kdopt.graph.channels.groups import ChannelGraph, trace_channels
from kdopt.graph.rebuild import without
from kdopt.graph.trace import graph_of, infer
from kdopt.pruning.structural.plan import plan_channels
from kdopt.pruning.structural.record import ChannelPlan

_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}  # by the least precise dtype that a layer computes in
_TOLERANCE = 1e-4
_OPEN_SIZE = 64


def apply_plan(model: keras.Model, plan: ChannelPlan, check: bool = True) -> keras.Model:
    """Makes the smaller model of a plan.

    Plain Keras: it saves, loads, trains, distills, quantizes and exports like any other. Layer names, trainable flags,
    dtype policies and input and output names stay; compiled as `model` is, with a new optimizer.

    Args:
        model: The model the plan was made for (its weights may have changed since); left as it is.
        plan: Of `plan_channels`.
        check: Whether to compare it, on random inputs, with `model` in which the kernels that read the removed channels
            have zeros there; but for dead channels, without which the model is as it was. Defaults to `True`; costs two
            forward passes.

    Returns: new `keras.Model`.
    Raises: ValueError for a plan of another model; RuntimeError if the comparison fails, which is a defect of a channel
        rule.

    Example:
    ```
    small = apply_plan(model, plan_channels(model, macs=0.5))
    ```
    """
    plan.check(model)
    graph = trace_channels(model, allow_normalized_axes=plan.normalized)
    removed = _identities(model, plan, graph)
    dead = dead_channels(model, graph)
    small = without(model, graph, removed, dead.folds(removed), plan.branches)
    if check:
        _compare(model, small, graph, np.setdiff1d(removed, dead.roots), plan.normalized)
    return small


def prune_channels(model: keras.Model, **arguments: Any) -> tuple[keras.Model, ChannelPlan]:
    """`plan_channels` and `apply_plan` in one.

    Args:
        model: Built `keras.Model`; left as it is.
        **arguments: Those of `plan_channels`, and `check` of `apply_plan`.

    Returns: (smaller model, plan).

    Example:
    ```
    small, plan = prune_channels(model, macs=0.5, criterion="l2", round_to=8)
    ```
    """
    check = arguments.pop("check", True)
    plan = plan_channels(model, **arguments)
    return apply_plan(model, plan, check), plan


def _identities(model: keras.Model, plan: ChannelPlan, graph: ChannelGraph) -> np.ndarray:
    """What the plan removes, as identities of this trace."""
    slots = {(id(slot.variable), slot.axis): slot for slot in graph.labels.slots()}
    removed: set[int] = set()
    for index, axis, places in plan.removed:
        slot = slots.get((id(model.weights[index]), axis))
        if slot is None or slot.role != "makes":
            raise ValueError(
                f"The plan removes channels along axis {axis} of {model.weights[index].path!r}, which makes none."
            )
        removed.update(graph.labels.roots(slot.labels)[list(places)].tolist())
    stays = sorted({reason for root, reason in graph.labels.frozen().items() if root in removed})
    if stays:
        raise ValueError(f"The plan removes channels of {model.name!r} that must stay: {'; '.join(stays[:3])}.")
    return np.array(sorted(removed), int)


def _compare(
    model: keras.Model, small: keras.Model, graph: ChannelGraph, removed: np.ndarray, normalized: bool
) -> None:
    inputs = _random_inputs(model)
    if inputs is None:
        warn_user("apply_plan: the smaller model was not compared; inputs for this model are not known.")
        return
    expected = infer(model, inputs, _unread(graph, removed))
    found = _difference(expected, infer(small, inputs))
    if normalized:
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


def _random_inputs(model: keras.Model) -> Any:
    random = np.random.default_rng(0)
    words = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]

    def draw(tensor: Any) -> np.ndarray:
        shape = [_OPEN_SIZE if size is None else size for size in tensor.shape]
        shape[0] = tensor.shape[0] or 2
        if "float" not in str(tensor.dtype):
            return random.integers(0, min(words, default=2), shape).astype(str(tensor.dtype))
        return random.normal(size=shape).astype("float32")

    try:
        return keras.tree.map_structure(draw, graph_of(model)._inputs_struct)
    except (TypeError, ValueError):  # strings
        return None


def _difference(expected: list[Any], got: list[Any]) -> float:
    """Largest difference of all outputs, as a fraction of the largest value."""
    worst = 0.0
    for pair in zip(expected, got, strict=True):
        one, other = (np.asarray(keras.ops.convert_to_numpy(tensor), "float64") for tensor in pair)
        worst = max(worst, float(np.abs(one - other).max() / max(np.abs(one).max(), 1e-12)))
    return worst
