"""From a traced Keras 3 call to the tf_keras steps that compute the same.

Three tiers. (1) A built-in layer becomes the tf_keras layer of the same name, its inline activation split off unless
TFLite fuses it. (2) `keras.ops` nodes become the merge, reshape and activation layers tfmot knows. (3) Everything
else stays Keras 3 code inside one opaque tf_keras layer.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import keras

from kdopt.graph.inline import Call, Ref
from kdopt.quantization.checks import check_unmasked
from kdopt.quantization.tfmot.activations import activation_name, activation_steps
from kdopt.quantization.tfmot.backend import load
from kdopt.quantization.tfmot.checks import check_dtypes
from kdopt.quantization.tfmot.operations import translate_operation
from kdopt.quantization.tfmot.rewrites import rewrite
from kdopt.quantization.tfmot.steps import Step, Weight, variable_keys

Fresh = Callable[[], int]

# Class name -> attribute of the kernel in tf_keras.
KERNELS = {
    "Dense": "kernel",
    "Conv1D": "kernel",
    "Conv2D": "kernel",
    "Conv2DTranspose": "kernel",
    "DepthwiseConv2D": "depthwise_kernel",
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
_RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
_RENAMED_WEIGHTS = {"DepthwiseConv2D": {"kernel": "depthwise_kernel"}}
# Carried by Keras 3 (regularizers and constraints live on the shared variables), or overwritten (initial values).
_CARRIED = ("_initializer", "_regularizer", "_constraint")
_DROPPED = {"name", "dtype", "trainable", "activation", "registered_name", "batch_shape", "batch_input_shape"}


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
    steps = [rewritten] if rewritten else _builtin(call, fresh) or translate_operation(call) or [opaque(call)]
    regularizer = getattr(call.operation, "activity_regularizer", None)
    if regularizer is not None and (rewritten or steps[-1].kind != "Opaque" or len(steps) > 1):
        steps = _with_activity_loss(steps, call, regularizer, fresh)
    return steps


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
    step = partial(
        Step,
        call.name,
        call.name,
        kind,
        weights=_weights(call, kind),
        kernel=KERNELS.get(kind),
        trainable=call.operation.trainable,
    )
    activation = getattr(call.operation, "activation", None)
    if activation_name(activation) in (None, "linear", "relu"):
        if "activation" in inspect.signature(type(call.operation)).parameters:
            config["activation"] = activation_name(activation) or "linear"
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


def _separable(call: Call, fresh: Fresh) -> list[Step]:
    layer, between = call.operation, fresh()
    shared = {"data_format": layer.data_format, "dilation_rate": layer.dilation_rate}
    depthwise = {**shared, "kernel_size": layer.kernel_size, "strides": layer.strides, "padding": layer.padding}
    depthwise |= {"depth_multiplier": layer.depth_multiplier, "use_bias": False}
    pointwise = {
        "data_format": layer.data_format,
        "filters": layer.filters,
        "kernel_size": 1,
        "use_bias": layer.use_bias,
    }
    keys = {variable.name: Weight(key, variable, "") for key, variable in variable_keys(call.name, layer)}

    def weight(name: str, attribute: str) -> Weight:
        return Weight(keys[name].key, keys[name].source, attribute)

    first = (weight("depthwise_kernel", "depthwise_kernel"),)
    second = (weight("pointwise_kernel", "kernel"), *((weight("bias", "bias"),) if layer.use_bias else ()))
    activation = activation_name(layer.activation) or "linear"
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
        ),
        make(
            f"{call.name}_pointwise",
            kind="Conv2D",
            config={**pointwise, "activation": fused},
            inputs=(between,),
            outputs=last,
            weights=second,
            kernel="kernel",
        ),
    ]
    if fused != activation:
        steps += activation_steps(call, layer.activation, f"{call.name}_activation", last, call.outputs)
    return steps


def _weights(call: Call, kind: str) -> tuple[Weight, ...]:
    renamed = _RENAMED_WEIGHTS.get(kind, {})
    found = [
        (key, variable, renamed.get(variable.name, variable.name))
        for key, variable in variable_keys(call.name, call.operation)
    ]
    # A Dropout's seed has no counterpart: tf_keras draws from its own generator.
    return tuple(Weight(*entry) for entry in found if entry[2] != "seed_generator_state")


def _with_activity_loss(steps: list[Step], call: Call, regularizer: Any, fresh: Fresh) -> list[Step]:
    between = fresh()
    last = steps[-1]
    steps = [*steps[:-1], Step(**{**last.__dict__, "outputs": (between,)})]
    name = f"{call.name}_activity_loss"
    layer = keras.layers.Identity(activity_regularizer=regularizer, name=name)
    own = Call(name, layer, (Ref(between),), {}, call.outputs, call.shapes, call.dtypes)
    return [*steps, Step(name, call.name, "Opaque", {"call": own}, (between,), call.outputs, extra={"identity": True})]
