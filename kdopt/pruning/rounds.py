"""Work in rounds: what judges each, which is the best, and the files that let a kill cost one round and no more."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kdopt.core.files import write_atomic
from kdopt.core.validation import check_integer
from kdopt.pruning.metrics import Measure, digest


@dataclass(frozen=True)
class Round:
    """One round, or the model before the first.

    Attributes:
        number: Integer, 1 for the first; 0 for the model before it.
        sparsity: Float in [0, 1], fraction of zeros in the kernels; `None` for a model without any that is trained.
        parameters: Integer, weights of the model.
        nonzero: Integer, those that are not zero.
        value: Float, what `evaluate` gave; `None` without it.
        robustness: Float, the mean under corruptions; `None` without `robustness_metric`.
        seconds: Float, wall time of compressing, training and measuring.
        macs: Integer, multiply-accumulates of one sample; `None` where they are not known.
    """

    number: int
    sparsity: float | None
    parameters: int
    nonzero: int
    value: float | None
    robustness: float | None
    seconds: float
    macs: int | None = None

    def __str__(self) -> str:
        zeros = "" if self.sparsity is None else f"  sparsity {self.sparsity:.4f}"
        value = "" if self.value is None else f"  metric {self.value:.4f}"
        robust = "" if self.robustness is None else f"  under corruptions {self.robustness:.4f}"
        work = "" if self.macs is None else f"  {self.macs:>13,} MACs"
        return f"round {self.number:>2}{zeros}  {self.nonzero:>11,} weights{work}{value}{robust}  {self.seconds:.1f} s"


@dataclass(frozen=True)
class IterationReport:
    """What `iterative` did; `print` shows a line a round.

    Attributes:
        start: `Round` 0, the model before.
        rounds: One `Round` each.
        stopped: String, why the loop ended.
        best: The `Round` with the fewest weights that are not zero among those that hold the metric (see `iterative`);
            `None` if none does.
        model: The model of the last round.
        best_model: That of `best`; `None` if there is none.
    """

    start: Round
    rounds: tuple[Round, ...]
    stopped: str
    best: Round | None
    model: keras.Model
    best_model: keras.Model | None

    def __str__(self) -> str:
        told = "no round holds the metric" if self.best is None else f"best: round {self.best.number}"
        return "\n".join([*map(str, (self.start, *self.rounds)), f"{self.stopped}; {told}"])


@dataclass(frozen=True)
class Rule:
    """When to stop, and which round is the best; see `iterative`, whose arguments it has."""

    target: float | None
    patience: int | None
    min_delta: float

    def check(self, evaluate: Measure | None) -> None:
        """Refuses numbers that cannot be used.

        Raises: ValueError.
        """
        if self.patience is not None:
            check_integer("patience", self.patience)
        if self.target is not None and not np.isfinite(self.target):
            raise ValueError(f"`target` must be a finite number; got {self.target!r}.")
        if evaluate is None and (self.target is not None or self.patience is not None or self.min_delta):
            raise ValueError("`target`, `patience` and `min_delta` need a metric: pass `evaluate=`, model -> float.")

    def behind(self, rounds: Sequence[Round]) -> int:
        """How many of the last rounds in a row fell behind; the first of `rounds` is the start."""
        count, values = 0, [_value(r) for r in rounds]
        for number, value in enumerate(values[1:], 1):
            hold = max(values[: number + 1]) if self.target is None else self.target
            count = count + 1 if value < hold - self.min_delta else 0
        return count

    def best(self, rounds: Sequence[Round]) -> Round | None:
        """The round with the fewest weights that holds the metric; the higher metric among equals."""
        if not rounds or rounds[-1].value is None:
            return rounds[-1] if rounds else None
        hold = max(_value(r) for r in rounds) if self.target is None else self.target
        holding = [r for r in rounds if _value(r) >= hold - self.min_delta]
        return min(holding, key=lambda r: (r.nonzero, -_value(r)), default=None)

    def needless(self, rounds: Sequence[Round]) -> list[int]:
        """Numbers of the rounds that can no longer become the best: another is as small and as good."""
        gone = []
        for own in rounds[:-1]:
            others = [r for r in rounds if r is not own]
            worse = any(r.nonzero <= own.nonzero and _value(r) > _value(own) for r in others)
            worse = worse or any(r.nonzero < own.nonzero and _value(r) >= _value(own) for r in others)
            if own.value is None or worse:
                gone.append(own.number)
        return gone


def _value(one: Round) -> float:
    return float("nan") if one.value is None else one.value


class Journal:
    """A JSON file of results by key, written whole after each.

    Args:
        path: The file; `None`: nothing is written.
        settings: JSON-able dict, what the results were made with.

    Raises: ValueError for a file that is no journal, or was made with other settings; nothing is written then.
    """

    def __init__(self, path: str | os.PathLike[str] | None, settings: dict[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self._settings = json.loads(json.dumps(settings))
        self.entries: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.is_dir():
            raise IsADirectoryError(f"Expected the name of a file to write; got the folder {str(path)!r}.")
        if self.path is not None and self.path.exists():
            self.entries = self._read(self.path)

    def keep(self, key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result under `key`: the one on file, or what `make()` returns, which is then written."""
        if key not in self.entries:
            self.entries[key] = make()
            if self.path is not None:
                content = json.dumps({"settings": self._settings, "entries": self.entries}, indent=1)
                write_atomic(self.path, content.encode())
        return self.entries[key]

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        try:
            stored = json.loads(path.read_bytes())
            settings, entries = stored["settings"], dict(stored["entries"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is no file to continue from ({error!r}). Delete it, or give another name."
            ) from error
        before, now = _flat(settings), _flat(self._settings)
        other = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
        if other:
            told = "; ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in other)
            raise ValueError(
                f"{path} was made with something else: {told}. Delete it to start anew, or give another name."
            )
        return entries


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in settings, one level down."""
    inner = settings.get("settings")
    return {**{k: v for k, v in settings.items() if k != "settings"}, **(inner if isinstance(inner, dict) else {})}


class RoundFolder:
    """The model of each finished round as `round_NNN.keras`, and a journal `rounds.json` of them.

    The journal names a round only after its model is on disk.

    Args:
        folder: Made if it is missing.
        settings: As in `Journal`.
        custom_objects: Dict name -> class, for `keras.models.load_model`.
    """

    def __init__(
        self, folder: str | os.PathLike[str], settings: dict[str, Any], custom_objects: Mapping[str, Any] | None
    ) -> None:
        self.folder = Path(folder)
        self._custom_objects = dict(custom_objects or {})
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(".writing_*.keras"):  # of a round whose writing was cut off
            left.unlink()
        self.journal = Journal(self.folder / "rounds.json", settings)

    def check(self, model: keras.Model) -> None:
        """Refuses a model that Keras cannot save and load, before any work is done on it.

        Raises: ValueError.
        """
        trial = self.folder / ".writing_check.keras"
        try:
            model.save(trial)
            same = self._load(trial).get_weights()
            if digest(same) != digest(model.get_weights()):
                raise ValueError("the weights differ")
        except Exception as error:  # whatever a foreign layer does
            raise ValueError(
                f"{model.name!r} cannot be kept in {str(self.folder)!r}: saved and loaded again it is not the same "
                f"({_short(error)}). Register its classes with @keras.saving.register_keras_serializable(), or leave "
                "`folder` out."
            ) from error
        finally:
            trial.unlink(missing_ok=True)

    def save(self, number: int, model: keras.Model) -> None:
        """Writes a model, whole or not at all."""
        temporary = self.folder / f".writing_{number:03d}.keras"
        model.save(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, self._path(number))

    def load(self, number: int) -> keras.Model:
        """The model of a finished round.

        Raises: ValueError if its file is missing or damaged.
        """
        path = self._path(number)
        try:
            return self._load(path)
        except Exception as error:
            raise ValueError(
                f"{path}, which rounds.json beside it names, is missing or damaged ({_short(error)}). Delete the "
                "folder to start anew."
            ) from error

    def _load(self, path: Path) -> keras.Model:
        with warnings.catch_warnings():
            # An optimizer that had not begun is new after loading, too.
            warnings.filterwarnings("ignore", message="Skipping variable loading for optimizer")
            return keras.models.load_model(path, custom_objects=self._custom_objects)

    def _path(self, number: int) -> Path:
        return self.folder / f"round_{number:03d}.keras"


def _short(error: Exception) -> str:
    """The reason at the end of what Keras says, without the configs in it."""
    reason = str(error).split("Exception encountered: ")[-1].split("Full object config")[0]
    return " ".join(reason.split())[:300]
