"""Compress a little, train, measure, again: the loop, whatever compresses and trains."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core import measure
from kdopt.core.compiling import compile_as
from kdopt.core.kernels import KernelView, find_kernels
from kdopt.core.norms import reestimate_batch_norm
from kdopt.core.validation import check_integer, check_one_of, check_positive
from kdopt.pruning.metrics import Measure, digest, measured
from kdopt.pruning.rounds import IterationReport, Round, RoundFolder, Rule
from kdopt.pruning.run import sparsity

Compress = Callable[[keras.Model, int], keras.Model]
Train = Callable[[keras.Model, int], keras.Model | None]


def iterative(
    model: keras.Model,
    compress: Compress,
    train: Train | None,
    rounds: int,
    *,
    evaluate: Measure | None = None,
    target: float | None = None,
    patience: int | None = None,
    min_delta: float = 0.0,
    rewind: str | None = None,
    rewind_to: keras.Model | Sequence[np.ndarray] | None = None,
    recalibrate: Any = None,
    robustness_metric: Measure | None = None,
    folder: str | os.PathLike[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    custom_objects: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> IterationReport:
    """Compresses and trains in turn, and keeps the smallest model that is still good enough.

        for r = 1 ... rounds:
            m = compress(m, r);   rewind;   m = train(m, r) or m;   recalibrate;   v_r = evaluate(m)
            stop after `patience` rounds in a row with v_r < hold - min_delta
        hold = target,   or without one the highest of v_0 ... v_r
        best = the round with the fewest weights that are not zero among those with v_r >= target - min_delta,
               or without a target v_r >= (highest of v_1 ... v_R) - min_delta;   without `evaluate` the last round

    Falling behind, and not standing still, counts against a round: the same metric with fewer weights is progress.

    Rewinding, after each `compress` (which keeps the masks):

    - `"weights"` (lottery tickets): what survived goes back to its value in `rewind_to`, and so do biases,
      normalization and its statistics. Zeros of kernels stay; those of a bias, gamma or beta stay where all of the
      channel's weights are zero.
    - `"learning_rate"`: weights stay, training begins anew with the same schedule. That is what a `train` does which
      compiles with a new optimizer each round.

    Both give a compiled model a new optimizer, made from its config: its steps, and so a learning-rate schedule, begin
    at 0, its momentum is gone. Without `rewind` the optimizer is as `compress` leaves it (`prune` makes it new, too).

    Args:
        model: Built `keras.Model`; left as it is, if `compress` leaves it.
        compress: Function (model, round) -> another model, e.g. `lambda m, r: prune(m, 1 - 0.8**r)[0]`. It must not
            change the model it gets, which may be the best one.
        train: Function (model, round) -> model, or `None` if it trained the one it got; or `None`: no training. It
            must hold the zeros, e.g. with `GradualPruning(Constant(s))`. Seed it by the round, so that a continued
            loop is like an undisturbed one.
        rounds: Integer >= 1.
        evaluate: Function model -> float, higher is better; on validation data. Defaults to `None`.
        target: Float, what the metric must hold. Defaults to `None`.
        patience: Integer >= 1, rounds in a row that may fall behind. Defaults to `None`: all rounds are done.
        min_delta: Float >= 0, how far below still holds. Defaults to `0.0`.
        rewind: `"weights"`, `"learning_rate"` or `None` (default).
        rewind_to: For `rewind="weights"`: the model at an early point of its training, or its `get_weights()`.
        recalibrate: Data for `kdopt.core.norms.reestimate_batch_norm`, run after each training. Defaults to `None`.
        robustness_metric: Function model -> `Robustness` (its mean is kept) or float. Defaults to `None`.
        folder: Keeps the model of each finished round as `round_NNN.keras`, and a record `rounds.json`. The same call
            with the same model continues there; more `rounds` go on. Defaults to `None`: models stay in memory, only
            those that can still be the best.
        settings: JSON-able dict of what else a folder must have been made with to be continued. Defaults to `None`.
        custom_objects: Dict name -> class, to load the models of `folder`. Defaults to `None`.
        progress: Whether to print a line a round. Defaults to `True`.

    Returns: `IterationReport`.
    Raises: ValueError, TypeError for arguments that cannot be used, before anything is trained; for a `compress` that
        returns the model it got; for a metric that is not finite.

    Example:
    ```
    report = iterative(model, lambda m, r: prune(m, 1 - 0.8**r)[0], fine_tune, rounds=8, evaluate=accuracy,
                       target=0.97, patience=1, folder="rounds")
    report.best_model.save("small.keras")
    ```

    Reference: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015;
        Frankle & Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; Frankle et al., "Linear Mode Connectivity and the
        Lottery Ticket Hypothesis", ICML 2020 (rewinding to an early point); Renda et al., "Comparing Rewinding and
        Fine-tuning in Neural Network Pruning", ICLR 2020 (learning rate).
    """
    check_integer("rounds", rounds)
    rule = Rule(target, patience, check_positive("min_delta", min_delta, zero=True))
    rule.check(evaluate)
    early = _check_rewind(model, rewind, rewind_to)
    _check_functions(compress, train, evaluate, robustness_metric)
    if isinstance(recalibrate, bool):
        raise TypeError(f"`recalibrate` must be data, or None; got {recalibrate}.")
    if recalibrate is not None and not any(
        isinstance(layer, keras.layers.BatchNormalization) for layer in model._flatten_layers()
    ):
        raise ValueError(f"`recalibrate` has nothing to do: {model.name!r} has no BatchNormalization. Leave it out.")
    given = {"model": digest(model.get_weights()), "rewind": rewind, "rewind_to": digest(early)}
    given["recalibrate"] = digest(recalibrate)
    store = None if folder is None else RoundFolder(folder, {**given, "settings": dict(settings or {})}, custom_objects)
    work = _Work(compress, train, evaluate, robustness_metric, rewind, early, recalibrate)
    return _Loop(work, rule, store, print if progress else _silent).run(model, rounds)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done in a round."""

    compress: Compress
    train: Train | None
    evaluate: Measure | None
    robustness_metric: Measure | None
    rewind: str | None
    early: list[np.ndarray] | None
    recalibrate: Any

    def __call__(self, model: keras.Model, number: int) -> tuple[keras.Model, Round]:
        began = time.perf_counter()
        made = _check_model("compress", self.compress(model, number), model)
        if self.early is not None:
            rewind_weights(made, self.early)
        if self.rewind is not None:
            _renew_optimizer(made)
        if self.train is not None:
            trained = self.train(made, number)
            made = made if trained is None else _check_model("train", trained, model)
        if self.recalibrate is not None:
            reestimate_batch_norm(made, self.recalibrate)
        return made, self.look(made, number, began)

    def look(self, model: keras.Model, number: int, began: float) -> Round:
        """Measures a model."""
        what = f"round {number}" if number else "the model before the first round"
        value = None if self.evaluate is None else measured(self.evaluate, model, what)
        extra = None if self.robustness_metric is None else measured(self.robustness_metric, model, what)
        kernels = find_kernels(model)[0]
        zeros = sparsity(kernels) if kernels else None
        counts = measure.parameters(model), measure.nonzero(model)
        try:
            work = measure.macs(model)
        except ValueError:  # an open input shape, or a layer nobody can count
            work = None
        return Round(number, zeros, *counts, value, extra, time.perf_counter() - began, work)


