"""What is rounded to what: schemes for a model, and exceptions for its layers."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

import keras

from kdopt.core.validation import check_one_of
from kdopt.quantization.weight_grids import Uniform, WeightGrid, grid_of


@dataclass(frozen=True)
class LayerScheme:
    """How a layer is rounded.

    Attributes:
        weights: Grid of its kernel; `None`: the layer stays float, between a DEQUANTIZE and a QUANTIZE.
        per_channel: Whether each output channel has a step of its own. Defaults to `True`.
        symmetric: Whether the range of its output is [-128 s, 127 s], zero point 0. Defaults to `False`.
    """

    weights: WeightGrid | None = field(default_factory=Uniform)
    per_channel: bool = True
    symmetric: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the converter itself derives the same steps from the weights."""
        return type(self.weights) is Uniform and self.weights.bits == 8 and self.per_channel

    def get_config(self) -> dict[str, Any]:
        weights = "float" if self.weights is None else keras.saving.serialize_keras_object(self.weights)
        return {"weights": weights, "per_channel": self.per_channel, "symmetric": self.symmetric}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "LayerScheme":
        weights = None if config["weights"] == "float" else grid_of(config["weights"])
        return cls(weights, config["per_channel"], config["symmetric"])


@dataclass(frozen=True)
class Scheme:
    """How a model is rounded.

    Attributes:
        bits: Of activations, 8 or 16; `None` leaves them float.
        dense_bits: Of the kernels of dense layers.
        precisions: What it can be exported to.
    """

    bits: int | None
    dense_bits: int
    precisions: tuple[str, ...]


SCHEMES = {
    "int8": Scheme(8, 8, ("int8", "int8_float_io", "uint8")),
    "int4_dense": Scheme(8, 4, ("int8", "int8_float_io", "uint8")),
    "int16x8": Scheme(16, 8, ("int16x8",)),
    "weight_int8": Scheme(None, 8, ("weight_int8",)),
    "weight_int4": Scheme(None, 4, ("weight_int8",)),
}
Layers = Mapping[Any, Any]


@dataclass(frozen=True)
class Schemes:
    """A scheme with its exceptions, as they are for the layers of one model.

    Attributes:
        scheme: The scheme.
        layers: Name of a layer -> its `LayerScheme`, for those that are not like the rest.
        floats: Names of the layers without a kernel that stay float.
    """

    scheme: Scheme
    layers: Mapping[str, LayerScheme]
    floats: frozenset[str] = frozenset()

    def of(self, layer: str) -> LayerScheme:
        """For a layer, by name."""
        return self.layers.get(layer, _PLAIN)


_PLAIN = LayerScheme()
# int8 without exceptions.
PLAIN = Schemes(SCHEMES["int8"], {})


@dataclass(frozen=True)
class Choices:
    """What there is to choose for in a model.

    Attributes:
        operations: Name -> layer or operation.
        kernels: Names of the layers with a kernel that is rounded.
        ranges: Names of the layers whose output has a range of its own in the file.
        computed: Names of those that compute something in the file, so that they could do so in floating point.
    """

    operations: Mapping[str, Any]
    kernels: Collection[str]
    ranges: Collection[str]
    computed: Collection[str] = ()


def resolve(scheme: str, layers: Layers | None, choices: Choices) -> Schemes:
    """The scheme of each layer of a model.

    Args:
        scheme: Name in `SCHEMES`.
        layers: See `quantize_aware`.
        choices: What the model has.

    Raises: TypeError, ValueError that name the entry.
    """
    check_one_of("scheme", scheme, SCHEMES)
    found = SCHEMES[scheme]
    made: dict[str, LayerScheme] = {}
    if found.dense_bits != 8:
        dense = LayerScheme(Uniform(found.dense_bits))
        made = {name: dense for name in choices.kernels if isinstance(choices.operations[name], _DENSE)}
    if layers is not None and not isinstance(layers, Mapping):
        raise TypeError(f"`layers` must be a dict, layer name or class -> how; got {type(layers).__name__}.")
    for key, value in (layers or {}).items():
        place = f"layers[{key!r}]"
        options = _options(value, place)
        for name in _followers(key, _asked(value, options), choices, place):
            made[name] = replace(made.get(name, _PLAIN), **options)
    floats = [name for name, own in made.items() if own.weights is None and name not in choices.kernels]
    if floats and found.bits is None:
        raise ValueError(
            f"`layers` leaves {', '.join(floats)} float, as scheme={scheme!r} does with all without kernels."
        )
    return Schemes(found, made, frozenset(floats))


