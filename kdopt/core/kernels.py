"""The prunable Variables of a model: what a layer's kernel is, whatever the layer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import keras
import numpy as np

from kdopt.core.neighbors import einsum_channel_axis, input_axes, norms_after


@dataclass(frozen=True)
class KernelView:
    """One prunable Variable.

    Attributes:
        name: String, the layer's name, with the layers around it and the variable's name joined by `/`
            as far as that is needed to tell it from the others.
        path: String, the same from the model down, complete.
        layer: The layer that owns it.
        variable: The float Variable that training updates, never a fake-quantized tensor.
        channel_axis: Integer < 0, axis of the output channels.
        index: Integer >= 0, place among the kernels of the model.
        input_axes: Axes (integers < 0) that are summed over the layer's input channels: one for dense layers and
            convolutions, several for some `EinsumDense`, none for depthwise kernels and embeddings.
        norm: The BatchNormalization that alone follows the layer and normalizes its channels, or `None`.
        around: The layers that hold the layer, from the model down.
    """

    name: str
    path: str
    layer: keras.layers.Layer
    variable: keras.Variable
    channel_axis: int
    index: int
    input_axes: tuple[int, ...] = (-2,)
    norm: keras.layers.BatchNormalization | None = None
    around: tuple[keras.layers.Layer, ...] = ()

    @property
    def bias(self) -> keras.Variable | None:
        """The layer's bias, one value a channel of this kernel; `None` where there is no such thing."""
        if self.is_inner:
            return None
        bias = getattr(self.layer, "bias", None)
        channels = (self.variable.shape[self.channel_axis],)
        return bias if isinstance(bias, keras.Variable) and tuple(bias.shape) == channels else None

    @property
    def is_inner(self) -> bool:
        """Whether other kernels of the layer stand between this one and the layer's output."""
        return self.variable is getattr(self.layer, "depthwise_kernel", None)

    def numpy(self) -> np.ndarray:
        """Value of the Variable; half-precision types widened, because NumPy cannot sort all of them."""
        value = keras.ops.convert_to_numpy(self.variable)
        return value if value.dtype.itemsize >= 4 else value.astype("float32")


@dataclass(frozen=True)
class Skipped:
    """A layer with weights that are no kernels, or that nobody knows.

    Attributes:
        name: String, the layer's name.
        reason: String.
        known: Bool. False where the layer's kind has no rule: a kernel may have been missed.
        unfit: Bool. True for a kernel that what is asked for (a pattern) has no meaning for. Defaults to `False`.
    """

    name: str
    reason: str
    known: bool
    unfit: bool = False


# Attribute of the layer -> axis of the output channels. Attributes with an underscore hold the Variable
# itself where the public one returns a computed tensor (LoRA, quantized inference).
_RULES: dict[type, dict[str, int]] = {
    keras.layers.Dense: {"_kernel": -1},
    keras.layers.Embedding: {"_embeddings": -1},
    keras.layers.Conv1D: {"_kernel": -1},
    keras.layers.Conv2D: {"_kernel": -1},
    keras.layers.Conv3D: {"_kernel": -1},
    keras.layers.Conv1DTranspose: {"kernel": -2},
    keras.layers.Conv2DTranspose: {"kernel": -2},
    keras.layers.Conv3DTranspose: {"kernel": -2},
    keras.layers.DepthwiseConv1D: {"kernel": -2},
    keras.layers.DepthwiseConv2D: {"kernel": -2},
    keras.layers.SeparableConv1D: {"depthwise_kernel": -2, "pointwise_kernel": -1},
    keras.layers.SeparableConv2D: {"depthwise_kernel": -2, "pointwise_kernel": -1},
    keras.layers.SimpleRNNCell: {"kernel": -1, "recurrent_kernel": -1},
    keras.layers.LSTMCell: {"kernel": -1, "recurrent_kernel": -1},
    keras.layers.GRUCell: {"kernel": -1, "recurrent_kernel": -1},
}
if hasattr(keras.layers, "ReversibleEmbedding"):  # not in Keras 3.12
    _RULES[keras.layers.ReversibleEmbedding] = {"_embeddings": -1, "reverse_embeddings": -1}
