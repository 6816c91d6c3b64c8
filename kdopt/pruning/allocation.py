"""How much each kernel loses."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kdopt.core.kernels import KernelView
from kdopt.core.ordering import ascending
from kdopt.core.registry import Registry
from kdopt.core.validation import check_fraction
from kdopt.pruning.masks import keep_highest
from kdopt.pruning.patterns import Units

Bounds = float | Mapping[str, float]


class Allocation(ABC):
    """Decides which units stay. Subclass it, implement `keep`, register it in `ALLOCATIONS`.

    Args:
        minimum: Float in [0, 1), least sparsity of every kernel, or a dict layer name -> float. Defaults to `0.0`.
        maximum: Float in [0, 1], largest sparsity of every kernel, or a dict layer name -> float. Defaults to `1.0`.
    """

    def __init__(self, minimum: Bounds = 0.0, maximum: Bounds = 1.0) -> None:
        self.minimum = _check_bounds("minimum", minimum)
        self.maximum = _check_bounds("maximum", maximum)

    @abstractmethod
    def keep(
        self, units: Iterable[Units], views: Sequence[KernelView], sparsity: float, progress: float
    ) -> Iterator[tuple[Units, np.ndarray]]:
        """Which units stay.

        Args:
            units: The units of each kernel (or coupled kernels), in order, scored as they are asked for: one that
                decides kernel by kernel holds the scores of one at a time.
            views: The kernels that `Units.members` number.
            sparsity: Float in [0, 1), fraction of zeros in all kernels together.
            progress: Float in [0, 1], `sparsity` over its final value.

        Returns: each of `units` with a bool array (n,), in order.
        """

    def bounds(self, units: Units, views: Sequence[KernelView]) -> tuple[float, float]:
        """(least, largest) sparsity of coupled kernels: the tightest of their members'."""
        names = [views[i].name for i in units.members]
        low = max(_bound(self.minimum, name, 0.0) for name in names)
        return low, max(low, min(_bound(self.maximum, name, 1.0) for name in names))

    def asked(self, views: Sequence[KernelView], sparsity: float | None) -> list[float | None]:
        """The sparsity of each kernel that was asked for; `None` where the scores decide."""
        del sparsity
        return [None] * len(views)

    def check(self, views: Sequence[KernelView]) -> None:
        """Refuses names that are no kernels.

        Raises: ValueError.
        """
        known = {view.name for view in views}
        for what in ("minimum", "maximum", "sparsities"):
            given = getattr(self, what, None)
            unknown = sorted(set(given) - known) if isinstance(given, Mapping) else []
            if unknown:
                argument = "allocation" if what == "sparsities" else what
                raise ValueError(
                    f"`{argument}` names {', '.join(map(repr, unknown))}, which is not pruned here. Kernels: "
                    f"{', '.join(sorted(known))}."
                )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {"minimum": self.minimum, "maximum": self.maximum}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Allocation":
        """Makes the allocation from `get_config()`."""
        return cls(**config)


ALLOCATIONS: Registry[Allocation] = Registry("allocation", Allocation)  # type: ignore[type-abstract]


class _Fractions(Allocation):
    """An allocation that knows the sparsity of each kernel before it sees the scores."""

    @abstractmethod
    def fractions(self, views: Sequence[KernelView], sparsity: float, progress: float) -> list[float]:
        """One sparsity a kernel; coupled kernels get the largest of theirs."""

    def keep(
        self, units: Iterable[Units], views: Sequence[KernelView], sparsity: float, progress: float
    ) -> Iterator[tuple[Units, np.ndarray]]:
        wanted = self.fractions(views, sparsity, progress)
        for unit in units:
            low, high = self.bounds(unit, views)
            fraction = max(low * progress, *(wanted[i] for i in unit.members))
            yield unit, unit.keep(min(fraction, high) * unit.weights)
            del unit  # its scores go before the next kernel's are made


