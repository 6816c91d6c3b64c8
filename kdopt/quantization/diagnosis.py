"""What rounding to int8 costs, tensor by tensor: which layer ruins it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kdopt.core.optional import require
from kdopt.core.validation import check_integer
from kdopt.quantization.base import QuantizationAware
from kdopt.quantization.data import as_arrays
from kdopt.quantization.native.execution import Pass
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.native.placement import Placement


@dataclass(frozen=True)
class TensorError:
    """How far rounding moves the output of a layer, and the output of the model if this layer alone is rounded.

    Attributes:
        layer: Name of the layer, with those fused into it: `conv + relu`.
        mse: Float >= 0, mean of (x - q)^2 over the layer's output, everything before it rounded, too.
        snr_db: Float, 10 * log10(mean of x^2 / mse), in decibel; infinite without an error.
        cosine: Float in [-1, 1] between x and q.
        output_mse: Float >= 0, the same of the model's outputs with this layer's weights and output alone rounded.
        output_snr_db: Float, in decibel.
    """

    layer: str
    mse: float
    snr_db: float
    cosine: float
    output_mse: float
    output_snr_db: float


@dataclass(frozen=True)
class QuantizationErrors:
    """What `quantization_error` measured; `print` shows a table, `figure()` draws it.

    Attributes:
        layers: One `TensorError` a layer, those that disturb the model's output most first.
        output: Error of the model's outputs with everything rounded (`layer` is the model's name).
        cross_entropy: (float, rounded), mean in nats; `None` without targets.
    """

    layers: tuple[TensorError, ...]
    output: TensorError
    cross_entropy: tuple[float, float] | None = None

    def __str__(self) -> str:
        width = max(len(row.layer) for row in (*self.layers, self.output))
        lines = [f"{'layer':{width}}  {'alone: output SNR':>17}  {'SNR there':>9}  {'cosine':>8}  {'MSE there':>9}"]
        for row in self.layers:
            there = f"{row.snr_db:>6.1f} dB  {row.cosine:>8.5f}  {row.mse:>9.2e}"
            lines.append(f"{row.layer:{width}}  {row.output_snr_db:>14.1f} dB  {there}")
        there = f"{self.output.snr_db:>6.1f} dB  {self.output.cosine:>8.5f}  {self.output.mse:>9.2e}"
        lines.append(f"{'all, at the output':{width}}  {'':>17}  {there}")
        if self.cross_entropy is not None:
            lines.append(f"cross-entropy: {self.cross_entropy[0]:.4f} in float, {self.cross_entropy[1]:.4f} rounded")
        return "\n".join(lines)

    def figure(self, most: int = 40) -> Any:
        """Draws the signal-to-noise ratio at the model's output that each layer alone leaves: short bars ruin.

        Args:
            most: Integer, no more layers than this. Defaults to `40`.

        Returns: `matplotlib.figure.Figure`.
        Raises: ImportError without matplotlib.
        """
        rows = [row for row in self.layers if np.isfinite(row.output_snr_db)][:most]
        size = (3.5 + 0.075 * max([10, *(len(row.layer) for row in rows)]) + 3, 1.4 + 0.24 * len(rows))
        figure = require("matplotlib.figure", extra="report").Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(rows)), [row.output_snr_db for row in rows], color="#2b6cb0")
        if np.isfinite(self.output.snr_db):
            axes.axvline(self.output.snr_db, color="#c05621", linewidth=1)
            axes.text(self.output.snr_db, -0.8, " all together", color="#c05621", fontsize=7, va="center")
        axes.set_yticks(range(len(rows)), [row.layer for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.set_ylim(len(rows) - 0.4, -1.2)
        axes.set_xlabel("signal to noise at the output with this layer alone rounded, dB", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def quantization_error(
    model: keras.Model, data: Any, targets: Any = None, *, samples: int = 64, verbose: int = 1
) -> QuantizationErrors:
    """Measures what int8 costs, layer by layer: which layer ruins the file?

        mse = mean((x - q)^2),   snr = 10 log10(mean(x^2) / mse)

    Args:
        model: A model of `quantize_aware(engine="native")`, with its ranges; or a float Keras model, whose ranges are
            taken from `data`.
        data: Real inputs, as `calibration` of `quantize_aware`.
        targets: Integer classes (n,) of the same samples, for the cross-entropy of a classifier with one output.
            Defaults to `None`.
        samples: Integer >= 1, no more of them than this: the net runs once for each layer. Defaults to `64`.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns: `QuantizationErrors`.
    Raises: TypeError, ValueError for a model or data that cannot be used.

    Example:
    ```
    errors = quantization_error(model, x_val[:64], y_val[:64])
    print(errors)
    errors.figure().savefig("int8.png")
    ```
    """
    check_integer("samples", samples)
    if isinstance(model, QuantizationAware) and not isinstance(model, NativeModel):
        raise TypeError(f"{model.name!r} is of the engine 'tfmot'. Measure `model.strip()`, or use engine='native'.")
    fresh = not isinstance(model, NativeModel)
    measured = NativeModel(model) if fresh else model
    arrays = as_arrays(data, measured._inputs)
    if fresh:
        measured.calibrate(arrays)
    model = measured
    model.require_ranges()
    tensors = [array[:samples] for array in arrays.values()]
    placement, limits = model._hidden.placement, [tuple(pair) for pair in np.asarray(model.ranges.limits)]
    inputs = [keras.ops.convert_to_tensor(array) for array in tensors]
    exact: dict[int, Any] = {}
    expected = [np.asarray(y) for y in Pass(placement, list(limits), "float", seen=exact)(inputs)]
    rounded: dict[int, Any] = {}
    outputs = [np.asarray(y) for y in Pass(placement, list(limits), seen=rounded)(inputs)]
    units = list(_units(placement))
    bar = keras.utils.Progbar(len(units), verbose=verbose, unit_name="layer")
    rows = []
    for name, steps, number in units:
        alone = [np.asarray(y) for y in Pass(placement, list(limits), only=steps)(inputs)]
        there = _error([np.asarray(exact[number])], [np.asarray(rounded[number])])
        rows.append(TensorError(name, *there, *_error(expected, alone)[:2]))
        bar.add(1)
    rows.sort(key=lambda row: -row.output_mse)
    whole = _error(expected, outputs)
    entropy = None if targets is None else _cross_entropies(expected, outputs, np.asarray(targets)[:samples])
    return QuantizationErrors(tuple(rows), TensorError(str(model.name), *whole, *whole[:2]), entropy)


def _units(placement: Placement) -> Iterator[tuple[str, list[str], int]]:
    """(name, steps that one operation of the file computes, number of its output)."""
    for entry in placement.traced.inputs:
        if entry.index in placement.grids:
            yield entry.name, [entry.name], entry.index
    fused: dict[int, list[str]] = {}
    for step in placement.steps:
        names = [*fused.pop(step.inputs[0], []), step.name] if step.inputs else [step.name]
        if step.outputs[0] not in placement.grids and step.outputs[0] in placement.floats:
            fused[step.outputs[0]] = names
        elif step.outputs[0] in placement.grids and (step.rule.output != "input" or step.rule.rounds):
            yield " + ".join(names), names, step.outputs[0]


def _error(exact: list[np.ndarray], rounded: list[np.ndarray]) -> tuple[float, float, float]:
    """(mean squared error, signal to noise in dB, cosine) over several tensors."""
    x, q = (np.concatenate([part.reshape(-1).astype("float64") for part in parts]) for parts in (exact, rounded))
    error, signal = float(np.mean((x - q) ** 2)), float(np.mean(x**2))
    ratio = float("inf") if error == 0 else 10 * float(np.log10(max(signal, 1e-300) / error))
    lengths = float(np.linalg.norm(x) * np.linalg.norm(q))
    return error, ratio, float(x @ q) / lengths if lengths else 1.0


def _cross_entropies(expected: list[np.ndarray], outputs: list[np.ndarray], targets: np.ndarray) -> tuple[float, float]:
    exact = expected[0]
    whole = len(expected) == 1 and exact.ndim == 2 and exact.shape[1] > 1
    if not whole or targets.shape != exact.shape[:1] or targets.dtype.kind not in "iu":
        raise ValueError(
            "`targets` must be integer classes (n,) for a classifier with one output (n, classes); got "
            f"{targets.dtype} of the shape {targets.shape} for outputs of the shapes {[y.shape for y in expected]}."
        )
    if targets.min() < 0 or targets.max() >= exact.shape[1]:
        raise ValueError(f"`targets` must lie in [0, {exact.shape[1]}); got {targets.min()} to {targets.max()}.")
    probabilities = bool(exact.min() >= 0 and np.allclose(exact.sum(axis=1), 1, atol=1e-3))
    first, second = (_cross_entropy(y, targets, probabilities) for y in (exact, outputs[0]))
    return first, second


def _cross_entropy(outputs: np.ndarray, targets: np.ndarray, probabilities: bool) -> float:
    """Mean of -log p(target), in nats; a probability of zero counts as half a step of the file's softmax."""
    if probabilities:
        logs = np.log(np.maximum(outputs, 1 / 512))
    else:
        shifted = outputs - outputs.max(axis=-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return float(-np.mean(logs[np.arange(len(targets)), targets]))
