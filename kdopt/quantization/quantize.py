"""Quantization-aware training: one entry, several engines."""

from collections.abc import Mapping
from typing import Any

from kdopt.core.validation import check_one_of
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.checks import check_model
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.native.wrapper import Quantized
from kdopt.quantization.observers import Observer
from kdopt.quantization.schemes import SCHEMES, Layers
from kdopt.quantization.tfmot.facade import QuantizedModel
from kdopt.quantization.tfmot.schemes import SCHEMES as TFMOT_SCHEMES

ENGINES = ("tfmot", "native")


def quantize_aware(
    model: Any,
    engine: str = "tfmot",
    scheme: str = "int8",
    layers: Layers | None = None,
    calibration: Any = None,
    *,
    observer: str | Observer | None = None,
    delay: int = 0,
    folding: bool = False,
    freeze_batch_norm: int | None = None,
    losses: Mapping[str, float] | None = None,
    keep_calibration: bool = True,
) -> Any:
    """Returns a copy of `model` that trains with the rounding of its int8 `.tflite`.

    Fine-tune the result for a few epochs with a small learning rate, then export it with precision `"int8"`; or take
    the float weights back with `strip()`. Each rounded tensor `x` with the range [min, max] becomes

        round((x - min) / s) * s + min,   s = (max - min) / 255

    and gradients pass where `x` lies in the range.

    Args:
        model: Keras 3 Sequential or Functional model in float32, built; trained before, best without quantization.
            Nested models are inlined, shared layers stay shared. It is left as it is.
        engine: `"tfmot"`: TensorFlow Model Optimization's 8-bit scheme. `"native"`: TFLite's int8 scheme in Keras 3
            itself, kernels with a step for each channel; outputs are what the file computes, to the integer for most
            nets; subclassed models that can be traced work, too. Defaults to `"tfmot"`.
        scheme: What is rounded. Defaults to `"int8"`.

            | scheme | engine | weights | activations | export as |
            |---|---|---|---|---|
            | `"int8"` | both | 8 bits | 8 bits | `"int8"`, `"int8_float_io"`, `"uint8"` |
            | `"int4_dense"` | native | 4 bits in Dense and EinsumDense, 8 elsewhere | 8 bits | the same |
            | `"int16x8"` | native | 8 bits | 16 bits, zero point 0 | `"int16x8"` |
            | `"weight_int8"` | native | 8 bits | float | `"weight_int8"` |
            | `"weight_int4"` | native | 4 bits in Dense and EinsumDense, 8 elsewhere | float | `"weight_int8"` |
            | `"prune_preserve"` | tfmot | 8 bits; what is zero before training stays zero (PQAT) | 8 bits | the same |
            | `"cluster_preserve"` | tfmot | one step a kernel, no more values than before (CQAT) | 8 bits | the same |
            | `"prune_cluster_preserve"` | tfmot | both (PCQAT) | 8 bits | the same |
            | `"no_weights"` | tfmot | float in training: the converter gives them scales | 8 bits | the same |
            | `"w4a8"`, `"w2a8"` | tfmot | 4 or 2 bits (tfmot's n-bit scheme), stored as int4 | 8 bits | the same |

            `"int16x8"` is for nets without softmax, sigmoid, tanh, concatenation and maximum, e.g. those that end in
            logits: the converter gives these 8 bits. Engine `"native"` unrolls recurrent layers on sequences of a fixed
            length: their integer files grow by about 3 KB a step of time, and the first step of training takes seconds
            to compile.

            `"int16x8"` is for nets without softmax, sigmoid, tanh, concatenation and maximum, e.g. those that end in
            logits: the converter gives these 8 bits.
            (With engine `"native"` zeros and clusters are kept by `keep_zeros` and by training with masks.)

        layers: Engine `"native"`: exceptions, a dict from a layer, its name, its class or a regular expression
            (`re.compile`) to a number of bits in [2, 8], a name in `WEIGHT_GRIDS` (`"uniform"`, `"lsq"`,
            `"power_of_two"`, `"ternary"`, `"binary"`), a `WeightGrid`, or a dict with `weights` (one of those),
            `per_channel` and `symmetric` (booleans). `"float"`: the layer, also one without a kernel, or an operation
            that TFLite has no int8 kernel for, stays float between a DEQUANTIZE and a QUANTIZE. Later entries win.
            Layers in a nested model are called `outer.inner`. Defaults to `None`.
        calibration: Real inputs (a few hundred samples) that set the ranges before training: an array, a dict by
            input name, a list with one array an input, a `tf.data.Dataset` or an iterable of batches. Defaults to
            `None`: the first data `fit` gets; until then the model does not predict.
        observer: Engine `"native"`: how ranges follow training, a name in `OBSERVERS` (`"ema"`, `"min_max"`,
            `"percentile"`, `"frozen"`; trained with the weights: `"lsq"`, `"lsq_plus"`, `"pact"`) or an `Observer`.
            Defaults to `None`: `"ema"`; tfmot has its own average.
        delay: Engine `"native"`: integer >= 0, training steps in which ranges are observed but nothing is rounded, for
            nets that are trained from the start. Defaults to `0`.
        folding: Engine `"native"`: whether BatchNormalization is folded into the kernel, with the statistics of the
            batch, before that is rounded, as in Jacob et al., section 3.2: two convolutions instead of one. Without it,
            the kernel is rounded before BatchNormalization, to the same integers. Defaults to `False`.
        freeze_batch_norm: Engine `"native"`: integer >= 0, training steps after which BatchNormalization uses its
            moving statistics, as the file does. Defaults to `None`: never.
        losses: Engine `"native"`: auxiliary losses, name -> weight: `"mse"`, the squared error of each rounded tensor,
            `"cross_entropy"`, of the outputs against those without rounding. Defaults to `None`.
        keep_calibration: Whether up to 128 samples of `calibration` (or of the first data `fit` gets) stay in the model
            and its file, for tensors that get their range at export only. Defaults to `True`.

    Returns: A `keras.Model` with `report`, `strip()`, `calibrate(data)`; `compile`, `fit`, `save` are Keras's own.
    Raises: TypeError for a subclassed model (`"native"`: one that cannot be traced) or one that is quantized already;
        ValueError for an unknown engine, bad calibration data and (`"tfmot"`) a model that is not float32; RuntimeError
        naming the layer if tfmot's copy is not equal; ImportError with the pip line if tf_keras or tfmot is missing or
        does not fit.

    Example:
    ```
    qat = quantize_aware(model, calibration=x_train[:256])
    qat.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    qat.fit(x_train, y_train, epochs=2)
    for entry in qat.report:
        print(entry.layer, entry.mode, entry.reason)
    ```

    Reference: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", CVPR 2018, equation 12.
    """
    check_one_of("engine", engine, ENGINES)
    check_model(model)
    if isinstance(model, QuantizationAware):
        raise TypeError(
            f"{model.name!r} is quantized already. Train it on with `fit`, set its ranges anew with `calibrate(data)`, "
            "or start from its float weights: `quantize_aware(model.strip(), ...)`."
        )
    wrapped = [layer.name for layer in getattr(model, "_flatten_layers", list)() if isinstance(layer, Quantized)]
    if wrapped:
        raise TypeError(
            f"{model.name!r} has layers that are quantized one by one: {', '.join(wrapped)}. Train it as it is, or "
            "build it without `Quantized`, with the weights of `layer.to_plain()`."
        )
    if not isinstance(scheme, str):
        raise TypeError(f"`scheme` must be a name; got {type(scheme).__name__}. Data go to `calibration=`.")
    known = {"native": tuple(SCHEMES), "tfmot": tuple(TFMOT_SCHEMES)}
    for other, names in known.items():
        if other != engine and scheme in names and scheme not in known[engine]:
            raise ValueError(
                f"scheme={scheme!r} is for engine={other!r}; engine={engine!r} has {', '.join(known[engine])}."
            )
    if engine == "native":
        native = NativeModel(
            model,
            calibration,
            observer="ema" if observer is None else observer,
            delay=delay,
            scheme=scheme,
            layers=layers,
            folding=folding,
            freeze_batch_norm=freeze_batch_norm,
            losses=losses,
        )
        native.keep_calibration = keep_calibration
        return native
    given = {
        "layers": layers is not None,
        "observer": observer is not None,
        "delay": delay != 0,
        "folding": folding,
        "freeze_batch_norm": freeze_batch_norm is not None,
        "losses": losses is not None,
    }
    if strange := [name for name, there in given.items() if there]:
        raise ValueError(f"{', '.join(f'`{name}`' for name in strange)}: for engine='native' only; got {engine!r}.")
    quantized = QuantizedModel(model, calibration, scheme=scheme)
    quantized.require_kept()
    quantized.keep_calibration = keep_calibration
    return quantized