@ALLOCATIONS.register("uniform")
class Uniform(_Fractions):
    """Every kernel the same sparsity."""

    def fractions(self, views: Sequence[KernelView], sparsity: float, progress: float) -> list[float]:
        return [sparsity] * len(views)

    def asked(self, views: Sequence[KernelView], sparsity: float | None) -> list[float | None]:
        return [sparsity] * len(views)


@ALLOCATIONS.register("erdos_renyi")
class ErdosRenyi(_Fractions):
    """Small kernels stay denser: Erdos-Renyi-Kernel.

        density_l = min(1, epsilon * (sum of the sizes of all axes of l) / (product of them)),
        epsilon so that all kernels together have the sparsity asked for

    Reference: Evci et al., "Rigging the Lottery: Making All Tickets Winners", ICML 2020, section 3
        ("Sparsity Distribution"); Mocanu et al., 2018, equation 1, for one layer.
    """

    def fractions(self, views: Sequence[KernelView], sparsity: float, progress: float) -> list[float]:
        shapes = [tuple(view.variable.shape) for view in views]
        weights = np.array([np.prod(shape) for shape in shapes], float)
        raw = np.array([sum(shape) for shape in shapes]) / weights
        return list(1 - erdos_renyi_densities(weights, raw, 1 - sparsity))


def erdos_renyi_densities(weights: np.ndarray, raw: np.ndarray, density: float) -> np.ndarray:
    """min(1, epsilon * raw), with epsilon such that the weighted mean is `density`.

    Args:
        weights: Float array (kernels,), sizes.
        raw: Float array (kernels,), unscaled densities.
        density: Float in (0, 1].
    """
    full = np.zeros(len(raw), bool)
    while True:
        left = density * weights.sum() - weights[full].sum()
        scale = left / (weights * raw)[~full].sum() if not full.all() else 0.0
        over = ~full & (scale * raw > 1)
        if not over.any():
            return np.where(full, 1.0, scale * raw)
        full |= over


@ALLOCATIONS.register("global")
class Global(Allocation):
    """All kernels together have the sparsity; the lowest scores go, wherever they are.

    Units of different sizes are compared by their mean score a weight. A kernel can lose everything, of which
    `GradualPruning` warns; `maximum` prevents it. Holds the scores of all kernels at once.
    """

    def comparable(self, unit: Units) -> np.ndarray:
        """Scores (n,) of a kernel's units as they are compared with those of other kernels."""
        return unit.scores if unit.single else unit.scores / unit.sizes

    def keep(
        self, units: Iterable[Units], views: Sequence[KernelView], sparsity: float, progress: float
    ) -> Iterator[tuple[Units, np.ndarray]]:
        found = list(units)
        together = np.concatenate([self._ranks(unit, views, progress) for unit in found])
        single = all(unit.single for unit in found)
        sizes = np.broadcast_to(1, together.size) if single else np.concatenate([unit.sizes for unit in found])
        lost = max(sparsity * sum(unit.weights for unit in found), float(sizes[together < 0].sum()))
        stay = int(all(unit.empties for unit in found))
        kept = keep_highest(together, sizes, lost, stay=stay) | np.isinf(together)
        yield from zip(found, np.split(kept, np.cumsum([len(unit.sizes) for unit in found])[:-1]), strict=True)

    def _ranks(self, unit: Units, views: Sequence[KernelView], progress: float) -> np.ndarray:
        """Scores; a unit that the kernel's floor takes goes first, one that the ceiling keeps never goes."""
        low, high = self.bounds(unit, views)
        ranks = self.comparable(unit)
        if high < 1:
            ranks = np.where(unit.keep(high * unit.weights), np.inf, ranks)
        return ranks if low == 0 else np.where(unit.keep(low * progress * unit.weights), ranks, -1.0)


@ALLOCATIONS.register("lamp")
class Lamp(Global):
    """`"global"` on layer-adaptive scores, whatever the criterion.

        score(u) = s(u) / sum of s(v) over the units v of the kernel with s(v) >= s(u)

    Among equals the first counts as the lowest, as in the paper. With the criterion `"l2"` (s = w^2) this is LAMP. The
    highest unit of every kernel scores 1, so each keeps one unless it is all zero already.

    Reference: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
    """

    def comparable(self, unit: Units) -> np.ndarray:
        return layer_adaptive(unit.scores)