_DENSE = (keras.layers.Dense, keras.layers.EinsumDense)


def _matched(key: Any, operations: Mapping[str, Any]) -> list[str]:
    """Names of the layers that a key means."""
    if isinstance(key, type):
        names = [name for name, layer in operations.items() if isinstance(layer, key)]
    elif isinstance(key, re.Pattern):
        names = [name for name in operations if key.search(name)]
    elif isinstance(key, str):
        names = [name for name in operations if name == key]
    else:
        raise TypeError(
            "Keys of `layers` are layers of the model, their names, their classes, or regular expressions made by "
            f"re.compile; got {key!r}."
        )
    if not names:
        close = get_close_matches(str(key), operations, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if any(name.startswith(f"{key}.") for name in operations):
            hint = f" All layers of a nested model: re.compile({re.escape(str(key)) + '.'!r})."
        raise ValueError(
            f"`layers` has {key!r}, but the model has no such layer.{hint} It has: {', '.join(operations)}."
        )
    return names


def _followers(key: Any, options: Mapping[str, Any], choices: Choices, place: str) -> list[str]:
    """The layers that an entry is for; of a pattern or class, those that can follow it."""
    names = _matched(key, choices.operations)
    wanted: dict[str, Collection[str]] = {}
    if options.get("weights", 0) is None:
        wanted["operation that could be float"] = list(dict.fromkeys([*choices.kernels, *choices.computed]))
    if "per_channel" in options or options.get("weights") is not None:
        wanted["kernel that is rounded"] = choices.kernels
    if options.get("symmetric") and choices.ranges is not None:
        wanted["output with a range of its own in the file"] = choices.ranges
    for what, those in wanted.items():
        able = [name for name in names if name in those]
        if not able or (isinstance(key, str) and len(able) < len(names)):
            raise ValueError(f"{place}: {', '.join(names)} has no {what}. Layers that have: {', '.join(those)}.")
        names = able
    return names


def _asked(value: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a layer has to be able to follow: of a whole `LayerScheme`, what is not as it is for all layers."""
    if not isinstance(value, LayerScheme):
        return options
    plain = {"per_channel": _PLAIN.per_channel, "symmetric": _PLAIN.symmetric}
    asked = {name: options[name] for name, usual in plain.items() if options[name] != usual}
    return asked if replace(value, per_channel=True).is_plain else {**asked, "weights": value.weights}


def _options(value: Any, place: str) -> dict[str, Any]:
    """The attributes of a `LayerScheme` that an entry sets, checked."""
    if isinstance(value, LayerScheme):
        return {"weights": value.weights, "per_channel": value.per_channel, "symmetric": value.symmetric}
    known = ("weights", "per_channel", "symmetric")
    options = dict(value) if isinstance(value, Mapping) and "class_name" not in value else {"weights": value}
    if strange := sorted(map(str, set(options) - set(known))):
        raise ValueError(f"{place} has {', '.join(strange)}; known: {', '.join(known)}.")
    for name in ("per_channel", "symmetric"):
        if not isinstance(options.get(name, True), bool):
            raise ValueError(f"{place}: `{name}` must be True or False; got {options[name]!r}.")
    if "weights" in options:
        try:
            options["weights"] = None if options["weights"] == "float" else grid_of(options["weights"])
        except (TypeError, ValueError) as error:
            raise type(error)(
                f"{place}: {error} A number means so many bits (one: 'binary'), 'float' leaves the layer in floating "
                "point."
            ) from None
    return options
