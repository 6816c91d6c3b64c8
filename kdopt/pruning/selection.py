"""The kernels of one pruning, their pattern and their allocation: from scores to masks."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kdopt.core.kernels import KernelView, Skipped, find_kernels, select
from kdopt.criteria.base import Criterion
from kdopt.graph.channels.groups import trace_channels
from kdopt.graph.trace import is_graph
from kdopt.pruning.allocation import Allocation, allocation_of
from kdopt.pruning.channel_patterns import PATTERNS
from kdopt.pruning.patterns import Pattern, Units


class Selection:
    """What is pruned in a model.

    Args:
        model: Built `keras.Model`.
        layers: As `kdopt.core.kernels.select` takes them.
        pattern: Name in `PATTERNS`, or a `Pattern`.
        allocation: Name in `ALLOCATIONS`, a dict layer name -> sparsity, or an `Allocation`.

    Attributes:
        kernels: The kernels that lose weights.
        skipped: Layers that do not, each with the reason.
        variables: The Variables that get a mask: those of the kernels, then what goes with their channels.

    Raises: ValueError if nothing can be pruned, if a chosen layer cannot, or if the pattern does not divide a kernel.
    """

    def __init__(self, model: keras.Model, layers: Any, pattern: str | Pattern, allocation: Any) -> None:
        self.pattern: Pattern = PATTERNS.get(pattern)
        self.allocation: Allocation = allocation_of(allocation)
        found, self.skipped = find_kernels(model)
        if not found and not model.weights:
            raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
        chosen = select(found, layers, self.skipped)
        outputs = _output_variables(model) if layers is None and self.pattern.keeps_outputs else set()
        self._bound = self.pattern.bound(model, chosen)
        self.kernels = self._fitting(chosen, outputs, explicit=isinstance(layers, (list, tuple)))
        for view in self.kernels:
            self._bound.check(view)
        self.allocation.check(self.kernels)
        self._coupled = self._bound.couple(model, self.kernels)
        self._companions = self._bound.companions(self.kernels)
        self.variables = [view.variable for view in self.kernels] + [variable for variable, _ in self._companions]

    def _fitting(self, views: list[KernelView], outputs: set[int], *, explicit: bool) -> list[KernelView]:
        told = "its channels are outputs of the model; name it in `layers` to prune them"
        reasons = [(v, told if id(v.variable) in outputs else self._bound.reason(v)) for v in views]
        unfit = [Skipped(view.name, reason, known=True, unfit=True) for view, reason in reasons if reason is not None]
        fit = [view for view, reason in reasons if reason is None]
        if unfit and (explicit or not fit):
            told = listed(unfit)
            raise ValueError(f"The pattern {type(self.pattern).__name__} has no meaning for {told}.")
        if not fit:
            raise ValueError("This model has no kernel that training would update.")
        self.skipped = [*self.skipped, *unfit]
        return fit

    def check_sparsity(self, sparsity: float) -> None:
        """Refuses a sparsity that the pattern cannot reach.

        Raises: ValueError.
        """
        if sparsity > self.pattern.largest + 1e-9:
            raise ValueError(
                f"The pattern {type(self.pattern).__name__} reaches a sparsity of {self.pattern.largest:g} at most; "
                f"got {sparsity:g}. Choose a lower one or another pattern."
            )

    def masks(self, scores: Sequence[np.ndarray], sparsity: float, progress: float = 1.0) -> list[np.ndarray]:
        """One mask for each of `variables`.

        Args:
            scores: One array a kernel; taken one after the other, so `LazyScores` saves memory.
            sparsity: Float in [0, 1), fraction of zeros in all kernels together.
            progress: Float in [0, 1], `sparsity` over its final value. Defaults to `1.0`.

        Raises: ValueError for a score that is not finite.
        """
        masks: list[Any] = [None] * len(self.kernels)
        for unit, keep in self.allocation.keep(self._units(scores), self.kernels, sparsity, progress):
            for member, mask in zip(unit.members, unit.masks(keep), strict=True):
                masks[member] = mask
            del unit  # before the next kernel is scored
        return masks + [mask(masks) for _, mask in self._companions]

    def _units(self, scores: Sequence[np.ndarray]) -> Iterator[Units]:
        for members in self._coupled:
            own = [scores[i] for i in members]
            for i, score in zip(members, own, strict=True):
                refuse_infinite(self.kernels[i].name, score)
            yield self._bound.group(self.kernels, members, own)
            del own, score


class LazyScores(Sequence[np.ndarray]):
    """The scores of a criterion that needs weights only, each made when it is asked for.

    Args:
        criterion: The criterion.
        views: The kernels.
    """

    def __init__(self, criterion: Criterion, views: Sequence[KernelView]) -> None:
        self._criterion, self._views = criterion, views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: Any) -> Any:
        return self._criterion.score(self._views[index].numpy(), self._views[index])


def scores_of(criterion: Criterion, model: keras.Model, views: list[KernelView], data: Any) -> Sequence[np.ndarray]:
    """One array of scores a kernel, lazily where the criterion looks at one kernel at a time."""
    if criterion.needs == "weights" and type(criterion).scores is Criterion.scores:
        return LazyScores(criterion, views)
    return criterion.scores(model, views, data)


def _output_variables(model: Any) -> set[int]:
    """Identities of the kernels that make what a model gives out; none where its graph is not recorded."""
    model = getattr(model, "student", model)  # of a Distiller
    return trace_channels(model).output_variables() if is_graph(model) else set()


def listed(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first layers and their reasons, and how many more."""
    more = f"; and {len(skipped) - most} more" if len(skipped) > most else ""
    return "; ".join(f"{skip.name!r}: {skip.reason}" for skip in skipped[:most]) + more


def refuse_infinite(name: str, score: np.ndarray) -> None:
    """Refuses scores that are not finite.

    Raises: ValueError.
    """
    wrong = int(np.count_nonzero(~np.isfinite(score)))
    if wrong:
        raise ValueError(
            f"{wrong} of {score.size} pruning scores of {name!r} are NaN or infinite: training has diverged (lower "
            "the learning rate), or the criterion is wrong. No mask was changed."
        )