def layer_adaptive(scores: np.ndarray) -> np.ndarray:
    """s(u) / sum of s(v) over s(v) >= s(u); 0 where s(u) is 0. Among equals the first counts as the lowest."""
    order = ascending(scores)
    tail = np.cumsum(scores[order][::-1], dtype=np.float64)[::-1]
    result = np.empty(scores.size, np.result_type(scores, np.float32))
    result[order] = np.divide(scores[order], tail, out=np.zeros(scores.size), where=tail > 0)
    return result


@ALLOCATIONS.register("per_layer")
class PerLayer(_Fractions):
    """A sparsity of its own for each kernel; those that are not named stay dense.

    In a gradual schedule every kernel is at `sparsities[name] * schedule(t) / final_sparsity`.

    Args:
        sparsities: Dict layer name -> float in [0, 1).
    """

    def __init__(self, sparsities: Mapping[str, float], minimum: Bounds = 0.0, maximum: Bounds = 1.0) -> None:
        super().__init__(minimum, maximum)
        if not isinstance(sparsities, Mapping) or not sparsities:
            raise TypeError(f"`sparsities` must be a dict layer name -> sparsity; got {sparsities!r}.")
        self.sparsities = {name: check_fraction(f"sparsities[{name!r}]", s) for name, s in sparsities.items()}

    def fractions(self, views: Sequence[KernelView], sparsity: float, progress: float) -> list[float]:
        return [progress * self.sparsities.get(view.name, 0.0) for view in views]

    def asked(self, views: Sequence[KernelView], sparsity: float | None) -> list[float | None]:
        return [self.sparsities.get(view.name, 0.0) for view in views]

    def get_config(self) -> dict[str, Any]:
        return {"sparsities": self.sparsities, **super().get_config()}


@ALLOCATIONS.register("threshold")
class Threshold(Allocation):
    """Units with a score above a threshold stay, however many they are.

        stays(u) = score(u) > threshold

    With the criterion `"l1"` and single weights, all |w| <= threshold go. The schedule only says when.

    Args:
        threshold: Float >= 0, in the unit of the criterion's scores (summed over a unit).
    """

    def __init__(self, threshold: float, minimum: Bounds = 0.0, maximum: Bounds = 1.0) -> None:
        super().__init__(minimum, maximum)
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not 0 <= threshold < np.inf:
            raise ValueError(f"`threshold` must be a number >= 0; got {threshold!r}.")
        self.threshold = float(threshold)

    def keep(
        self, units: Iterable[Units], views: Sequence[KernelView], sparsity: float, progress: float
    ) -> Iterator[tuple[Units, np.ndarray]]:
        for unit in units:
            lost = int(unit.sizes[unit.scores <= self.threshold].sum())
            low, high = self.bounds(unit, views)
            yield unit, unit.keep(min(max(lost, low * unit.weights), high * unit.weights))
            del unit

    def get_config(self) -> dict[str, Any]:
        return {"threshold": self.threshold, **super().get_config()}


def allocation_of(identifier: Any) -> Allocation:
    """The allocation that a name, a dict layer name -> sparsity, a config or an instance stands for.

    Raises: ValueError, TypeError.
    """
    if isinstance(identifier, Mapping) and "class_name" not in identifier:
        return PerLayer(identifier)
    if identifier in ("per_layer", "threshold"):
        raise ValueError(
            f"allocation {identifier!r} needs its numbers: pass a dict layer name -> sparsity, or "
            "kdopt.pruning.Threshold(...)."
        )
    return ALLOCATIONS.get(identifier)


def _check_bounds(name: str, value: Bounds) -> Any:
    if isinstance(value, Mapping):
        return {key: check_fraction(f"{name}[{key!r}]", bound, one=True) for key, bound in value.items()}
    return check_fraction(name, value, one=True)


def _bound(bounds: Any, name: str, default: float) -> float:
    return bounds.get(name, default) if isinstance(bounds, Mapping) else bounds
