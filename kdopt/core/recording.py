"""Inner tensors of a model, caught in its own forward pass, without a trace in the model.

While `recording` is open, `call` of the wanted layers and operations is replaced on the instances; what they return is
kept, and nothing is computed twice. It works in eager code, while a step is compiled, and in the threads of
`tf.distribute`, in Functional, Sequential, nested and subclassed models alike. A model that computes a layer by other
means than calling it says what the layer made by `note`.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras

Tensor = Any


@dataclass(frozen=True)
class Attention:
    """What an attention layer compares.

    Attributes:
        query: Shape (batch, target positions, heads, size).
        key: Shape (batch, source positions, key heads, size).
        value: Shape (batch, source positions, key heads, value size).
        mask: True where a position may be attended to, broadcastable to (batch, target, source); `None`: everywhere.
        causal: Whether a position sees only those before it and itself.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool


@dataclass
class Recorded:
    """One call of one layer or operation.

    Attributes:
        operation: The layer or `keras.ops` operation.
        output: What it returned; the first tensor of an attention or recurrent layer that returns several.
        attention: What it compared, if it is a `MultiHeadAttention` or `GroupQueryAttention`.
        noted: Whether the model said so itself, by `note`.
        mask: Keras's mask of the output. `MultiHeadAttention` takes it off the tensors it reads; when the recording
            ends it is on the output again.
        read: Its first argument.
    """

    operation: Any
    output: Any
    attention: Attention | None = None
    noted: bool = False
    mask: Tensor | None = None
    read: Any = None

    def restore_mask(self) -> None:
        """Puts the mask on the output, where it is no more."""
        if self.mask is not None and getattr(self.output, "_keras_mask", None) is None:
            self.output._keras_mask = self.mask


@dataclass
class Recording:
    """The calls of one run, in order.

    Attributes:
        wanted: Identities of the operations to keep.
        calls: What was kept.
    """

    wanted: frozenset[int] = frozenset()
    calls: list[Recorded] = field(default_factory=list)
    _attention: dict[int, Attention] = field(default_factory=dict)

    def of(self, operation: Any) -> list[Recorded]:
        """The calls of one operation, in order."""
        return [call for call in self.calls if call.operation is operation]

    def keeps(self, operation: Any) -> bool:
        return id(operation) in self.wanted

    def add(self, operation: Any, output: Any, read: Any) -> None:
        if self.keeps(operation):
            if isinstance(output, list | tuple) and isinstance(operation, _WITH_MORE):
                output = output[0]
            self.calls.append(Recorded(operation, output, self._attention.pop(id(operation), None), read=read))

    def masked(self, operation: Any, mask: Any) -> None:
        own = self.of(operation)
        if own and not keras.tree.is_nested(own[-1].output):
            own[-1].mask = mask[0] if isinstance(mask, list | tuple) else mask

    def compared(self, operation: Any, attention: Attention) -> None:
        if self.keeps(operation):
            self._attention[id(operation)] = attention

    def noted(self, operation: Any, output: Any, again: bool) -> None:
        if not self.keeps(operation):
            return
        own = self.of(operation)
        if own and (again or not own[-1].noted):
            own[-1].output, own[-1].noted = output, True
        else:
            self.calls.append(Recorded(operation, output, noted=True))


# What returns attention scores or states behind the tensor that it is known by.
_WITH_MORE = (
    keras.layers.MultiHeadAttention,
    keras.layers.GroupQueryAttention,
    keras.layers.RNN,
    keras.layers.Bidirectional,
)
_active = threading.local()  # each replica of tf.distribute traces in a thread of its own
_lock = threading.Lock()
_installed: dict[int, tuple[int, Callable[[], None]]] = {}  # identity -> how many recordings watch it, how to undo


@contextmanager
def recording(operations: Iterable[Any]) -> Iterator[Recording]:
    """Keeps what layers and operations return while it is open, in this thread."""
    watched = list({id(operation): operation for operation in operations}.values())
    made = Recording(frozenset(map(id, watched)))
    for operation in watched:
        _install(operation)
    _stack().append(made)
    try:
        yield made
    finally:
        _stack().remove(made)
        for operation in watched:
            _uninstall(operation)
        for call in made.calls:
            call.restore_mask()