class _Loop:
    """The rounds, from the last finished one on."""

    def __init__(self, work: _Work, rule: Rule, store: RoundFolder | None, say: Callable[[str], None]) -> None:
        self._work, self._rule, self._store, self._say = work, rule, store, say
        self._models: dict[int, keras.Model] = {}

    def run(self, model: keras.Model, rounds: int) -> IterationReport:
        start = self._start(model)
        done: list[Round] = self._finished()
        if len(done) > rounds and self._store is not None:
            raise ValueError(
                f"{self._store.folder} holds {len(done)} finished rounds, more than rounds={rounds}. Ask for as "
                "many, or give another folder."
            )
        for one in (start, *done):
            self._say(f"{one}{'  (on file)' if one in done else ''}")
        current = self._get(done[-1].number) if done else model
        while (stopped := self._why_stop(start, done, rounds)) is None:
            current, one = self._next(current, len(done) + 1)
            done.append(one)
            self._say(str(one))
            for number in self._rule.needless(done):
                self._models.pop(number, None)
        best = self._rule.best(done)
        best_model = None if best is None else current if best is done[-1] else self._get(best.number)
        return IterationReport(start, tuple(done), stopped, best, current, best_model)

    def _start(self, model: keras.Model) -> Round:
        if self._store is None:
            return self._work.look(model, 0, time.perf_counter())
        if not self._store.journal.entries:
            self._store.check(model)
        began = time.perf_counter()
        found = self._store.journal.keep("0", lambda: dataclasses.asdict(self._work.look(model, 0, began)))
        return Round(**found)

    def _finished(self) -> list[Round]:
        entries = {} if self._store is None else self._store.journal.entries
        return [Round(**entries[str(n)]) for n in range(1, len(entries))]

    def _next(self, current: keras.Model, number: int) -> tuple[keras.Model, Round]:
        made, one = self._work(current, number)
        if self._store is None:
            self._models[number] = made
        else:
            self._store.save(number, made)
            self._store.journal.keep(str(number), lambda: dataclasses.asdict(one))
        return made, one

    def _get(self, number: int) -> keras.Model:
        return self._models[number] if self._store is None else self._store.load(number)

    def _why_stop(self, start: Round, done: list[Round], rounds: int) -> str | None:
        patience = self._rule.patience
        if patience is not None and self._rule.behind([start, *done]) >= patience:
            return f"stopped: the metric fell behind in the last {patience} round{'s' * (patience > 1)}"
        return f"all {rounds} rounds done" if len(done) >= rounds else None


