"""What quantization-aware models of all engines share: calibration, its sample, what they tell a converter."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras.src.backend.common.symbolic_scope import in_symbolic_scope

from kdopt.graph.inline import TracedInput
from kdopt.quantization.data import calibration_batches, sample
from kdopt.quantization.peek import peek
from kdopt.quantization.report import LayerReport, LayerReports

_SAMPLE_FILE = "calibration.npz"


class QuantizationAware(keras.Model):
    """A Keras 3 model that trains with the rounding of its int8 `.tflite`.

    Ranges follow the data in training and are fixed in inference. An engine says how: `_inputs`, `_graph`,
    `_set_ranges`, `_run`, `_converted`.
    """

    # One array an input. Set in `__dict__`, where Keras does not look for what to track.
    _kept: list[np.ndarray] | None = None
    _keeps = True

    @property
    def keep_calibration(self) -> bool:
        """Whether up to 128 calibration samples stay in the model and its `.keras` file.

        An int8 export takes ranges from them that training does not give. Set to `False`, it drops them, and keeps none
        of later data. `strip()` never holds any.
        """
        return self._keeps

    @keep_calibration.setter
    def keep_calibration(self, value: bool) -> None:
        self.__dict__["_keeps"] = bool(value)
        if not value:
            self.__dict__["_kept"] = None

    def _keep(self, batches: list[list[np.ndarray]]) -> None:
        if self.keep_calibration:
            self.__dict__["_kept"] = sample(batches)

    @property
    def _inputs(self) -> tuple[TracedInput, ...]:
        raise NotImplementedError

    @property
    def _graph(self) -> Any:
        """The `keras.Function` behind the source: how inputs and outputs are packed, and their names."""
        raise NotImplementedError

    def _set_ranges(self, batches: list[list[np.ndarray]]) -> None:
        raise NotImplementedError

    def _run(self, tensors: list[Any], training: bool) -> list[Any]:
        raise NotImplementedError

    def _converted(self) -> tuple[Any, Any, list[dict[str, Any]]]:
        """What a converter saves: an object that tracks the variables, `function(*tensors) -> list`, and the kernels
        whose integers it cannot derive from the function, once that was called."""
        raise NotImplementedError

    def _precisions(self) -> tuple[str, ...]:
        """What it can be exported to."""
        return ("int8", "int8_float_io", "uint8")

    def _reference(self) -> Any:
        """Function of the inputs' tensors: what the model predicts, where a converter gets another form of it."""
        return None

    def _floats(self) -> frozenset[str]:
        """Names of the layers that compute in floating point in its file."""
        return frozenset()

    @property
    def report(self) -> LayerReports:
        """One `LayerReport` a source layer: how it is quantized, and why not if it is not; `print` shows a table."""
        raise NotImplementedError

    @property
    def calibrated(self) -> bool:
        """Whether the ranges have seen data."""
        raise NotImplementedError

    def require_ranges(self) -> None:
        """Refuses what needs ranges before they have seen data.

        Raises: RuntimeError.
        """
        if not self.calibrated:
            raise RuntimeError(
                f"The ranges of {self.name!r} have not seen any data, so its outputs would mean nothing. Way out: pass "
                "`calibration=x_train[:256]` to quantize_aware, call `model.calibrate(x_train[:256])`, or train first."
            )

    @property
    def output_names(self) -> list[str] | None:
        """Names of the source's outputs, for losses and metrics by name."""
        return getattr(self._graph, "output_names", None)

    def calibrate(self, data: Any) -> None:
        """Sets all ranges from data, with the weights as they are.

        Args:
            data: Data as in `quantize_aware`.
        """
        batches = calibration_batches(data, self._inputs)
        self._set_ranges(batches)
        self._keep(batches)

    def call(self, inputs: Any, training: Any = None) -> Any:
        if not training and not in_symbolic_scope():  # there it is asked for shapes alone
            self.require_ranges()
        graph = self._graph
        ordered = getattr(graph, "_standardize_inputs", keras.tree.flatten)(inputs)
        outputs = self._run(list(ordered), bool(training))
        packed = keras.tree.pack_sequence_as(graph._outputs_struct, outputs)
        return packed[0] if isinstance(packed, (list, tuple)) and len(packed) == 1 else packed

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As `keras.Model.fit`; a model without calibration first calibrates on the first batches of `x`.

        Data that cannot be read twice (a generator) is left alone: the ranges then learn from the first training
        batches.
        """
        if not self.calibrated:
            first = peek(x, self._inputs)
            if first is not None:
                self.calibrate(first)
        return super().fit(x, *args, **kwargs)

    def build(self, input_shape: Any = None) -> None:
        del input_shape
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        return None

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "keep_calibration": self.keep_calibration}

    def save_assets(self, dir_path: str) -> None:
        kept = self._kept
        if kept is not None:
            # By place: a subclassed model's inputs have other names when it is loaded.
            np.savez_compressed(Path(dir_path) / _SAMPLE_FILE, *kept)

    def load_assets(self, dir_path: str) -> None:
        path = Path(dir_path) / _SAMPLE_FILE
        if path.exists():
            with np.load(path) as stored:
                self.__dict__["_kept"] = [stored[f"arr_{place}"] for place in range(len(self._inputs))]

    def __tflite_source__(self) -> dict[str, Any]:
        """What a `.tflite` converter needs: function, signature, and a sample for the tensors without a range."""
        import tensorflow as tf

        if not self.calibrated:
            raise RuntimeError(
                f"The ranges of {self.name!r} have not seen any data: train it, or call `calibrate(data)`."
            )
        names = tuple(self.output_names or [f"output_{i}" for i in range(len(self._graph.outputs))])
        module, run, kernels = self._converted()

        def function(*tensors: Any) -> list[Any]:
            return list(run(*tensors))

        kept = self._kept
        inputs = self._inputs
        return {
            "module": module,
            "function": function,
            "inputs": {e.name: tf.TensorSpec((None, *e.shape[1:]), e.dtype, name=e.name) for e in inputs},
            "outputs": names,
            "has_ranges": "weight_int8" not in self._precisions(),
            "precisions": self._precisions(),
            "kernels": kernels,
            "floats": self._floats(),
            "reference": self._reference(),
            "advice": {entry.layer: entry.reason for entry in self.report if _stands_in_the_way(entry)},
            "calibration": None if kept is None else dict(zip((e.name for e in inputs), kept, strict=True)),
        }


def _stands_in_the_way(entry: LayerReport) -> bool:
    """Whether a layer may be why no int8 file can be made."""
    return entry.mode == "output-only" or entry.reason.endswith("an int8 file is refused")
