"""What an app would do before and after a model, put into its file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

import numpy as np

from tflite_export.sources.protocol import InputSpec, Source, named_outputs
from tflite_export.sources.resolve import resolve

_BEFORE, _AFTER = "preprocessing", "postprocessing"
_LAST = ("argmax", "top_k")
STEPS = ("softmax", "sigmoid", *_LAST)


def fold_processing(
    source: Any,
    *,
    rescale: Any = None,
    uint8_input: bool = False,
    output: Any = None,
    k: int = 5,
) -> Source:
    """A source that takes what the app has, and gives what the app wants: for `convert`, `verify`, and all else.

    Args:
        source: As in `convert`.
        rescale: (scale, offset), as `keras.layers.Rescaling` has them: the model gets `x * scale + offset`. Each is a
            float or a sequence of floats, one a channel: `(1 / 127.5, -1)`. For a model with several inputs, a dict
            input name -> (scale, offset). Defaults to `None`.
        uint8_input: Whether the inputs that are rescaled (without `rescale`: the only input) are uint8, as cameras and
            image decoders give them; in an int8 file nothing is computed in float for it. Defaults to `False`.
        output: What becomes of the only output (several: a dict output name -> it): `"softmax"`, `"sigmoid"`,
            `"argmax"` (int32 (n,)), `"top_k"` (two outputs, NAME_scores (n, k) and NAME_classes (n, k), int32), or a
            list of these, in order: `["softmax", "top_k"]`. Over the last axis. Defaults to `None`.
        k: Integer >= 1, of `"top_k"`; `convert` tells if there are fewer classes. Defaults to `5`.

    Returns: a `Source`. Representative data for it are as the new inputs take them.
    Raises: ValueError for unknown names and steps, and whatever `convert` raises for the source.

    Example:
    ```
    source = tflite_export.fold_processing(model, rescale=(1 / 255, 0), uint8_input=True, output=["softmax", "top_k"])
    file = tflite_export.convert(source, "int8", images)    # uint8 pixels
    ```
    """
    inner = resolve(source)
    scales = _rescales(inner, rescale)
    bytes_in = tuple(scales) if scales else _only("uint8_input", "input", tuple(inner.inputs)) if uint8_input else ()
    raw = bytes_in if uint8_input else ()
    if bad := [name for name in (*scales, *raw) if not inner.inputs[name].dtype.startswith("float")]:
        raise ValueError(
            f"{inner.label}: input {bad[0]!r} takes {inner.inputs[bad[0]].dtype}; only floats are rescaled."
        )
    steps = _steps(inner, output, k)
    if not scales and not raw and not steps:
        raise ValueError("Nothing to fold in: pass `rescale`, `uint8_input` or `output`.")

    def around(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
        def whole(*tensors: Any) -> dict[str, Any]:
            given = [_before(tensor, scales.get(name)) for name, tensor in zip(inner.inputs, tensors, strict=True)]
            return _after(named_outputs(function(*given), inner.outputs), steps, k)

        return whole

    outputs = tuple(new for name in inner.outputs for new in _names(name, steps.get(name, ())))
    if len(set(outputs)) < len(outputs):
        raise ValueError(f"The outputs would be {list(outputs)}: two of one name. Rename an output layer of the model.")
    inputs = {
        name: InputSpec(spec.shape, "uint8" if name in raw else spec.dtype) for name, spec in inner.inputs.items()
    }
    return replace(
        inner,
        label=f"{inner.label} with processing",
        function=around(inner.function),
        reference=None if inner.reference is None else around(inner.reference),
        inputs=inputs,
        outputs=outputs,
        layers=inner.layers | {_BEFORE, _AFTER},
        processed=True,
        ranked=frozenset(_names(name, own)[1] for name, own in steps.items() if "top_k" in own),
        calibration=None if inner.calibration is None else _undone(inner.calibration, scales, inputs),
    )


def _before(tensor: Any, scale: tuple[np.ndarray, np.ndarray] | None) -> Any:
    import tensorflow as tf

    with tf.name_scope(_BEFORE):
        floats = tf.cast(tensor, tf.float32) if tensor.dtype == tf.uint8 else tensor
        return floats if scale is None else floats * scale[0] + scale[1]


def _after(outputs: Mapping[str, Any], steps: Mapping[str, Sequence[str]], k: int) -> dict[str, Any]:
    import tensorflow as tf

    found: dict[str, Any] = {}
    with tf.name_scope(_AFTER):
        for name, value in outputs.items():
            values = [value]
            for step in steps.get(name, ()):
                if step == "softmax":
                    values = [tf.nn.softmax(values[0])]
                elif step == "sigmoid":
                    values = [tf.sigmoid(values[0])]
                elif step == "argmax":
                    values = [tf.argmax(values[0], axis=-1, output_type=tf.int32)]
                elif k > values[0].shape[-1]:
                    raise ValueError(f"`k` must be at most {values[0].shape[-1]}, the classes of {name!r}; got {k}.")
                else:
                    values = list(tf.math.top_k(values[0], k))
            found |= dict(zip(_names(name, steps.get(name, ())), values, strict=True))
    return found


def _names(name: str, steps: Sequence[str]) -> tuple[str, ...]:
    return (f"{name}_scores", f"{name}_classes") if "top_k" in steps else (name,)


def _rescales(source: Source, rescale: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if rescale is None:
        return {}
    names = tuple(source.inputs)
    given = dict(rescale) if isinstance(rescale, Mapping) else {_only("rescale", "input", names)[0]: rescale}
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"`rescale` names {unknown}; {source.label} has the inputs {list(names)}.")
    found = {}
    for name, pair in given.items():
        channels = source.inputs[name].shape[-1]
        try:
            scale, offset = (np.asarray(value, np.float32) for value in pair)
        except (TypeError, ValueError):
            scale = offset = np.zeros((0, 0), np.float32)
        fits = all(value.shape in ((), (channels,)) and np.isfinite(value).all() for value in (scale, offset))
        if not fits or not scale.all():
            raise ValueError(
                f"`rescale` of {name!r} must be (scale, offset), each a float or one float for each of {channels} "
                f"channels, the scale not 0; got {pair!r}."
            )
        found[name] = (scale, offset)
    return found


def _steps(source: Source, output: Any, k: Any) -> dict[str, tuple[str, ...]]:
    if output is None:
        return {}
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"`k` must be an integer >= 1; got {k!r}.")
    names = source.outputs
    given = dict(output) if isinstance(output, Mapping) else {_only("output", "output", names)[0]: output}
    if unknown := sorted(set(given) - set(names)):
        raise ValueError(f"`output` names {unknown}; {source.label} has the outputs {list(names)}.")
    found = {name: (steps,) if isinstance(steps, str) else tuple(steps) for name, steps in given.items()}
    for name, steps in found.items():
        if bad := [step for step in steps if step not in STEPS]:
            close = get_close_matches(str(bad[0]), STEPS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            choice = ", ".join(map(repr, STEPS))
            raise ValueError(f"`output` of {name!r}: a step is one of {choice}; got {bad[0]!r}.{hint}")
        if any(step in _LAST for step in steps[:-1]):
            raise ValueError(f"`output` of {name!r}: {' and '.join(map(repr, _LAST))} come last; got {list(steps)}.")
    return found


def _only(argument: str, what: str, names: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != 1:
        raise ValueError(f"The model has several {what}s; pass `{argument}` as a dict by name, of {list(names)}.")
    return names


def _undone(
    calibration: Mapping[str, np.ndarray],
    scales: Mapping[str, tuple[np.ndarray, np.ndarray]],
    inputs: Mapping[str, InputSpec],
) -> dict[str, np.ndarray]:
    """A sample of the model's inputs as the new inputs take it."""
    found = {}
    for name, array in calibration.items():
        scale, offset = scales.get(name, (np.float32(1), np.float32(0)))
        values = (np.asarray(array) - offset) / scale if name in scales else np.asarray(array)
        found[name] = np.clip(np.rint(values), 0, 255).astype("uint8") if inputs[name].dtype == "uint8" else values
    return found