def rewind_weights(model: keras.Model, early: Sequence[np.ndarray]) -> None:
    """Sets a model's weights back to earlier ones, in place; what was pruned stays zero.

        w <- w_early * (w != 0)   for kernels;   v <- v_early   for the rest, but where v and its whole channel are 0

    Args:
        model: Built `keras.Model`.
        early: Arrays of the shapes of `model.get_weights()`.

    Raises: ValueError for other shapes.
    """
    check_early(model, early)
    stays = _stays_zero(find_kernels(model)[0])
    for variable, then in zip(model.weights, early, strict=True):
        gone = stays.get(id(variable))
        variable.assign(then if gone is None else np.where(gone, np.zeros_like(then), then))


def check_early(model: keras.Model, early: Sequence[np.ndarray]) -> None:
    """Refuses weights that do not fit a model.

    Raises: ValueError.
    """
    own, other = [tuple(w.shape) for w in model.weights], [tuple(np.shape(w)) for w in early]
    if own != other:
        raise ValueError(
            f"Weights to rewind to must have the shapes of {model.name!r}, {len(own)} arrays {own[:3]} ...; got "
            f"{len(other)} arrays {other[:3]} .... Rewinding is for masks: layers must keep their size."
        )


def _stays_zero(kernels: Sequence[KernelView]) -> dict[int, np.ndarray]:
    """id(variable) -> where it is pruned: zeros of kernels, and of what goes with a channel that is all zero."""
    stays = {}
    for view in kernels:
        zero = view.numpy() == 0
        stays[id(view.variable)] = zero
        norm = [getattr(view.norm, name, None) for name in ("gamma", "beta")]
        for own in (getattr(view.layer, "bias", None), *norm):
            if not isinstance(own, keras.Variable) or own is view.variable:
                continue
            rank, axis = len(own.shape), view.channel_axis % zero.ndim
            kept_axes = (axis,) if rank == 1 else tuple(range(zero.ndim - rank, zero.ndim))
            if tuple(zero.shape[a] for a in kept_axes) == tuple(own.shape):
                gone = zero.all(axis=tuple(a for a in range(zero.ndim) if a not in kept_axes))
                stays[id(own)] = gone & (keras.ops.convert_to_numpy(own) == 0)
    return stays


def _renew_optimizer(model: keras.Model) -> None:
    """A new optimizer from the config of the old one, if there is one."""
    if not model.compiled:
        return
    if not compile_as(model, model):
        raise ValueError(
            f"The optimizer of {model.name!r} cannot be made anew: what it is compiled with has no config. Compile in "
            "`train`, and leave the model of `compress` without."
        )


def _check_rewind(model: keras.Model, rewind: str | None, rewind_to: Any) -> list[np.ndarray] | None:
    if rewind is not None:
        check_one_of("rewind", rewind, ("weights", "learning_rate"))
    if (rewind == "weights") != (rewind_to is not None):
        raise ValueError(
            f"rewind='weights' and `rewind_to` (a model, or its get_weights(), at an early point) go together; got "
            f"rewind={rewind!r} and {'no `rewind_to`' if rewind_to is None else 'a `rewind_to`'}."
        )
    if rewind_to is None:
        return None
    early = rewind_to.get_weights() if isinstance(rewind_to, keras.Model) else [np.array(w) for w in rewind_to]
    check_early(model, early)
    return early


def _check_functions(compress: Any, *others: Any) -> None:
    wrong = [f for f in (compress, *(o for o in others if o is not None)) if not callable(f)]
    if wrong:
        raise TypeError(
            "`compress`, `train`, `evaluate` and `robustness_metric` must be functions (the last three may be None); "
            f"got {wrong[0]!r}."
        )


def _check_model(what: str, made: Any, given: keras.Model) -> keras.Model:
    if not isinstance(made, keras.Model):
        raise TypeError(f"`{what}` must return a keras.Model; got {made!r}.")
    if made is given:
        raise ValueError(
            f"`{what}` returned the model of the round before, which may be the best one: it must make another. Use "
            "kdopt.core.copying.copy_model(model) before changing it in place."
        )
    return made


def _silent(line: str) -> None:
    del line
