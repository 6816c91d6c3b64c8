"""A step: one tf_keras layer called once. What a traced model is translated into."""

from dataclasses import dataclass, field
from typing import Any

import keras


@dataclass(frozen=True)
class Weight:
    """Which Keras 3 variable fills which attribute of the tf_keras layer.

    Args:
        key: String, `source layer/variable`; stable across clones of the model, so files use it.
        source: Variable of the Keras 3 model.
        attribute: Attribute of the tf_keras layer, or the position in an opaque layer's list of variables.
    """

    key: str
    source: keras.Variable
    attribute: str | int


@dataclass(frozen=True)
class Step:
    """One call of one tf_keras layer.

    Args:
        name: String, unique for the layer object; a shared layer gives several steps with one name.
        source: String, name of the source layer in the trace.
        kind: String, name of the tf_keras layer class, or `"Opaque"`.
        config: Keyword arguments of the class; for `"Opaque"` the `Call` under `"call"`.
        inputs: Numbers of the tensors it takes.
        outputs: Numbers of the tensors it gives.
        weights: Its variables.
        kernel: Attribute that holds the kernel, None if it has none.
        trainable: Whether the source layer is.
    """

    name: str
    source: str
    kind: str
    config: dict[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[Weight, ...] = ()
    kernel: str | None = None
    trainable: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def activation(self) -> str:
        """Name of the inline activation, `"linear"` if there is none."""
        return self.config.get("activation") or "linear"


def variable_keys(name: str, operation: Any) -> list[tuple[str, keras.Variable]]:
    """`(key, variable)` for every variable of `operation`, keys unique and in the layer's own order."""
    keys: list[tuple[str, keras.Variable]] = []
    seen: dict[str, int] = {}
    for variable in getattr(operation, "variables", []):
        count = seen.get(variable.name, 0)
        seen[variable.name] = count + 1
        keys.append((f"{name}/{variable.name}" + (f"_{count}" if count else ""), variable))
    return keys
