"""int8 without training: ranges that clip outliers, equalized channels, adapted rounding, corrected biases."""

from collections import Counter
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.copying import copy_model
from kdopt.core.validation import check_integer, check_one_of
from kdopt.quantization.adaround import ITERATIONS
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.checks import check_model
from kdopt.quantization.data import as_arrays, calibration_batches, sample
from kdopt.quantization.equalize import equalize as equalize_channels
from kdopt.quantization.native.execution import Pass
from kdopt.quantization.native.folding import factor_and_offset
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.native.steps import Step
from kdopt.quantization.ranges import RangeMethod
from kdopt.quantization.rounding import round_adaptively
from kdopt.quantization.schemes import Layers

ROUNDINGS = ("nearest", "adaptive")


def post_training(
    model: keras.Model,
    data: Any,
    *,
    scheme: str = "int8",
    layers: Layers | None = None,
    ranges: str | RangeMethod = "mse",
    equalize: bool = True,
    rounding: str = "nearest",
    bias_correction: bool = True,
    samples: int = 256,
    iterations: int | None = None,
    verbose: int = 1,
) -> NativeModel:
    """Quantizes a trained model from some real inputs, without labels and without training.

    First channels of layers in a row are equalized, then ranges are chosen on `data`, then kernels are rounded, then
    the mean error that rounding makes in each channel of each layer is taken back in its bias. The result is a model
    like that of `quantize_aware(engine="native")` whose ranges stay: evaluate it, look at `quantization_error`, export
    it, or train it on.

    Args:
        model: Trained Functional, Sequential or traceable subclassed model in float32; left as it is.
        data: Real inputs, as `calibration` of `quantize_aware`: 100 - 500 samples.
        scheme: What is rounded, as in `quantize_aware`. Defaults to `"int8"`.
        layers: Exceptions by layer, as in `quantize_aware`: bits, `"float"`, ... Defaults to `None`.
        ranges: Name in `RANGES` (`"min_max"`, `"percentile"`, `"mse"`, `"kl"`, `"lp"`, `"z_score"`), or a
            `RangeMethod`. Defaults to `"mse"`.
        equalize: Whether to equalize channels, see `kdopt.quantization.equalize`. Defaults to `True`.
        rounding: `"nearest"`, or `"adaptive"`: each weight up or down so that its layer's output stays near that of the
            float net, see `kdopt.quantization.round_adaptively`. It takes seconds for a small layer, and helps most
            where few bits make coarse steps; with 8 bits gains are small. The model's `rounding` says what it did.
            Defaults to `"nearest"`.
        bias_correction: Whether to correct biases. Defaults to `True`.
        samples: Integer >= 1, no more of `data` than this to adapt rounding and correct biases with. Defaults to `256`.
        iterations: Integer >= 1, steps of adaptive rounding for each layer. Defaults to `None`: 1,000 with
            `rounding="adaptive"`.
        verbose: 1 shows a progress bar of adaptive rounding, 0 nothing.

    Returns: A `NativeModel`; `tflite_export.convert(it, "int8")` needs no data.
    Raises: TypeError, ValueError for a model, data or options that cannot be used.

    Example:
    ```
    small = post_training(model, x_train[:256])
    file = tflite_export.convert(small, "int8")
    ```

    Reference: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019,
        sections 4.1 and 4.2 (with data); "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020.
    """
    check_model(model)
    check_integer("samples", samples)
    check_one_of("rounding", rounding, ROUNDINGS)
    if iterations is not None:
        check_integer("iterations", iterations)
        if rounding == "nearest":
            raise ValueError(f"`iterations={iterations}` is for rounding='adaptive'; got rounding='nearest'.")
    if isinstance(model, QuantizationAware):
        raise TypeError(f"{model.name!r} is quantized already. Start from its float weights: `model.strip()`.")
    source = model
    if equalize:
        source = copy_model(model)
        equalize_channels(source)
    made = NativeModel(source, observer="frozen", scheme=scheme, layers=layers, name=f"{model.name}_quantized")
    arrays = as_arrays(data, made._inputs)
    made.calibrate(arrays, ranges)
    if rounding == "adaptive":
        made.rounding = round_adaptively(
            made, arrays, samples=samples, iterations=iterations or ITERATIONS, verbose=verbose
        )
    if bias_correction:
        correct_biases(made, arrays, samples)
    return made


def correct_biases(model: NativeModel, data: Any, samples: int = 256) -> dict[str, float]:
    """Takes back the mean error that rounding makes in each channel, layer by layer; changes the model's biases.

        b := b + E[y] - E[y_q],   y_q with all layers before corrected

    Args:
        model: With its ranges.
        data: Real inputs.
        samples: Integer >= 1, no more than this. Defaults to `256`.

    Returns: Name of each layer that was corrected -> its largest correction, in the unit of its output. A layer called
        several times, or with neither bias nor BatchNormalization, has no place for it.
    """
    check_integer("samples", samples)
    model.require_ranges()
    placement = model._hidden.placement
    limits = [tuple(pair) for pair in np.asarray(model.ranges.limits)]
    tensors = sample(calibration_batches(data, model._inputs), samples)
    inputs = [ops.convert_to_tensor(array) for array in tensors]
    exact: dict[int, Any] = {}
    Pass(placement, list(limits), "float", seen=exact)(inputs)
    calls = Counter(id(step.operation) for step in placement.steps)
    corrected: dict[str, float] = {}

    def after(step: Step, output: Any) -> Any:
        if not step.rule.fuses_norm or calls[id(step.operation)] > 1:
            return output
        axes = tuple(range(len(output.shape) - 1))
        error = ops.mean(ops.cast(exact[step.outputs[0]], "float32") - ops.cast(output, "float32"), axis=axes)
        if not _add(step, error):
            return output
        corrected[step.layer] = float(ops.max(ops.abs(error)))
        return output + ops.cast(error, output.dtype)

    Pass(placement, list(limits), after=after)(inputs)
    return corrected


def _add(step: Step, error: Any) -> bool:
    """Adds a value for each channel to what a layer makes; whether it has a place for it."""
    norm, layer = step.norm, step.operation
    if norm is not None and norm.beta is not None:
        norm.beta.assign_add(error)
    elif norm is not None:
        factor = factor_and_offset(norm)[0]
        norm.moving_mean.assign_sub(ops.where(factor == 0, 0.0, error / ops.where(factor == 0, 1.0, factor)))
    elif layer.use_bias:
        layer.bias.assign_add(error)
    else:
        return False
    return True
