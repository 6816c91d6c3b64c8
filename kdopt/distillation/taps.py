"""Taps: which inner tensors of a model a distillation loss looks at."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import keras
import tensorflow as tf

from kdopt.core.recording import Recorded, Recording, operations_of, recording

STAGES, EMBEDDING, ATTENTION = "stages", "embedding", "attention"
# What only pads or prepares an input is not the end of a stage.
_PREPARING = (
    *(getattr(keras.layers, f"ZeroPadding{rank}D") for rank in (1, 2, 3)),
    keras.layers.Normalization,
    keras.layers.Rescaling,
    keras.layers.Resizing,
)
Tap = str | int | re.Pattern[str]
Taps = Tap | Sequence[Tap]


@dataclass(frozen=True, eq=False)
class Tapped:
    """One inner tensor of a model.

    Attributes:
        path: Names of nested models and layers from the model down, joined by `/`.
        operation: The layer or operation that makes it.
        call: Which of the layer's calls, from 0; shared layers have several.
        calls: How many there are.
        shape: With the batch axis; `None` where it is not known.
        attends: Whether it is an attention layer.
        reads: Which of all tensors it was made of, as a place among them; `None`: of none of them, or not known.
        absent: Why its values cannot be had, as an error says it; empty where they can.
    """

    path: str
    operation: Any
    call: int
    calls: int
    shape: tuple[int | None, ...]
    attends: bool = False
    reads: int | None = None
    absent: str = ""

    @property
    def name(self) -> str:
        """As a tap: the path, with the number of the call if there are several."""
        return self.path if self.calls == 1 else f"{self.path}@{self.call}"

    def __repr__(self) -> str:
        return f"{self.name} {'x'.join(map(str, self.shape))}"

    def of(self, seen: Recording) -> Recorded:
        """The tensor in one run.

        Raises: ValueError if the run did not come to it.
        """
        calls = seen.of(self.operation)
        if len(calls) != self.calls:
            raise ValueError(
                f"The tapped layer {self.name!r} was called {len(calls)} times in this pass, and {self.calls} times "
                "when the model was looked at: its model takes another way in training. Tap a layer that always runs."
            )
        return calls[self.call]


def tensors_of(model: keras.Model, inputs: Any) -> list[Tapped]:
    """Every tensor of a model that can be tapped, in the order of the calls; computes nothing.

    Args:
        model: Built model.
        inputs: KerasTensors as the model takes them.

    Returns: what single layers and operations make of floating-point tensors with a batch axis. What lives inside a
        loop, a branch or a function of TensorFlow is left out: it ends there.
    """
    paths = operations_of(model)
    names = {id(operation): path for path, operation in paths.items()}
    graphs: list[Any] = []

    def look(x: Any) -> Any:
        graphs.append(tf.compat.v1.get_default_graph())
        return model(x, training=False)

    with recording(paths.values()) as seen:
        keras.src.backend.compute_output_spec(look, inputs)
    counts = Counter(id(call.operation) for call in seen.calls)
    numbers: Counter[int] = Counter()
    made: dict[int, int] = {}  # identity of a tensor, or of who made it -> its place, the last one
    batch = next((tensor.shape[0] for tensor in keras.tree.flatten(inputs) if tensor is not None), None)
    found: list[Tapped] = []
    for call in seen.calls:
        number = numbers[id(call.operation)]
        numbers[id(call.operation)] += 1
        if _is_feature(call.output, batch) and getattr(call.output, "graph", graphs[-1]) is graphs[-1]:
            found.append(
                Tapped(
                    names[id(call.operation)],
                    call.operation,
                    number,
                    counts[id(call.operation)],
                    tuple(call.output.shape),
                    call.attention is not None,
                    made.get(id(call.read), made.get(id(_before(call.operation)))),
                )
            )
            made[id(call.output)] = made[id(call.operation)] = len(found) - 1
    return found


def _before(operation: Any) -> Any:
    """Who makes what an operation reads in a Functional model; of one that is called several times it is not known."""
    nodes = getattr(operation, "_inbound_nodes", [])
    read = nodes[0].arguments.keras_tensors if len(nodes) == 1 else []
    return getattr(read[0], "_keras_history", [None])[0] if read else None


def resolve(taps: Taps, tensors: Sequence[Tapped], model: keras.Model, role: str) -> list[Tapped]:
    """The tensors that taps name.

    Args:
        taps: A tap or a list of them: the name of a layer (or the end of its path, `"block_3/add"`; `"dense@1"` for the
            second call of a shared layer), an index into `model.layers`, a compiled regular expression that is
            searched in the paths; `"stages"`, the last layer of each resolution; `"embedding"`, the vector that the
            last layer with weights reads; `"attention"`, the last attention layer.
        tensors: Those of the model, by `tensors_of`.
        model: For indices and messages.
        role: `"student"` or `"teacher"`, for messages.

    Raises: ValueError for a tap that is not there, with the close ones and the list, or whose values cannot be had;
        TypeError for what is no tap.
    """
    found: list[Tapped] = []
    for tap in taps if isinstance(taps, list | tuple) else [taps]:
        if isinstance(tap, re.Pattern):
            matches = [tensor for tensor in tensors if tap.search(tensor.path)]
        elif isinstance(tap, int) and not isinstance(tap, bool):
            layer = _layer_at(tap, model, role)
            matches = [one for one in tensors if one.operation is layer] or _by_name(layer.name, tensors)
        elif isinstance(tap, str):
            matches = _GROUPS[tap](tensors) if tap in _GROUPS else _by_name(tap, tensors)
        else:
            raise TypeError(
                "A tap is the name of a layer, an index, a compiled regular expression, 'stages', 'embedding' or "
                f"'attention'; got {tap!r}."
            )
        if not matches:
            raise ValueError(_missing(tap, tensors, model, role))
        if len(matches) > 1 and isinstance(tap, str | int) and tap not in _GROUPS:
            raise ValueError(
                f"Tap {tap!r} fits {len(matches)} tensors of the {role} {model.name!r}: "
                f"{', '.join(repr(tensor.name) for tensor in matches[:6])}. Name one of them."
            )
        for tensor in matches:
            if tensor.absent:
                raise ValueError(tensor.absent)
        found += matches
    return found


def stages(tensors: Sequence[Tapped]) -> list[Tapped]:
    """The last tensor of each resolution: feature maps by height and width, or else sequences by length.

    Maps of one by one position (the gates of squeeze and excite), padded and rescaled inputs, and tensors inside a
    layer are no stages.
    """
    padding = [tensor for tensor in tensors if prepares(tensor.operation)]
    whole = [tensor for tensor in tensors if tensor not in padding and not _is_inside(tensor, tensors)]
    for rank in (5, 4, 3):
        last: dict[tuple[int | None, ...], Tapped] = {}
        for tensor in whole:
            if len(tensor.shape) == rank and any(size != 1 for size in tensor.shape[1:-1]):
                last.pop(tensor.shape[1:-1], None)
                last[tensor.shape[1:-1]] = tensor
        if last:
            return list(last.values())
    return []


def embedding(tensors: Sequence[Tapped]) -> list[Tapped]:
    """The vector that the last layer with weights reads, or else the last vector, or tensor, made before it."""
    heads = [place for place, tensor in enumerate(tensors) if _has_weights(tensor.operation)]
    read = tensors[heads[-1]].reads if heads else None
    if read is not None and len(tensors[read].shape) == 2:
        return [tensors[read]]
    before = list(tensors[: heads[-1]]) if heads else []
    vectors = [tensor for tensor in before if len(tensor.shape) == 2]
    return (vectors or before)[-1:]


def last_attention(tensors: Sequence[Tapped]) -> list[Tapped]:
    """The last attention layer."""
    return [tensor for tensor in tensors if tensor.attends][-1:]


_GROUPS = {STAGES: stages, EMBEDDING: embedding, ATTENTION: last_attention}


def prepares(operation: Any) -> bool:
    """Whether an operation only pads or prepares an input."""
    return isinstance(operation, _PREPARING) or getattr(operation, "prepares", False)


def is_model(operation: Any) -> bool:
    """Whether an operation is a nested model."""
    return isinstance(operation, keras.Model) or getattr(operation, "is_model", False)


def _has_weights(operation: Any) -> bool:
    return bool(getattr(operation, "weights", ())) and not is_model(operation)


def _is_inside(tensor: Tapped, tensors: Sequence[Tapped]) -> bool:
    """Whether it is made inside a layer that is no model."""
    for other in tensors:
        inside = tensor.path.startswith(f"{other.path}/")
        if inside and not is_model(other.operation):
            return True
    return False


def _is_feature(output: Any, batch: int | None) -> bool:
    """Whether it is a tensor of floating-point numbers with an axis for the samples of the batch."""
    shape = getattr(output, "shape", None)
    if shape is None or len(shape) < 2 or (shape[0] is not None and shape[0] != batch):
        return False
    return keras.backend.is_float_dtype(str(output.dtype.name))


def _by_name(name: str, tensors: Sequence[Tapped]) -> list[Tapped]:
    exact = [tensor for tensor in tensors if name in (tensor.path, tensor.name)]
    return (
        exact
        or [tensor for tensor in tensors if f"/{tensor.name}".endswith(f"/{name}")]
        or [tensor for tensor in tensors if f"/{tensor.path}".endswith(f"/{name}")]
    )


def _layer_at(index: int, model: keras.Model, role: str) -> Any:
    layers = model.layers
    if not -len(layers) <= index < len(layers):
        raise ValueError(
            f"Tap {index}: the {role} {model.name!r} has {len(layers)} layers, so an index is in "
            f"[{-len(layers)}, {len(layers) - 1}]."
        )
    return layers[index]


def unseen_attention(tapped: Tapped, role: str) -> str:
    """Why an attention layer can be tapped as a feature only."""
    return (
        f"{tapped.name!r} of the {role} is an attention layer of a model that trains with rounding, in which its "
        "queries, keys and values are not seen. Distill attention in float, before `quantize_aware`; then tap the "
        "layer behind it."
    )


_ATTENDING = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_WITHOUT = {
    STAGES: "has no feature maps or sequences of floating-point numbers",
    EMBEDDING: "has no layer before its last one with weights",
    ATTENTION: "calls no MultiHeadAttention or GroupQueryAttention of Keras (name a layer that gives probabilities)",
}


def _missing(tap: Any, tensors: Sequence[Tapped], model: keras.Model, role: str) -> str:
    unseen = [tensor for tensor in tensors if isinstance(tensor.operation, _ATTENDING)]
    if tap == ATTENTION and unseen:
        return unseen_attention(unseen[-1], role)
    if isinstance(tap, str) and tap in _WITHOUT:
        return f"Nothing to tap for {tap!r}: the {role} {model.name!r} {_WITHOUT[tap]}."
    what = f"the regular expression {tap.pattern!r}" if isinstance(tap, re.Pattern) else f"{tap!r}"
    names = [tensor.name for tensor in tensors]
    ends = {name.rsplit("/", 1)[-1]: name for name in reversed(names)}
    close = [ends.get(one, one) for one in get_close_matches(str(tap), [*names, *ends], n=3)]
    hint = f" Did you mean {' or '.join(map(repr, dict.fromkeys(close)))}?" if close else ""
    listed = ", ".join(names[:40]) + (f", ... ({len(names)} in all)" if len(names) > 40 else "")
    return (
        f"Nothing to tap in the {role} {model.name!r} for {what}.{hint} What can be tapped: "
        f"{listed or 'nothing; it shows no layers of Keras that make floating-point tensors'}."
    )


def check_taps(name: str, taps: Any) -> Taps:
    """Taps of the right kinds, not empty.

    Raises: TypeError, ValueError.
    """
    items = list(taps) if isinstance(taps, list | tuple) else [taps]
    if not items:
        raise ValueError(f"`{name}` is empty; name at least one layer.")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, str | int | re.Pattern) or item == "":
            raise TypeError(
                f"`{name}` must be the name of a layer, an index, a compiled regular expression, 'stages', "
                f"'embedding', 'attention' or a list of these; got {item!r}."
            )
    return items if isinstance(taps, list | tuple) else taps


def taps_to_config(taps: Taps) -> Any:
    """Taps as JSON holds them."""
    if isinstance(taps, list | tuple):
        return [taps_to_config(tap) for tap in taps]
    return {"regex": taps.pattern, "flags": taps.flags} if isinstance(taps, re.Pattern) else taps


def taps_from_config(config: Any) -> Any:
    """What `taps_to_config` was given."""
    if isinstance(config, list | tuple):
        return [taps_from_config(tap) for tap in config]
    if isinstance(config, dict) and set(config) == {"regex", "flags"}:
        return re.compile(config["regex"], config["flags"])
    return config
