"""From a traced Keras 3 call to the tf_keras steps that compute the same.

Three tiers. (1) A built-in layer becomes the tf_keras layer of the same name, its inline activation split off unless TFLite
fuses it. (2) `keras.ops` nodes become the merge, reshape and activation layers tfmot knows. (3) Everything else stays Keras 3
code inside one opaque tf_keras layer.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.rewrites import elu, rewrite
from kdopt.quantization.tfmot.steps import Step, Weight, variable_keys
from kdopt.quantization.tfmot.trace import Call, Ref

Fresh = Callable[[], int]

# Class name -> (attribute of the kernel in tf_keras, axis of the output channels).
KERNELS: dict[str, tuple[str, int]] = {
    "Dense": ("kernel", 1),
    "Conv1D": ("kernel", 2),
    "Conv2D": ("kernel", 3),
    "Conv2DTranspose": ("kernel", 2),
    "DepthwiseConv2D": ("depthwise_kernel", 2),
}
_PLAIN = {
    "Activation",
    "Add",
    "Average",
    "AveragePooling1D",
    "AveragePooling2D",
    "AveragePooling3D",
    "BatchNormalization",
    "Concatenate",
    "Cropping1D",
    "Cropping2D",
    "Cropping3D",
    "Dropout",
    "Conv1DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Flatten",
    "GaussianDropout",
    "GaussianNoise",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalAveragePooling3D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GlobalMaxPooling3D",
    "LeakyReLU",
    "MaxPooling1D",
    "MaxPooling2D",
    "MaxPooling3D",
    "Maximum",
    "Minimum",
    "Multiply",
    "PReLU",
    "Permute",
    "ReLU",
    "RepeatVector",
    "Rescaling",
    "Reshape",
    "Softmax",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "Subtract",
    "UpSampling1D",
    "UpSampling2D",
    "UpSampling3D",
    "ZeroPadding1D",
    "ZeroPadding2D",
    "ZeroPadding3D",
}
# Equal in both Keras; `hard_sigmoid` and `hard_silu` are not.
_ACTIVATIONS = {
    *("linear", "softmax", "sigmoid", "tanh", "swish", "gelu"),
    *("selu", "softplus", "softsign", "exponential"),
}
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_RENAMED_WEIGHTS = {"DepthwiseConv2D": {"kernel": "depthwise_kernel"}}
# Carried by Keras 3 (regularizers and constraints live on the shared variables), or overwritten (initial values).
_CARRIED = ("_initializer", "_regularizer", "_constraint")
_DROPPED = {"name", "dtype", "trainable", "activation", "registered_name", "batch_shape", "batch_input_shape"}
_OPS: dict[str, str] = {name: name for name in ("Add", "Subtract", "Multiply", "Maximum", "Minimum")}


def translate(call: Call, fresh: Fresh) -> list[Step]:
    """The steps that compute `call`.

    Args:
        call: A call of a trace.
        fresh: Gives numbers for tensors between the steps.

    Returns: Steps, in order; the last one gives `call.outputs`.
    """
    check_dtypes(call)
    check_unmasked(call)
    rewritten = rewrite(call)
    steps = [rewritten] if rewritten else _builtin(call, fresh) or _ops(call) or [opaque(call)]
    regularizer = getattr(call.operation, "activity_regularizer", None)
    if regularizer is not None and (rewritten or steps[-1].kind != "Opaque" or len(steps) > 1):
        steps = _with_activity_loss(steps, call, regularizer, fresh)
    return steps


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
        f"Layer {call.name!r} has the dtype policy {policy.name!r}; quantize_aware trains in float32, the int8 grid is set by "
        "fake quantization. Way out: `keras.config.set_dtype_policy('float32')`, rebuild the model and copy the weights with "
        "`new.set_weights(model.get_weights())`."
    )


def check_unmasked(call: Call) -> None:
    """Refuses layers that produce Keras masks, which travel beside the tensors and have no place in a `.tflite`.

    Raises: ValueError.
    """
    if getattr(call.operation, "mask_zero", False) or isinstance(call.operation, keras.layers.Masking):
        raise ValueError(
            f"Layer {call.name!r} produces a Keras mask (Masking, or Embedding with mask_zero=True), which quantize_aware does "
            "not carry. Way out: pass the mask as a tensor of its own and multiply by it."
        )


def opaque(call: Call) -> Step:
    """Tier 3: the Keras 3 operation as it is."""
    weights = [Weight(key, variable, i) for i, (key, variable) in enumerate(variable_keys(call.name, call.operation))]
    trainable = getattr(call.operation, "trainable", True)
    return Step(
        call.name, call.name, "Opaque", {"call": call}, call.inputs(), call.outputs, tuple(weights), trainable=trainable
    )


def is_builtin(operation: Any, name: str) -> bool:
    """Whether `operation` is exactly the Keras layer `name`, not a subclass."""
    return type(operation) is getattr(keras.layers, name, None)


def _builtin(call: Call, fresh: Fresh) -> list[Step]:
    kind = type(call.operation).__name__
    if kind not in KERNELS and kind not in _PLAIN and not kind.startswith("SeparableConv"):
        return []
    if not is_builtin(call.operation, kind) or len(call.outputs) != 1 or call.kwargs.keys() - {"inputs"}:
        return []
    if kind == "SeparableConv2D":
        return _separable(call, fresh)
    if kind == "Activation":
        return activation_steps(call, call.operation.activation, call.name, call.inputs(), call.outputs)
    config = clean_config(kind, call.operation)
    if config is None:
        return []
    kernel, axis = KERNELS.get(kind, (None, None))
    step = partial(
        Step,
        call.name,
        call.name,
        kind,
        weights=_weights(call, kind),
        kernel=kernel,
        channel_axis=axis,
        trainable=call.operation.trainable,
    )
    activation = getattr(call.operation, "activation", None)
    if _name(activation) in (None, "linear", "relu"):
        if "activation" in inspect.signature(type(call.operation)).parameters:
            config["activation"] = _name(activation) or "linear"
        return [step(config, call.inputs(), call.outputs)]
    between = fresh()
    head = step({**config, "activation": "linear"}, call.inputs(), (between,))
    return [head, *activation_steps(call, activation, f"{call.name}_activation", (between,), call.outputs)]


def clean_config(kind: str, operation: Any) -> dict[str, Any] | None:
    """Arguments for the tf_keras layer `kind`, or None if it lacks an option that `operation` uses."""
    known = set(inspect.signature(getattr(load().tf_keras.layers, kind).__init__).parameters)
    defaults = inspect.signature(type(operation).__init__).parameters
    config: dict[str, Any] = {}
    for key, value in operation.get_config().items():
        target = _RENAMED.get(kind, {}).get(key, key)
        if key in _DROPPED or key.endswith(_CARRIED) or key == "activity_regularizer":
            continue
        if target in known:
            config[target] = value
        elif key not in defaults or value not in (defaults[key].default, None):
            return None
    return config


def activation_steps(call: Call, function: Any, name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> list[Step]:
    """An activation as a layer of its own.

    Args:
        call: The call it belongs to.
        function: Keras 3 activation function.
        name: Name of the step.
        inputs: One tensor number.
        outputs: One tensor number.
    """
    known = _name(function)
    step = partial(Step, name, call.name, inputs=inputs, outputs=outputs)
    if known in ("relu", "relu6"):
        return [step("ReLU", {"max_value": 6.0} if known == "relu6" else {})]
    if known in _ACTIVATIONS:
        return [step("Activation", {"activation": known})]
    if known == "elu":
        own = Call(name, elu(), tuple(Ref(i) for i in inputs), {}, outputs, call.shapes, call.dtypes)
        return [Step(name, call.name, "Opaque", {"call": own}, inputs, outputs, extra={"label": "elu"})]
    layer = function if isinstance(function, keras.Layer) else keras.layers.Activation(function, name=name)
    own = Call(name, layer, tuple(Ref(i) for i in inputs), {}, outputs, call.shapes, call.dtypes)
    return [Step(name, call.name, "Opaque", {"call": own}, inputs, outputs)]


def _name(function: Any) -> str | None:
    if function is None:
        return None
    name = getattr(function, "__name__", None)
    if name is None or getattr(keras.activations, name, None) is not function:
        return "custom"
    return {"silu": "swish"}.get(name, name)


def _separable(call: Call, fresh: Fresh) -> list[Step]:
    layer, between = call.operation, fresh()
    shared = {"data_format": layer.data_format, "dilation_rate": layer.dilation_rate}
    depthwise = {**shared, "kernel_size": layer.kernel_size, "strides": layer.strides, "padding": layer.padding}
    depthwise |= {"depth_multiplier": layer.depth_multiplier, "use_bias": False}
    pointwise = {"data_format": layer.data_format, "filters": layer.filters, "kernel_size": 1, "use_bias": layer.use_bias}
    keys = {variable.name: Weight(key, variable, "") for key, variable in variable_keys(call.name, layer)}

    def weight(name: str, attribute: str) -> Weight:
        return Weight(keys[name].key, keys[name].source, attribute)

    first = (weight("depthwise_kernel", "depthwise_kernel"),)
    second = (weight("pointwise_kernel", "kernel"), *((weight("bias", "bias"),) if layer.use_bias else ()))
    activation = _name(layer.activation) or "linear"
    fused = activation if activation in ("linear", "relu") else "linear"
    last = call.outputs if fused == activation else (fresh(),)
    make = partial(Step, source=call.name, trainable=layer.trainable)
    steps = [
        make(
            f"{call.name}_depthwise",
            kind="DepthwiseConv2D",
            config=depthwise,
            inputs=call.inputs(),
            outputs=(between,),
            weights=first,
            kernel="depthwise_kernel",
            channel_axis=2,
        ),
        make(
            f"{call.name}_pointwise",
            kind="Conv2D",
            config={**pointwise, "activation": fused},
            inputs=(between,),
            outputs=last,
            weights=second,
            kernel="kernel",
            channel_axis=3,
        ),
    ]
    if fused != activation:
        steps += activation_steps(call, layer.activation, f"{call.name}_activation", last, call.outputs)
    return steps


def _weights(call: Call, kind: str) -> tuple[Weight, ...]:
    renamed = _RENAMED_WEIGHTS.get(kind, {})
    found = [(key, variable, renamed.get(variable.name, variable.name)) for key, variable in variable_keys(call.name, call.operation)]
    # A Dropout's seed has no counterpart: tf_keras draws from its own generator.
    return tuple(Weight(*entry) for entry in found if entry[2] != "seed_generator_state")


def _ops(call: Call) -> list[Step]:
    operation = call.operation
    if not type(operation).__module__.startswith("keras.src.ops."):
        return []
    kind, flat = type(operation).__name__, keras.tree.flatten((call.args, call.kwargs))
    if not flat or not all(isinstance(leaf, Ref) for leaf in flat):
        return []
    found = _op_layer(kind, operation, call, len(flat))
    return [Step(call.name, call.name, *found, call.inputs(), call.outputs)] if found else []


def _op_layer(kind: str, operation: Any, call: Call, operands: int) -> tuple[str, dict[str, Any]] | None:
    if kind in _OPS and operands == 2:
        return kind, {}
    if kind == "Concatenate":
        return "Concatenate", {"axis": operation.axis}
    if kind in ("Relu", "Relu6"):
        return "ReLU", {"max_value": 6.0} if kind == "Relu6" else {}
    if kind in ("Sigmoid", "Tanh", "Silu"):
        return "Activation", {"activation": {"Silu": "swish"}.get(kind, kind.lower())}
    if kind == "Softmax" and operation.axis == -1:
        return "Softmax", {"axis": -1}
    if kind == "Reshape":
        shape = tuple(operation.newshape)
        if len(shape) > 1 and shape[0] in (-1, None) and all(isinstance(n, int) and n > 0 for n in shape[1:]):
            return "Reshape", {"target_shape": shape[1:]}
    if kind == "Mean" and tuple(operation.axis or ()) == (1, 2) and len(call.shapes[0]) == (4 if operation.keepdims else 2):
        return "GlobalAveragePooling2D", {"keepdims": operation.keepdims, "data_format": "channels_last"}
    return None


def _with_activity_loss(steps: list[Step], call: Call, regularizer: Any, fresh: Fresh) -> list[Step]:
    between = fresh()
    last = steps[-1]
    steps = [*steps[:-1], Step(**{**last.__dict__, "outputs": (between,)})]
    name = f"{call.name}_activity_loss"
    layer = keras.layers.Identity(activity_regularizer=regularizer, name=name)
    own = Call(name, layer, (Ref(between),), {}, call.outputs, call.shapes, call.dtypes)
    return [*steps, Step(name, call.name, "Opaque", {"call": own}, (between,), call.outputs, extra={"identity": True})]
