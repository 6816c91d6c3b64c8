"""A Keras 3 model as a source."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from tflite_export.sources.protocol import InputSpec, Source, layer_names, safe_names
from tflite_export.sources.structures import refilled, shapes_in, structure_keys

_HALVES = ("float16", "bfloat16")
_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")


def from_keras(model: Any) -> Source:
    """A Functional, Sequential or subclassed model, in inference mode.

    One that was trained with a policy `mixed_float16` or `mixed_bfloat16` computes in float32, on the float32 weights
    that it has: no runtime on a CPU has operations in float16.

    Raises: ValueError for names that TensorFlow refuses, and for models whose input shapes are not known.
    """
    import keras

    label = f"Keras model {model.name!r}"
    _check_names(model, label)
    _refuse_quantized(model, label)
    structure, outputs = getattr(model, "_inputs_struct", None), None
    if structure is None and isinstance(model, keras.Sequential) and model.built:
        structure, outputs = model.inputs[0], model.outputs
    elif structure is not None:
        outputs = model._outputs_struct
    if structure is None:
        return _from_called(model, label)
    tensors = keras.tree.flatten(structure)
    names = safe_names(structure_keys(structure, keras.tree.flatten) or [tensor.name for tensor in tensors])

    def function(*arguments: Any) -> list[Any]:
        packed = keras.tree.pack_sequence_as(structure, list(arguments))
        with _computing_in_float32(model):
            return list(keras.tree.flatten(model(packed, training=False)))

    produced = [tensor._keras_history[0].name for tensor in keras.tree.flatten(outputs)]
    return Source(
        label=label,
        module=model,
        function=function,
        inputs={name: InputSpec(tuple(t.shape), t.dtype) for name, t in zip(names, tensors, strict=True)},
        outputs=safe_names(structure_keys(outputs, keras.tree.flatten) or produced),
        layers=layer_names(model),
        scopes_numbered=True,
        **_quantized_layers(model),
    )


def _quantized_layers(model: Any) -> dict[str, Any]:
    """What layers say of kernels whose integers the converter cannot derive, and what such a model can be."""
    having = [layer for layer in model._flatten_layers() if hasattr(layer, "__tflite_kernels__")]
    if not having:
        return {}
    made = [kernel for layer in having for kernel in layer.__tflite_kernels__()]
    return {"kernels": made, "precisions": ("int8", "int8_float_io", "uint8")}


def _check_names(model: Any, label: str) -> None:
    """TensorFlow refuses such a name in the middle of the call, and Keras then keeps its name scope for good."""
    import keras

    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.layers.InputLayer)]
    strange = [name for name in sorted({layer.name for layer in layers}) if not _SCOPE_NAME.fullmatch(name)]
    if strange:
        raise ValueError(
            f"{label} has names that TensorFlow cannot put into a graph: {', '.join(map(repr, strange))}. Expected "
            "letters, digits and _ . - / only, a letter, a digit or a dot first. Build the model with such names and "
            "copy the weights: `new.set_weights(model.get_weights())`."
        )


def _refuse_quantized(model: Any, label: str) -> None:
    """Keras' own quantization makes products of int8 matrices that TensorFlow Lite has no operation for."""
    done = [layer.name for layer in model._flatten_layers() if getattr(layer, "quantization_mode", None)]
    if done:
        named = ", ".join(map(repr, done[:5])) + (", ..." if len(done) > 5 else "")
        raise ValueError(
            f"{label} was quantized by Keras (`model.quantize`), in the layers {named}, with operations that "
            "TensorFlow Lite lacks. Convert the model as it was before, to 'int8' with representative data, or to "
            "'weight_int8'."
        )


def _from_called(model: Any, label: str) -> Source:
    """A subclassed Keras 3 model: Keras recorded the shapes of its first call."""
    import keras

    if isinstance(model, keras.Sequential):
        raise ValueError(
            f"{label} is not built, so its input shape is unknown. Start it with `keras.Input(shape)`, or call "
            "`model.build((None, ...))`, then convert."
        )
    shapes = getattr(model, "_build_shapes_dict", None)
    if not model.built or not shapes or not getattr(model, "_called", True):
        raise ValueError(
            f"{label} is a subclassed model that was never called, so its input shapes are unknown. Call it once on a "
            "batch, e.g. `model(np.zeros((1, 28, 28, 1), 'float32'))`, then convert."
        )
    _refuse_unrecorded(model, len(shapes), label)
    structures = list(shapes.values())
    paths: list[str] = []
    flat: list[tuple[int | None, ...]] = []
    for argument, structure in shapes.items():
        for path, shape in shapes_in(structure):
            paths.append(path or argument.removesuffix("_shape"))
            flat.append((None, *shape[1:]))
    names = safe_names(paths)
    dtype = "float32" if model.input_dtype in _HALVES else model.input_dtype

    def function(*arguments: Any) -> list[Any]:
        queue = list(arguments)
        with _computing_in_float32(model):
            result = model(*[refilled(structure, queue) for structure in structures], training=False)
        return list(keras.tree.flatten(result))

    # One symbolic call tells the output structure.
    symbolic = [keras.KerasTensor(shape, dtype=dtype) for shape in flat]
    produced = model(*[refilled(structure, symbolic) for structure in structures], training=False)
    numbered = [f"output_{i}" for i in range(len(keras.tree.flatten(produced)))]
    return Source(
        label=label,
        module=model,
        function=function,
        inputs={name: InputSpec(shape, dtype) for name, shape in zip(names, flat, strict=True)},
        outputs=safe_names(structure_keys(produced, keras.tree.flatten) or numbered),
        layers=layer_names(model),
        scopes_numbered=True,
        **_quantized_layers(model),
    )


@contextlib.contextmanager
def _computing_in_float32(model: Any) -> Iterator[None]:
    """Lets layers that compute in 16 bits, on weights of 32 bits, compute in 32 bits."""
    import keras

    policies = [
        (layer, layer.dtype_policy)
        for layer in model._flatten_layers()
        if layer.compute_dtype in _HALVES and layer.variable_dtype == "float32"
    ]
    try:
        for layer, _ in policies:
            layer.dtype_policy = keras.DTypePolicy("float32")
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _refuse_unrecorded(model: Any, recorded: int, label: str) -> None:
    """Without a `build` of its own, Keras records the first argument of a subclassed model only."""
    skip = ("training", "mask")
    parameters = [
        name
        for name, parameter in inspect.signature(model.call).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and name not in skip
    ]
    if len(parameters) > recorded:
        raise ValueError(
            f"{label} takes the arguments {parameters}, of which Keras recorded the shapes of {recorded}. Put a "
            "Functional model around it and convert that: `keras.Model(inputs, model(*inputs))` with one `keras.Input` "
            "for each."
        )
