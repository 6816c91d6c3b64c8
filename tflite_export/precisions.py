"""What precisions there are, and how the converter is told.

To add one: a function under `@precision(...)`. The command line offers it, `verify` knows its tolerance and every
file of it goes through the contract.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

Configure = Callable[[Any, Callable[[], Any] | None], None]
_PRECISIONS: dict[str, "Precision"] = {}


@dataclass(frozen=True)
class Precision:
    """One way to store and compute a model.

    Attributes:
        name: As the user writes it.
        configure: Callable(converter, representative) that sets up a `tf.lite.TFLiteConverter`.
        tolerance: Default tolerance of `verify`: largest root mean square error as a fraction of the output's peak.
        integer: Whether activations are integers, so that ranges are needed: representative data or QAT.
        io_dtype: Of inputs and outputs, e.g. `"int8"`; None: as in the source.
        summary: One line for the help text.
    """

    name: str
    configure: Configure
    tolerance: float
    integer: bool
    io_dtype: str | None
    summary: str


def precision(
    name: str, *, tolerance: float, integer: bool = False, io_dtype: str | None = None
) -> Callable[[Configure], Configure]:
    """Decorator: registers `configure(converter, representative)` as the precision `name`.

    Raises: ValueError if `name` is taken.
    """

    def add(configure: Configure) -> Configure:
        if name in _PRECISIONS:
            raise ValueError(f"Precision {name!r} is already taken by {_PRECISIONS[name].configure.__qualname__}.")
        summary = (configure.__doc__ or "").strip().splitlines()[0]
        _PRECISIONS[name] = Precision(name, configure, tolerance, integer, io_dtype, summary)
        return configure

    return add


def names() -> tuple[str, ...]:
    """The registered names, in order of registration."""
    return tuple(_PRECISIONS)


def get(name: str) -> Precision:
    """The precision called `name`.

    Raises: ValueError that lists the names and the closest one.
    """
    if isinstance(name, str) and name in _PRECISIONS:
        return _PRECISIONS[name]
    close = get_close_matches(str(name), _PRECISIONS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"`precision` must be one of {', '.join(map(repr, names()))}; got {name!r}.{hint}")


@precision("float32", tolerance=2e-5)
def float32(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights and activations float32: the reference."""


@precision("float16", tolerance=2e-3)
def float16(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights float16, half the size; computes in float32 on CPU, float16 on GPU."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


@precision("dynamic", tolerance=0.04)
def dynamic(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights int8, activations quantized at run time; no data needed."""
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]


@precision("weight_int8", tolerance=0.04)
def weight_int8(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights int8 (dense ones int4 if trained so), computes in float32: small and as fast as float; no data needed."""


@precision("int16x8", tolerance=0.02, integer=True, io_dtype="int16")
def int16x8(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights int8, activations int16: nearly float accuracy, slow where a runtime has no such kernels."""
    import tensorflow as tf

    _integer(converter, representative)
    if representative is not None:
        kernels = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        converter.target_spec.supported_ops = [kernels]
    converter.inference_input_type = converter.inference_output_type = tf.int16


@precision("int8", tolerance=0.04, integer=True, io_dtype="int8")
def int8(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Everything int8, inputs and outputs too; needs representative data or a QAT model."""
    import tensorflow as tf

    _integer(converter, representative)
    converter.inference_input_type = converter.inference_output_type = tf.int8


@precision("uint8", tolerance=0.04, integer=True, io_dtype="uint8")
def uint8(converter: Any, representative: Callable[[], Any] | None) -> None:
    """As int8, but inputs and outputs are uint8, as cameras and image decoders give them."""
    import tensorflow as tf

    _integer(converter, representative)
    converter.inference_input_type = converter.inference_output_type = tf.uint8


@precision("int4", tolerance=0.15)
def int4(converter: Any, representative: Callable[[], Any] | None) -> None:
    """Weights of dense layers int4, others int8, activations quantized at run time: for nets that are mostly dense."""
    dynamic(converter, representative)


@precision("int8_int4", tolerance=0.15, integer=True)
def int8_int4(converter: Any, representative: Callable[[], Any] | None) -> None:
    """As int8_float_io, with weights of dense layers int4."""
    _integer(converter, representative)


@precision("int8_float_io", tolerance=0.04, integer=True)
def int8_float_io(converter: Any, representative: Callable[[], Any] | None) -> None:
    """As int8, but inputs and outputs stay float32."""
    _integer(converter, representative)


def _integer(converter: Any, representative: Callable[[], Any] | None) -> None:
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if representative is None:
        return  # a QAT model: the ranges are inside. TFLITE_BUILTINS_INT8 would demand data all the same
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
