"""Golden vectors: inputs and outputs of a file, byte by byte, to be replayed elsewhere."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tflite_export.runtime.model import TensorInfo, TFLiteModel
from tflite_export.runtime.runner import Runner, dequantize, quantize
from tflite_export.sources import samples

_STEPS = 3  # how far kernels for one int8 file are apart
_SHARE = 0.01  # of the largest output: a GPU computes in float16


@dataclass(frozen=True)
class Golden:
    """Raw tensors of a few runs.

    Attributes:
        inputs: Name -> array (runs, ...) in the file's dtype.
        outputs: Name -> array (runs, ...) in the file's dtype, as ai_edge_litert computes them.
        tolerances: Output name -> largest accepted difference, in steps of an integer output, in its unit else.
    """

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    tolerances: Mapping[str, float]


def golden(file: TFLiteModel, data: Any, count: int) -> Golden:
    """Runs a file on `data`, or on seeded random numbers, `count` times."""
    runner = Runner(file.content)
    arrays = samples.random_sample(file.float_specs, count) if data is None else _first(file, data, count)
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in runner.inputs}
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in runner.outputs}
    for batch in samples.groups(arrays, runner.batch or 1):
        raw = {name: quantize(batch[name], detail) for name, detail in runner.inputs.items()}
        found = runner.raw(raw)
        for name, value in raw.items():
            inputs[name].append(value)
        for name, value in found.items():
            outputs[name].append(value)
    stacked = {name: np.stack(values) for name, values in outputs.items()}
    tolerances = {info.name: _tolerance(info, stacked[info.name]) for info in file.outputs}
    return Golden({name: np.stack(values) for name, values in inputs.items()}, stacked, tolerances)


def write(vectors: Golden, file: TFLiteModel, folder: Path) -> None:
    """Writes `golden.json` and a little-endian `.bin` for each tensor."""
    described = {}
    for what, arrays, infos in (("inputs", vectors.inputs, file.inputs), ("outputs", vectors.outputs, file.outputs)):
        described[what] = [_described(what, place, info, arrays[info.name]) for place, info in enumerate(infos)]
        for place, info in enumerate(infos):
            values = arrays[info.name]
            (folder / f"golden_{what}_{place}.bin").write_bytes(values.astype(values.dtype.newbyteorder("<")).tobytes())
    for entry in described["outputs"]:
        entry["tolerance"] = vectors.tolerances[entry["name"]]
    runs = len(next(iter(vectors.outputs.values())))
    (folder / "golden.json").write_text(json.dumps({"runs": runs, **described}, indent=1) + "\n")


def replayed(folder: Path, model: str) -> dict[str, float]:
    """Runs the file of a folder on its golden inputs.

    Returns: output name -> largest difference over its tolerance; at most 1 is right.
    Raises: FileNotFoundError, ValueError for what cannot be read.
    """
    file = TFLiteModel.load(folder / model)
    told = json.loads((folder / "golden.json").read_text())
    runner = Runner(file.content)
    given = {entry["name"]: _stored(folder, entry) for entry in told["inputs"]}
    worst = {entry["name"]: 0.0 for entry in told["outputs"]}
    for run in range(told["runs"]):
        found = runner.raw({name: values[run] for name, values in given.items()})
        for entry in told["outputs"]:
            difference = found[entry["name"]].astype(np.float64) - _stored(folder, entry)[run]
            largest = float(np.nan_to_num(np.abs(difference), nan=np.inf).max())
            worst[entry["name"]] = max(worst[entry["name"]], largest / entry["tolerance"])
    return worst


def _first(file: TFLiteModel, data: Any, count: int) -> dict[str, np.ndarray]:
    arrays = samples.read(file.float_specs, data, what="data")
    return {name: values[:count] for name, values in arrays.items()}


def _described(what: str, place: int, info: TensorInfo, values: np.ndarray) -> dict[str, Any]:
    return {
        "name": info.name,
        "dtype": info.dtype,
        "shape": list(values.shape[1:]),
        "scale": info.scale,
        "zero_point": info.zero_point,
        "file": f"golden_{what}_{place}.bin",
    }


def _stored(folder: Path, entry: Mapping[str, Any]) -> np.ndarray:
    raw = np.frombuffer((folder / entry["file"]).read_bytes(), np.dtype(entry["dtype"]).newbyteorder("<"))
    return raw.reshape(-1, *entry["shape"])


def is_class_number(info: TensorInfo) -> bool:
    """Whether an output is a number of a class, or several by rank, as argmax and top-k give them."""
    return info.scale is None and info.dtype in ("int32", "int64")


def _tolerance(info: TensorInfo, values: np.ndarray) -> float:
    if info.scale is not None:
        return float(_STEPS)
    if np.dtype(info.dtype).kind != "f":
        return 0.5  # labels and indices
    peak = float(np.abs(dequantize(values, {"dtype": info.dtype, "quantization": (0.0, 0)})).max(initial=0))
    return _SHARE * peak or 1e-6