def note(operation: Any, output: Any, again: bool = False) -> None:
    """Says what a layer made, from a model that does not call its layers or changes what they return.

    Args:
        operation: The layer.
        output: In place of what its call has just returned, if it was called.
        again: Whether it takes the place of what was said of the same call before.
    """
    for made in _stack():
        made.noted(operation, output, again)


def is_recording() -> bool:
    """Whether a recording is open in this thread."""
    return bool(_stack())


def operations_of(model: keras.Model) -> dict[str, Any]:
    """All layers and operations of a model that can be recorded, by path (names from the model down, joined by `/`).

    What a recurrent layer or `TimeDistributed` runs in its loop is left out: its tensors end with it. A model that
    computes the layers of another one, and says by `note` what they made, returns it from `__recorded_model__()`.
    """
    found: dict[str, Any] = {}
    shown = getattr(model, "__recorded_model__", None)
    _collect(model if shown is None else shown(), "", found, set())
    return found


def _collect(parent: Any, prefix: str, found: dict[str, Any], seen: set[int]) -> None:
    if isinstance(parent, keras.layers.RNN | keras.layers.TimeDistributed):
        return
    for operation in _children(parent):
        if id(operation) in seen or isinstance(operation, keras.layers.InputLayer):
            continue
        seen.add(id(operation))
        path = prefix + operation.name
        while path in found:
            path += "_"  # two layers of one name under one parent: only subclassed models have them
        found[path] = operation
        if isinstance(operation, keras.layers.Layer):
            _collect(operation, f"{path}/", found, seen)


def _children(parent: Any) -> Iterator[Any]:
    yield from parent._flatten_layers(include_self=False, recursive=False)
    graph = getattr(parent, "_functional", None) or parent
    if isinstance(graph, keras.Function):
        yield from (one for one in graph.operations if not isinstance(one, keras.layers.Layer))


def _stack() -> list[Recording]:
    if not hasattr(_active, "stack"):
        _active.stack = []
    return _active.stack


def _install(operation: Any) -> None:
    with _lock:
        count, undo = _installed.get(id(operation), (0, None))
        _installed[id(operation)] = (count + 1, undo or _replace(operation))


def _uninstall(operation: Any) -> None:
    with _lock:
        count, undo = _installed.pop(id(operation))
        if count > 1:
            _installed[id(operation)] = (count - 1, undo)
        else:
            undo()


def _replace(operation: Any) -> Callable[[], None]:
    """Puts recording methods on the instance; returns what takes them off."""
    called = "call" if getattr(operation, "quantization_mode", None) is None else "quantized_call"
    methods = {called: _recording_call(operation, called)}
    if isinstance(operation, keras.layers.Layer):
        methods["compute_mask"] = _recording_mask(operation)
    if isinstance(operation, keras.layers.MultiHeadAttention | keras.layers.GroupQueryAttention):
        methods["_compute_attention"] = _recording_attention(operation)
    before = {name: vars(operation).get(name) for name in methods}
    vars(operation).update(methods)  # past Keras's own attribute tracking

    def undo() -> None:
        for name, own in before.items():
            if own is None:
                vars(operation).pop(name, None)
            else:
                vars(operation)[name] = own

    return undo


def _recording_call(operation: Any, name: str) -> Callable[..., Any]:
    original = getattr(operation, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        for made in _stack():
            made.add(operation, output, args[0] if args else None)
        return output

    return call


def _recording_mask(operation: Any) -> Callable[..., Any]:
    original = operation.compute_mask

    @functools.wraps(original)
    def compute_mask(*args: Any, **kwargs: Any) -> Any:
        mask = original(*args, **kwargs)
        for made in _stack():
            made.masked(operation, mask)
        return mask

    return compute_mask


def _recording_attention(operation: Any) -> Callable[..., Any]:
    original = operation._compute_attention

    @functools.wraps(original)
    def compute(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask", args[0] if args else None)
        attention = Attention(query, key, value, mask, bool(kwargs.get("use_causal_mask", False)))
        for made in _stack():
            made.compared(operation, attention)
        return original(query, key, value, *args, **kwargs)

    return compute
