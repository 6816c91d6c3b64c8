"""A TensorFlow function as a source."""

from typing import Any

from tflite_export.sources.protocol import InputSpec, Source, named_outputs, safe_names
from tflite_export.sources.structures import structure_keys


def from_function(function: Any) -> Source:
    """A concrete function, or a `tf.function` with an input signature, with the variables it reads.

    Raises: ValueError for a function whose inputs are not known, or not tensors with a batch dimension.
    """
    import tensorflow as tf

    label = f"function {getattr(function, 'name', None) or getattr(function, '__name__', '?')!r}"
    concrete = function if hasattr(function, "structured_input_signature") else _concrete(function, label)
    signature = concrete.structured_input_signature
    leaves = tf.nest.flatten(signature, expand_composites=True)
    specs = [leaf for leaf in leaves if isinstance(leaf, tf.TypeSpec)]  # the others are bound: None, numbers, strings
    for spec in specs:
        if not isinstance(spec, tf.TensorSpec) or spec.shape.rank is None:
            raise ValueError(f"{label} takes {spec}: expected tensors of known rank only.")
        if spec.shape.rank == 0:
            raise ValueError(
                f"{label}: its input {spec.name!r} is a scalar; every input needs a batch dimension, e.g. "
                "`tf.TensorSpec([None, 1])`."
            )
    names = safe_names(spec.name or f"input_{place}" for place, spec in enumerate(specs))
    outputs = safe_names(_output_names(concrete.structured_outputs, label))

    def called(*tensors: Any) -> dict[str, Any]:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, tf.TypeSpec) else leaf for leaf in leaves]
        arguments, keywords = tf.nest.pack_sequence_as(signature, filled)
        return named_outputs(tf.nest.flatten(concrete(*arguments, **keywords)), outputs)

    holder = tf.Module()
    holder.held = list(concrete.variables)
    return Source(
        label=label,
        module=holder,
        function=called,
        inputs={
            name: InputSpec(tuple(spec.shape.as_list()), spec.dtype.name)
            for name, spec in zip(names, specs, strict=True)
        },
        outputs=outputs,
    )


def _concrete(function: Any, label: str) -> Any:
    try:
        return function.get_concrete_function()
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{label} has no input signature, so its input shapes are unknown. Write "
            "`@tf.function(input_signature=[tf.TensorSpec([None, ...])])`, or pass "
            "`function.get_concrete_function(tf.TensorSpec([None, ...]))`."
        ) from error


def _output_names(structure: Any, label: str) -> list[str]:
    import tensorflow as tf

    leaves = tf.nest.flatten(structure)
    if not leaves or not all(hasattr(leaf, "shape") for leaf in leaves):
        raise ValueError(f"{label} must return tensors; it returns {structure!r}.")
    return structure_keys(structure, tf.nest.flatten) or [f"output_{place}" for place in range(len(leaves))]
