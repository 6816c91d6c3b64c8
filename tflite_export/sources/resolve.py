"""From whatever the user has to a `Source`: Keras 3 model, tf_keras model, file, folder, `__tflite_source__`."""

import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tflite_export.sources.protocol import InputSpec, Source, from_protocol, layer_names, named_outputs, safe_names

_SCOPE_NAME = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_KERAS_FILES = (".keras", ".h5", ".hdf5")
_SUPPORTED = (
    "a Keras 3 model, a tf_keras model, the path of a `.keras` file or of a SavedModel folder, "
    "or an object with `__tflite_source__()`"
)


def resolve(source: Any) -> Source:
    """The `Source` behind anything that `convert` and `verify` accept.

    Raises: TypeError, ValueError, FileNotFoundError with what was expected; RuntimeError for Keras on another backend.
    """
    if isinstance(source, Source):
        return source
    if hasattr(source, "__tflite_source__") and not isinstance(source, type):
        return from_protocol(source)
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source))
    family = _family(source)
    if family == "keras":
        _require_tensorflow()
        return _from_keras(source)
    if family == "tf_keras":
        return _from_tf_keras(source)
    raise TypeError(f"`source` must be {_SUPPORTED}; got {type(source).__module__}.{type(source).__qualname__}.")


def _family(source: Any) -> str | None:
    """`"keras"`, `"tf_keras"` or None, without importing either: a model's package is loaded already."""
    for family in ("keras", "tf_keras"):
        package = sys.modules.get(family)
        if package is not None and isinstance(source, package.Model):
            return family
    return None


def _require_tensorflow() -> None:
    import keras

    if keras.config.backend() != "tensorflow":
        raise RuntimeError(
            f"Only Keras on the TensorFlow backend leads to a .tflite; this process runs Keras on "
            f"{keras.config.backend()!r}. Switch before the first `import keras`: "
            '`import os; os.environ["KERAS_BACKEND"] = "tensorflow"`.'
        )


def _from_path(path: Path) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"No such model: {str(path)!r}.")
    if path.is_dir():
        if not (path / "saved_model.pb").exists():
            raise ValueError(f"{str(path)!r} is a folder without saved_model.pb: not a SavedModel.")
        return _from_saved_model(path)
    if path.suffix not in _KERAS_FILES:
        raise ValueError(f"`source` must be {_SUPPORTED}; got the file {str(path)!r}.")
    import keras

    _require_tensorflow()
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:
        raise ValueError(f"Keras cannot load {str(path)!r}: {_reason(error)}") from error
    return resolve(model)


def _reason(error: Exception) -> str:
    """Keras' message without the model's whole config, and the way out where there is one."""
    text = str(error)
    missing = re.search(r"Could not locate \w+ '[^']*'", text)
    if missing:
        return (
            f"{missing.group()}. Import the package that registers it first, in Python or with `--import PACKAGE` on "
            "the command line (`kdopt` for its QAT models)."
        )
    return text if len(text) <= 1000 else f"{text[:1000]} ..."