_NO_KERNEL: tuple[type, ...] = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.RMSNormalization,
    keras.layers.SpectralNormalization,
    keras.layers.PReLU,
)


def find_kernels(model: keras.Model) -> tuple[list[KernelView], list[Skipped]]:
    """Finds the kernels that `model.fit` trains, in the model's order.

    Looks inside nested and subclassed models, wrappers (`TimeDistributed`, `Bidirectional`), attention
    and recurrent layers. A shared Variable appears once; frozen ones do not appear. A layer of the
    user's own kind joins with a method `get_prunable_weights()` that returns a list of Variables, or of
    tuples (name, Variable, channel axis) where it holds the kernels of many layers.

    Args:
        model: Built `keras.Model`.

    Returns: the kernels, and the layers whose weights were left out, each with the reason.
    """
    trained = {id(variable) for variable in model.trainable_variables}
    found: list[tuple[str, tuple[keras.layers.Layer, ...], keras.Variable, int]] = []
    skipped: list[Skipped] = []
    seen: set[int] = set()
    for path, chain in _walk(model):
        layer = chain[-1]
        if not layer.built:
            skipped.append(Skipped(path, "not built: the model has not called it", known=True))
            continue
        own = _kernels_of(layer)
        if own is None and any(id(v) in trained and len(v.shape) >= 2 for v in layer._trainable_variables):
            reason = f"{type(layer).__name__} has no rule; give it a method get_prunable_weights()"
            skipped.append(Skipped(path, reason, known=False))
        for name, variable, axis in own or []:
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            if id(variable) in trained:
                found.append(("/".join(filter(None, (path, name))), chain, variable, axis))
            else:
                skipped.append(Skipped(path or name, "not trained by this fit", known=True))
    paths = [path for path, *_ in found]
    norms = norms_after(model)
    views = [
        KernelView(
            _shortest(path, paths, variable.name),
            path,
            chain[-1],
            variable,
            axis,
            index,
            input_axes(chain[-1], variable, axis),
            _norm_of(chain[-1], norms.get(id(chain[-1])), variable, axis),
            chain[:-1],
        )
        for index, (path, chain, variable, axis) in enumerate(found)
    ]
    return views, skipped


def _norm_of(layer: Any, norm: Any, variable: keras.Variable, channel_axis: int) -> Any:
    """The norm if it has one gamma a channel of the kernel, and the kernel makes what it reads."""
    if variable is getattr(layer, "depthwise_kernel", None):
        return None
    size = variable.shape[channel_axis]
    return (
        norm if norm is not None and [tuple(w.shape) for w in norm.weights] == [(size,)] * len(norm.weights) else None
    )


def _walk(
    layer: keras.layers.Layer, path: str = "", around: tuple[keras.layers.Layer, ...] = ()
) -> Iterator[tuple[str, tuple[keras.layers.Layer, ...]]]:
    """(path, layers from `layer` down to it) of all below `layer` in order; stops at one that names its weights."""
    chain = (*around, layer)
    yield path, chain
    if not hasattr(layer, "get_prunable_weights"):
        for child in layer._layers:
            yield from _walk(child, f"{path}/{child.name}" if path else child.name, chain)


def _shortest(path: str, paths: list[str], variable: str) -> str:
    """The shortest end of `path` that no other path ends with; never the variable's name alone."""
    parts = path.split("/")
    start = 2 if parts[-1] == variable else 1
    for length in range(start, len(parts)):
        name = "/".join(parts[-length:])
        if sum(f"/{other}".endswith(f"/{name}") for other in paths) == 1:
            return name
    return path


def _kernels_of(layer: keras.layers.Layer) -> list[tuple[str, keras.Variable, int]] | None:
    """(name, Variable, channel axis) of a layer's own kernels; `None` where its kind has no rule."""
    if hasattr(layer, "get_prunable_weights"):
        return [_named(layer, item) for item in layer.get_prunable_weights()]
    if isinstance(layer, _NO_KERNEL):
        return []
    if isinstance(layer, keras.layers.EinsumDense):
        return [("", _variable(layer, "_kernel"), einsum_channel_axis(layer.equation))]
    for kind in type(layer).__mro__:
        if kind in _RULES:
            tied = "reverse_embeddings" if getattr(layer, "tie_weights", False) else None
            attributes = {name: axis for name, axis in _RULES[kind].items() if name != tied}
            variables = {attribute: _variable(layer, attribute) for attribute in attributes}
            many = len(attributes) > 1
            return [
                (attribute.lstrip("_") if many else "", variable, attributes[attribute])
                for attribute, variable in variables.items()
            ]
    return None


