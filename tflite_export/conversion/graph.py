"""From a source to a SavedModel, which is what the converter reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tflite_export.errors import ConversionError
from tflite_export.sources.protocol import Source

LOOPS = frozenset({"While", "StatelessWhile", "If", "StatelessIf"})


def traced(source: Source, batch: int | None) -> Any:
    """The source as a concrete function.

    Raises: ConversionError.
    """
    import tensorflow as tf

    specs = [
        tf.TensorSpec((batch if source.fixed_batch is None else source.fixed_batch, *spec.shape[1:]), spec.dtype, name)
        for name, spec in source.inputs.items()
    ]
    try:
        return tf.function(source.call, input_signature=specs, autograph=False).get_concrete_function()
    except Exception as error:
        raise ConversionError(f"{source.label} cannot be traced into a TensorFlow graph: {error}") from error


def operations_in(function: Any) -> set[str]:
    """Kinds of TensorFlow operations in a concrete function, inner functions included."""
    graph = function.graph.as_graph_def()
    return {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}


def save(source: Source, function: Any, folder: str) -> None:
    """Writes a SavedModel: `from_concrete_functions` silently drops the weights of a Keras 3 model.

    Raises: ConversionError.
    """
    save_all([source], {"serving_default": function}, folder)


def save_all(sources: Sequence[Source], functions: Mapping[str, Any], folder: str) -> None:
    """Writes a SavedModel with several signatures, which share the variables that their sources share.

    Args:
        sources: One for each function.
        functions: Signature name -> concrete function.
        folder: Where to.

    Raises: ConversionError.
    """
    import tensorflow as tf

    holder = tf.Module()
    # The variables alone: saving a tf_keras model itself would trace every layer of it again.
    held = [variable for source in sources for variable in _variables(source.module)]
    holder.tracked = [*held, *(variable for function in functions.values() for variable in function.graph.variables)]
    holder.modules = [source.module for source in sources if not hasattr(source.module, "variables")]
    source = sources[0]
    try:
        tf.saved_model.save(holder, folder, signatures=dict(functions))
    except (AssertionError, ValueError) as error:  # a table of a lookup layer, a name TensorFlow cannot store
        reason = str(error).strip().splitlines()[0]
        raise ConversionError(
            f"{source.label} cannot be saved for the converter: {reason} Do look-ups (StringLookup, IntegerLookup) "
            "before the model, and give model and layers plain names."
        ) from error


def check_weights(source: Source) -> None:
    """Refuses weights that are no numbers, of which the converter says something else.

    Raises: ConversionError.
    """
    for variable in getattr(source.module, "variables", ()):
        values = np.asarray(variable) if "float" in str(variable.dtype) else np.zeros(())
        if not np.isfinite(values.astype(np.float32)).all():
            raise ConversionError(
                f"{source.label}: {getattr(variable, 'path', variable.name)!r} holds NaN or infinity. Its training has "
                "diverged: start again from weights before that, with a smaller learning rate or clipped gradients."
            )


def _variables(module: Any) -> list[Any]:
    """The tf.Variables of a module; those of Keras 3 hold one."""
    import tensorflow as tf

    held = [getattr(variable, "value", variable) for variable in getattr(module, "variables", ())]
    return [variable for variable in held if isinstance(variable, tf.Variable)]
