"""Keras 3 layers that hold the variables of the tf_keras net, one a source layer."""

from typing import Any

import keras

from kdopt.core.live import users_own
from kdopt.quantization.tfmot.net import NetVariable


@keras.saving.register_keras_serializable("kdopt")
class QuantizedLayer(keras.layers.Layer):
    """The variables of one source layer, shared with the tf_keras net; the net computes, this layer does not.

    Setting `trainable` reaches the tf_keras layers, so a frozen BatchNormalization keeps its statistics.

    Args:
        name: Name of the source layer.
        variables: The net's variables of that layer.
        members: The tf_keras layers made from it.
        trainable: Whether the source layer is trainable.
    """

    def __init__(self, name: str, variables: list[NetVariable], members: list[Any], trainable: bool = True) -> None:
        super().__init__(name=name, dtype="float32")
        self.__dict__["_members"] = tuple(members)
        self.by_name = {entry.name: self._share(entry) for entry in variables}
        self.built = True
        if not trainable:
            self.trainable = False

    def _share(self, entry: NetVariable) -> keras.Variable:
        own = self.add_weight(
            shape=tuple(entry.value.shape),
            dtype=entry.value.dtype.name,
            initializer="zeros",
            trainable=entry.trainable,
            name=entry.name,
            # The user's own, so that Keras 3 applies them to the float weights as it did before.
            **({} if entry.source is None else users_own(entry.source)),
        )
        own._value = entry.value
        return own

    @property
    def trainable(self) -> bool:
        return bool(self._trainable)

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        for member in self.__dict__.get("_members", ()):
            member.trainable = bool(value)

    def call(self, inputs: Any) -> Any:
        raise RuntimeError(f"Layer {self.name!r} of a quantized model runs only inside the whole model; call that.")

    def save_own_variables(self, store: Any) -> None:
        """Nothing: the model stores all variables by name."""

    def load_own_variables(self, store: Any) -> None:
        """Nothing: the model loads all variables by name."""