def _named(layer: keras.layers.Layer, item: Any) -> tuple[str, keras.Variable, int]:
    if isinstance(item, keras.Variable):
        return (item.name, item, -1)
    if isinstance(item, tuple) and len(item) == 3 and isinstance(item[1], keras.Variable):
        return item
    raise TypeError(
        f"{type(layer).__name__}.get_prunable_weights() must return keras.Variables, or tuples "
        f"(name, keras.Variable, channel axis); got {item!r}."
    )


def _variable(layer: keras.layers.Layer, attribute: str) -> keras.Variable:
    variable = getattr(layer, attribute, None)
    if not isinstance(variable, keras.Variable):
        raise ValueError(
            f"Layer {layer.name!r} ({type(layer).__name__}) has no float kernel ({attribute}={variable!r}): prune "
            "before quantizing it for inference."
        )
    return variable


def select(
    kernels: list[KernelView], layers: Any, skipped: list[Skipped], argument: str = "layers"
) -> list[KernelView]:
    """The kernels of chosen layers.

    Args:
        kernels, skipped: As `find_kernels` returns them.
        layers: `None` (all); a list of layers, layer names (a nested model or block means all inside), layer classes
            and regular expressions (`re.compile`, searched for in `KernelView.path`); or a function
            `KernelView -> bool`.
        argument: Name of the argument that `layers` comes from, for messages.

    Raises: ValueError for a name or layer without a kernel, with the reason and the names there are.
    """
    if layers is None:
        return kernels
    single = isinstance(layers, (str, keras.layers.Layer, type, re.Pattern))
    if callable(layers) and not single:
        chosen = [view for view in kernels if layers(view)]
        if not chosen:
            raise ValueError(f"`{argument}` selects none of the kernels {', '.join(v.name for v in kernels)}.")
        return chosen
    if single:
        raise ValueError(f"`{argument}` must be a list, e.g. [{layers!r}]; got {layers!r}.")
    if not list(layers):
        none = "all" if argument == "layers" else "none"
        known = ", ".join(view.name for view in kernels)
        raise ValueError(f"`{argument}` is empty. Prunable here: {known}; None chooses {none}.")
    chosen_ids: set[int] = set()
    for item in layers:
        hits = [view for view in kernels if _selects(item, view)]
        if not hits:
            if not isinstance(item, (str, keras.layers.Layer)):
                raise ValueError(
                    f"{item!r} in `{argument}` selects none of the kernels {', '.join(v.path for v in kernels)}. Give "
                    "a layer, its name, its class, or a regular expression made by re.compile."
                )
            name = item if isinstance(item, str) else item.name
            raise ValueError(f"{_why_not(name, kernels, skipped)} Prunable here: {', '.join(v.name for v in kernels)}.")
        chosen_ids.update(id(view) for view in hits)
    return [view for view in kernels if id(view) in chosen_ids]


def _why_not(name: str, kernels: list[KernelView], skipped: list[Skipped]) -> str:
    reason = next((skip.reason for skip in skipped if name in skip.name.split("/")), None)
    if reason is not None:
        return f"Layer {name!r} has no prunable kernel ({reason})."
    close = get_close_matches(name, [view.name for view in kernels], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"There is no layer {name!r} with a prunable kernel.{hint}"


def _selects(item: Any, view: KernelView) -> bool:
    if isinstance(item, str):
        return item in (view.name, view.path, *view.path.split("/"))
    if isinstance(item, re.Pattern):
        return item.search(view.path) is not None
    if isinstance(item, type):
        return any(isinstance(layer, item) for layer in (*view.around[1:], view.layer))
    return isinstance(item, keras.layers.Layer) and any(chain[-1] is view.layer for _, chain in _walk(item))