def _from_keras(model: Any) -> Source:
    import keras

    label = f"Keras model {model.name!r}"
    _check_names(model, label)
    structure, outputs = getattr(model, "_inputs_struct", None), None
    if structure is None and isinstance(model, keras.Sequential) and model.built:
        structure, outputs = model.inputs[0], model.outputs
    elif structure is not None:
        outputs = model._outputs_struct
    if structure is None:
        return _from_called(model, label)
    tensors = keras.tree.flatten(structure)
    names = safe_names(_structure_keys(structure, keras.tree.flatten) or [tensor.name for tensor in tensors])

    def function(*arguments: Any) -> list[Any]:
        packed = keras.tree.pack_sequence_as(structure, list(arguments))
        return list(keras.tree.flatten(model(packed, training=False)))

    produced = [tensor._keras_history[0].name for tensor in keras.tree.flatten(outputs)]
    return Source(
        label=label,
        module=model,
        function=function,
        inputs={name: InputSpec(tuple(t.shape), t.dtype) for name, t in zip(names, tensors, strict=True)},
        outputs=safe_names(_structure_keys(outputs, keras.tree.flatten) or produced),
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
    return {"kernels": made, "precisions": ("int8", "int8_float_io")}


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
        for path, shape in _shapes(structure):
            paths.append(path or argument.removesuffix("_shape"))
            flat.append((None, *shape[1:]))
    names = safe_names(paths)
    dtype = model.input_dtype

    def function(*arguments: Any) -> list[Any]:
        queue = list(arguments)
        result = model(*[_refill(structure, queue) for structure in structures], training=False)
        return list(keras.tree.flatten(result))

    # One symbolic call tells the output structure.
    symbolic = [keras.KerasTensor(shape, dtype=dtype) for shape in flat]
    produced = model(*[_refill(structure, symbolic) for structure in structures], training=False)
    numbered = [f"output_{i}" for i in range(len(keras.tree.flatten(produced)))]
    return Source(
        label=label,
        module=model,
        function=function,
        inputs={name: InputSpec(shape, dtype) for name, shape in zip(names, flat, strict=True)},
        outputs=safe_names(_structure_keys(produced, keras.tree.flatten) or numbered),
        layers=layer_names(model),
        scopes_numbered=True,
        **_quantized_layers(model),
    )


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


def _from_tf_keras(model: Any) -> Source:
    import tensorflow as tf

    label = f"tf_keras model {model.name!r}"
    structure = getattr(model, "_nested_inputs", None)
    if structure is None:
        saved = model.save_spec() if model.built else None
        if saved is None:
            raise ValueError(
                f"{label} was never called, so its input shapes are unknown. Call it once on a batch, then convert."
            )
        structure = saved[0][0] if len(saved[0]) == 1 else list(saved[0])
    tensors = tf.nest.flatten(structure)
    called = [getattr(tensor, "name", None) or f"input_{i}" for i, tensor in enumerate(tensors)]
    named = list(getattr(model, "input_names", None) or called)
    names = safe_names(_structure_keys(structure, tf.nest.flatten) or named)
    nested = getattr(model, "_nested_outputs", None)
    outputs = _structure_keys(nested, tf.nest.flatten) or list(model.output_names or ["output_0"])

    def function(*arguments: Any) -> list[Any]:
        packed = tf.nest.pack_sequence_as(structure, list(arguments))
        return list(tf.nest.flatten(model(packed, training=False)))

    return Source(
        label=label,
        module=model,
        function=function,
        inputs={n: InputSpec(tuple(t.shape.as_list()), t.dtype.name) for n, t in zip(names, tensors, strict=True)},
        outputs=safe_names(outputs),
        layers=layer_names(model),
    )


def _from_saved_model(path: Path) -> Source:
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:
        raise ValueError(f"TensorFlow cannot load the SavedModel {str(path)!r}: {error}") from error
    if "serving_default" not in loaded.signatures:
        found = ", ".join(loaded.signatures) or "none"
        raise ValueError(f"The SavedModel {str(path)!r} has no signature 'serving_default'; it has: {found}.")
    signature = loaded.signatures["serving_default"]
    specs = signature.structured_input_signature[1]
    outputs = tuple(signature.structured_outputs)
    safe = safe_names(outputs)

    def function(*arguments: Any) -> dict[str, Any]:
        result = signature(**dict(zip(specs, arguments, strict=True)))
        return named_outputs([result[name] for name in outputs], safe)

    return Source(
        label=f"SavedModel {str(path)!r}",
        module=loaded,
        function=function,
        inputs={
            name: InputSpec(tuple(spec.shape.as_list()), spec.dtype.name)
            for name, spec in zip(safe_names(specs), specs.values(), strict=True)
        },
        outputs=safe,
    )


def _structure_keys(structure: Any, flatten: Callable[[Any], list[Any]]) -> list[str] | None:
    """The names a flat dict of tensors gives, in the order in which `flatten` takes them; else None."""
    if not isinstance(structure, Mapping) or any(isinstance(v, Mapping | list | tuple) for v in structure.values()):
        return None
    return list(flatten({key: key for key in structure}))


def _shapes(structure: Any, path: str = "") -> list[tuple[str, tuple[int | None, ...]]]:
    """(path, shape) of every tensor in a structure of shapes."""
    if isinstance(structure, Mapping):
        return [found for key, value in structure.items() for found in _shapes(value, f"{path}_{key}".lstrip("_"))]
    if all(isinstance(size, int) or size is None for size in structure):
        return [(path, tuple(structure))]
    return [found for i, value in enumerate(structure) for found in _shapes(value, f"{path or 'input'}_{i}")]


def _refill(structure: Any, queue: list[Any]) -> Any:
    """The structure of shapes with tensors, taken from the front of `queue`, in the places of the shapes."""
    if isinstance(structure, Mapping):
        return {key: _refill(value, queue) for key, value in structure.items()}
    if all(isinstance(size, int) or size is None for size in structure):
        return queue.pop(0)
    return type(structure)(_refill(value, queue) for value in structure)
