"""What tf_keras cannot rebuild, refused with the layer's name and the way out."""

from typing import Any

import keras

from kdopt.graph.inline import Call
from kdopt.graph.trace import graph_of, is_graph


def check_dtypes(call: Call) -> None:
    """Refuses mixed precision and layers Keras has quantized itself.

    Raises: ValueError that names the layer and the way out.
    """
    policy = getattr(call.operation, "dtype_policy", None)
    if policy is None or (policy.compute_dtype == policy.variable_dtype == "float32" and policy.name == "float32"):
        return
    # An integer or bool layer (token ids, lookups) has nothing to quantize.
    if not policy.name.startswith(("mixed", "float", "bfloat", "int8", "int4")):
        return
    raise ValueError(
        f"Layer {call.name!r} has the dtype policy {policy.name!r}; quantize_aware trains in float32, "
        f"the int8 grid is set by "
        "fake quantization. Way out: `keras.config.set_dtype_policy('float32')`, rebuild the model "
        "and copy the weights with "
        "`new.set_weights(model.get_weights())`."
    )


def functional_of(model: Any) -> Any:
    """The Functional graph behind `model`.

    Raises: TypeError for a subclassed model, ValueError for an unbuilt Sequential; both name the way out.
    """
    chain = isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call
    if chain or is_graph(model):
        return graph_of(model)  # which refuses a Sequential that is not built
    raise TypeError(
        f"Engine 'tfmot' expected a Keras 3 Sequential or Functional model; received {type(model).__name__}, which "
        "computes its outputs in Python code that cannot be rebuilt layer by layer. Way out: engine='native'; or write "
        "it with the functional API, `keras.Model(inputs, outputs)`; parts with their own `call` may stay as layers in "
        "it."
    )
