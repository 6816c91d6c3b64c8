"""A Keras 3 operation inside a tf_keras net.

The layer owns tf.Variables for the operation's variables, runs the operation in a `keras.StatelessScope` that reads
them, and writes back what the operation updated. So nothing of the source model is touched, whatever the operation
does.
"""

from functools import cache
from typing import Any

import keras

from kdopt.graph.inline import Call, Ref
from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.steps import Step


class Template:
    """Recorded arguments with numbered places for the tensors."""

    def __init__(self, call: Call) -> None:
        places = iter(range(len(call.inputs())))
        self.args, self.kwargs = keras.tree.map_structure(
            lambda leaf: Ref(next(places)) if isinstance(leaf, Ref) else leaf, (call.args, call.kwargs)
        )

    def fill(self, tensors: list[Any]) -> tuple[tuple, dict[str, Any]]:
        return keras.tree.map_structure(
            lambda leaf: tensors[leaf.index] if isinstance(leaf, Ref) else leaf, (self.args, self.kwargs)
        )

    def __repr__(self) -> str:
        return repr((self.args, self.kwargs))


class _Spec:
    """Plain object: tf_keras would wrap, track and try to serialize what a layer holds directly."""

    def __init__(self, step: Step) -> None:
        call: Call = step.config["call"]
        self.operation = call.operation
        self.template = Template(call)
        self.variables = [weight.source for weight in step.weights]
        self.takes_training = bool(getattr(call.operation, "_call_has_training_arg", False))


def make(step: Step) -> Any:
    """The tf_keras layer for an opaque step."""
    return _layer_class()(_Spec(step), name=step.name, trainable=step.trainable, dtype="float32", autocast=False)


def check_same_template(layer: Any, step: Step) -> None:
    """Refuses a shared operation that is called with different constants.

    Raises: ValueError.
    """
    if repr(layer.spec.template) != repr(Template(step.config["call"])):
        raise ValueError(
            f"Layer {step.source!r} is shared and called with different non-tensor arguments, which "
            f"quantize_aware cannot "
            "rebuild. Way out: use one layer a call, or pass the argument to the constructor."
        )


@cache
def _layer_class() -> Any:
    import tensorflow as tf

    base: Any = load().tf_keras.layers.Layer

    class KerasOperation(base):
        """Calls a Keras 3 operation with variables of its own."""

        def __init__(self, spec: _Spec, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.spec = spec

        def build(self, input_shape: Any) -> None:
            del input_shape
            self.state = [
                self.add_weight(
                    name=variable.name,
                    shape=tuple(variable.shape),
                    dtype=str(variable.dtype),
                    initializer="zeros",
                    trainable=variable.trainable and self.trainable,
                )
                for variable in self.spec.variables
            ]
            self.built = True

        @tf.autograph.experimental.do_not_convert
        def call(self, inputs: Any, training: Any = None) -> Any:
            tensors = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
            args, kwargs = self.spec.template.fill(tensors)
            if self.spec.takes_training:
                kwargs["training"] = bool(training)
            pairs = list(zip(self.spec.variables, self.state, strict=True))
            values = [(variable, tf.convert_to_tensor(state)) for variable, state in pairs]
            with keras.StatelessScope(state_mapping=values, collect_losses=True) as scope:
                outputs = keras.tree.flatten(self.spec.operation(*args, **kwargs))
            for (variable, state), (_, before) in zip(pairs, values, strict=True):
                after = scope.get_current_value(variable)
                if after is not None and after is not before:
                    state.assign(after)
            for loss in scope.losses:
                self.add_loss(loss)
            return outputs[0] if len(outputs) == 1 else outputs

    return KerasOperation
