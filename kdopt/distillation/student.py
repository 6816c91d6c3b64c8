"""A student made from its teacher: the same net, narrower and shallower."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core.seeding import seeded
from kdopt.core.validation import check_fraction, check_integer, check_one_of
from kdopt.distillation.naming import is_named, layers_of, paths_of, unknown
from kdopt.distillation.narrowing import Group, free_groups, removed_channels
from kdopt.graph.blocks import find_stages, spread
from kdopt.graph.channels.groups import ChannelGraph, trace_channels
from kdopt.graph.rebuild import without
from kdopt.graph.shorten import without_blocks

Width = float | Mapping[str, float] | Callable[[str], float]


def make_student(
    model: keras.Model,
    width: Width = 0.5,
    depth: float = 1.0,
    *,
    round_to: int = 8,
    initialize: str = "random",
    exclude: Sequence[Any] = (),
    seed: int = 0,
    name: str | None = None,
) -> keras.Model:
    """Makes a narrower, shallower net of the teacher's architecture, to be trained by `Distiller`.

    Width: channels that layers share (through residuals, gates, depthwise layers) are cut together. Of a group stay

        m * floor(width * channels / m + 1/2),   m = round_to; at least m, or all where there are fewer

    An attention loses whole heads; one with a single head loses of its size. Inputs and outputs stay, and so does what
    may not go: what enters a layer without a channel rule, or what a reshape lays together with something else
    (`kdopt.graph.channel_groups` tells which, and why).

    Depth: round(depth * n) of n blocks stay. A block is a residual branch with an identity shortcut; an attention and
    the dense layers behind it; or, in a net without residuals, a layer as wide as what it reads, with normalization and
    activation. What a block read goes where its output went. The deepest blocks of each resolution go, in proportion to
    how many it has; the first one stays.

    All layers of the student train, also those the teacher has frozen. It is not compiled. Names of layers, inputs and
    outputs, dtype policies and nesting stay; a subclassed model comes out as a Functional one.

    Args:
        model: The teacher: built Functional, Sequential or traceable subclassed `keras.Model`; left as it is.
        width: Float in (0, 1], the share of its channels that a layer keeps; or a dict from names or paths of layers
            and nested models to such shares, the others keep all; or a function path -> share. Of layers that share
            channels the largest share counts. Defaults to `0.5`.
        depth: Float in (0, 1], the share of the blocks that stay. Defaults to `1.0`.
        round_to: Integer >= 1: a group that is cut keeps a multiple of it; heads do not. Defaults to `8`.
        initialize: `"random"` (default): new weights from the layers' own initializers, moving statistics 0 and 1; only
            what a layer learned by `adapt` stays. `"teacher"`: of each group the channels whose kernels have the
            largest L1 norm, with their weights and moving statistics.
        exclude: List of layers, names, classes, regular expressions: whose channels stay. Defaults to `()`.
        seed: Integer >= 0; the same one gives the same student. The generators of Python, NumPy and Keras stay as they
            are; an initializer with a seed of its own keeps that. Defaults to `0`.
        name: Defaults to `None`: that of `model` and `"_student"`.

    Returns: new `keras.Model`.
    Raises: ValueError if no channel can go, or fewer blocks than `depth` asks for, for an unbuilt model or a wrong
        argument; TypeError for what is no plain `keras.Model`, or one that cannot be traced or made from its config.

    Example:
    ```
    student = make_student(teacher, width=0.5, depth=0.75)
    distiller = Distiller(student=student, teacher=teacher)
    ```

    Reference: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015 (thinner students); Sanh et al.,
        "DistilBERT", 2019 (shallower ones, begun with layers of the teacher); Li et al., "Pruning Filters for
        Efficient ConvNets", ICLR 2017 (the L1 norm).
    """
    _check_model(model)
    _check_width(width)
    check_integer("round_to", round_to)
    check_one_of("initialize", initialize, ("random", "teacher"))
    if not check_fraction("depth", depth, one=True):
        raise ValueError("`depth` must be a fraction in (0, 1]; got 0.")
    excluded = paths_of(model, exclude, "exclude")
    with seeded(seed):
        short = _shallower(model, depth)
        graph = trace_channels(short, allow_normalized_axes=True)
        _freeze(graph, excluded)
        removed = _removed(model, graph, width, round_to)
        named = f"{model.name}_student" if name is None else name
        student = without(short, graph, removed, weights=initialize == "teacher", compiled=False, name=named)
    for layer in student._flatten_layers():  # set on the model alone, Keras passes on no True where it has one
        layer.trainable = True
    return student


def _shallower(model: keras.Model, depth: float) -> keras.Model:
    """The model itself, or a copy without the blocks that go."""
    if depth == 1:
        return model
    copied = without(model, trace_channels(model), np.empty(0, int), compiled=False)
    stages = find_stages(copied)
    count = sum(stage.count for stage in stages)
    able = [block.name for stage in stages for block in stage.removable]
    gone = count - max(1, math.floor(depth * count + 0.5))
    if able and gone <= len(able):
        return without_blocks(copied, spread(stages, gone)) if gone else model
    kinds = (
        "A block is a residual branch with an identity shortcut or, in a net without any, a layer as wide as what it "
        "reads; the first one of each shape stays. `width` makes a net smaller, too."
    )
    if not able:
        raise ValueError(f"depth={depth:g}: {model.name!r} has no block that repeats and could go. {kinds}")
    raise ValueError(
        f"depth={depth:g} takes {gone} of the {count} blocks of {model.name!r}, but {len(able)} can go "
        f"({', '.join(able)}): `depth` down to {1 - len(able) / count:.4g}. {kinds}"
    )


def _removed(model: keras.Model, graph: ChannelGraph, width: Width, round_to: int) -> np.ndarray:
    """Identities of the channels that go."""
    groups = free_groups(graph)
    share_of = _shares(width, [path for path, _ in layers_of(model)])
    if isinstance(width, Mapping):
        _check_free(width, graph, [path for group in groups for path in group.makers])

    def fraction_of(group: Group) -> float:
        told = [share for share in map(share_of, group.makers) if share is not None]
        return max(told, default=1.0)

    removed = removed_channels(graph, groups, fraction_of, round_to)
    if not removed.size and width != 1:
        reasons = sorted(set(graph.labels.frozen().values()))[:4]
        if widest := max((group.roots.size * group.size for group in groups), default=0):
            reasons.insert(0, f"round_to={round_to} keeps the {widest} channels of the widest group that may be cut")
        raise ValueError(
            f"width={width!r} takes no channel of {model.name!r}: {'; '.join(reasons) or 'no layer makes any'}. Way "
            "out: a smaller `width` or `round_to`, fewer in `exclude`, or `width=1` and a smaller `depth`."
        )
    return removed


def _check_free(width: Mapping[str, float], graph: ChannelGraph, makers: Sequence[str]) -> None:
    """Refuses a share for a layer whose channels must all stay."""
    frozen, why = graph.labels.frozen(), {}
    for slot in graph.labels.slots():
        if slot.role == "makes" and (root := int(graph.labels.roots(slot.labels)[0])) in frozen:
            why[graph.paths.get(id(slot.layer), slot.layer.name)] = frozen[root]
    for key in (key for key, share in width.items() if share < 1):
        there = [path for path in graph.paths.values() if is_named(key, path)]
        if there and not any(is_named(key, path) for path in makers):
            reason = next((why[path] for path in there if path in why), "it makes none")
            raise ValueError(f"`width` names {key!r}, but no channel of it may go: {reason}.")


def _shares(width: Width, layers: Sequence[str]) -> Callable[[str], float | None]:
    """Function path of a layer -> its share, `None` if nothing is said of it."""
    if isinstance(width, Mapping):
        for key in width:
            if not isinstance(key, str) or not any(is_named(key, path) for path in layers):
                raise ValueError(unknown(key, layers, "width"))
        return lambda path: max((float(share) for key, share in width.items() if is_named(key, path)), default=None)
    if callable(width):
        return lambda path: _returned(path, width(path))
    return lambda path: float(width)


def _returned(path: str, share: Any) -> float:
    try:
        _check_width(share)
    except ValueError as error:
        raise ValueError(f"The function `width` returned {share!r} for {path!r}: {error}") from None
    return float(share)


def _freeze(graph: ChannelGraph, paths: Sequence[str]) -> None:
    """Keeps what the layers at some paths make."""
    for slot in graph.labels.slots():
        path = graph.paths.get(id(slot.layer), slot.layer.name)
        if slot.role == "makes" and path in paths:
            graph.labels.freeze(slot.labels, f"`exclude` names {path!r}")


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a built keras.Model; got {type(model).__name__}.")
    if isinstance(getattr(model, "student", None), keras.Model):
        raise TypeError(f"{model.name!r} is a Distiller: give its `teacher`, or its `student`.")
    wrapped = [layer.name for layer in model._flatten_layers() if hasattr(layer, "to_plain")]
    if wrapped or (callable(getattr(model, "strip", None)) and hasattr(model, "__tflite_source__")):
        raise TypeError(
            f"{model.name!r} is wrapped for pruning, or trains with rounding: give the plain model, e.g. "
            "`kdopt.pruning.strip(model)` or `model.strip()`."
        )


def _check_width(width: Any) -> None:
    """Refuses what is no share, dict of shares or function."""
    shares = list(width.values()) if isinstance(width, Mapping) else [] if callable(width) else [width]
    if 0 in [check_fraction("width", share, one=True) for share in shares] or (shares == [] and not callable(width)):
        raise ValueError(f"`width` must be a fraction in (0, 1], a dict of such, or a function; got {width!r}.")
