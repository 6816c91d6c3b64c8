"""What criteria that look at data share: the pass, the taps, the refusals."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.kernels import KernelView
from kdopt.core.validation import check_integer
from kdopt.criteria.axes import Meeting, meetings
from kdopt.criteria.base import Criterion, Needs
from kdopt.criteria.batches import Batch, batches
from kdopt.criteria.passes import check_compiled, check_finite, compiled, predict, untouched
from kdopt.criteria.taps import Call, Taps, hosts, tapped

Tensor = Any
_WAY_OUT = "Leave it out with `layers=`, or use a criterion of weights or gradients, e.g. 'l2' or 'taylor'."


class DataCriterion(Criterion):
    """A criterion that needs a pass over data, in inference mode: BatchNormalization and metrics stay as they are.

    Args:
        batch_size: Integer >= 1, samples in a batch when `data` is arrays. Defaults to `32`.
    """

    needs: Needs = "data"

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = check_integer("batch_size", batch_size)

    def score(self, weights: np.ndarray, view: KernelView | None = None) -> np.ndarray:
        raise ValueError(f"Criterion {type(self).__name__} needs data: call `scores(model, views, data=...)`.")

    @abstractmethod
    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        """Importance of each weight, from data; see `kdopt.criteria.batches.batches` for its forms."""

    def get_config(self) -> dict[str, Any]:
        return {"batch_size": self.batch_size}


class TapCriterion(DataCriterion):
    """A criterion made of sums over what each layer reads or makes.

    Subclass it with `statistic` and `finish`. A layer that loops over time (`TimeDistributed`) shows all its steps; a
    shared layer all its calls. A kind of layer without a rule, and a kernel whose tensors live inside a recurrent
    loop, are refused by name.

    Attributes:
        side: `"reads"` or `"makes"`: the tensor the statistic looks at.
        labels: Bool. Whether the loss, and so labels, are needed.
    """

    side: str = "makes"
    labels: bool = False

    @abstractmethod
    def statistic(self, view: KernelView, meeting: Meeting, tensors: list[Tensor]) -> Tensor:
        """What one batch adds: a float32 sum for each channel (or feature).

        Args:
            view: The kernel.
            meeting: Where the kernel and the tensors share an index.
            tensors: One for each call of the layer, batch first.
        """

    @abstractmethod
    def finish(self, view: KernelView, meeting: Meeting, total: np.ndarray, positions: float, count: int) -> np.ndarray:
        """The scores of a kernel.

        Args:
            view: The kernel.
            meeting: As in `statistic`.
            total: Sum of `statistic` over the batches.
            positions: Values of one channel in all batches: samples times places times calls.
            count: Integer, number of batches.

        Returns: array of the kernel's shape.
        """

    def scores(self, model: keras.Model, views: Sequence[KernelView], data: Any = None) -> list[np.ndarray]:
        found = [self.meeting(view) for view in views]
        source = batches(data, model, owner=self._owner, size=self.batch_size, labels=self.labels)
        step: Any = None
        results: list[tuple[Any, Any]] = []
        count = 0
        with untouched(model):
            for batch in source:
                step = step or self._step(model, views, found)
                sums = step(*batch)
                results = [(t + s, p + q) for (t, p), (s, q) in zip(results, sums, strict=True)] if count else sums
                count += 1
        scores = []
        for view, meeting, (total, positions) in zip(views, found, results, strict=True):
            score = self.finish(view, meeting, ops.convert_to_numpy(total), float(positions), count)
            scores.append(check_finite(score.astype(view.numpy().dtype), view.name, self._owner))
        return scores

    def meeting(self, view: KernelView) -> Meeting:
        """Where the kernel meets the tensor this criterion looks at.

        Raises: ValueError that names kernel and criterion where there is no such thing.
        """
        known = meetings(view)
        if known is None:
            raise ValueError(
                f"Criterion {self._owner} does not know how the kernel {view.name!r} meets the tensors of its layer "
                f"({type(view.layer).__name__}). {_WAY_OUT}"
            )
        meeting = known.reads if self.side == "reads" else known.makes
        if meeting is None:
            what = "feature its layer reads" if self.side == "reads" else "channel its layer makes"
            raise ValueError(
                f"Criterion {self._owner} has no meaning for the kernel {view.name!r} of {type(view.layer).__name__}: "
                f"no index of it is a {what}. {_WAY_OUT}"
            )
        return meeting

    @property
    def _owner(self) -> str:
        return type(self).__name__

    def _step(self, model: keras.Model, views: Sequence[KernelView], found: list[Meeting]) -> Any:
        if self.labels:
            check_compiled(model, self._owner)

        def step(*batch: Any) -> list[tuple[Tensor, Tensor]]:
            """(statistic, values of a channel) of each kernel."""
            observed = self._observe(model, views, batch)
            return [
                (self.statistic(view, meeting, tensors), _positions(meeting, tensors))
                for view, meeting, tensors in zip(views, found, observed, strict=True)
            ]

        return compiled(model, step)

    def _observe(self, model: keras.Model, views: Sequence[KernelView], batch: Batch) -> list[list[Tensor]]:
        """The tensors of each kernel in one batch."""
        sites = hosts(model, views)
        with tapped(model, sites) as taps:
            predict(model, batch[0])
        return self._tensors(views, sites, taps)

    def _tensors(self, views: Sequence[KernelView], sites: list[Any], taps: Taps) -> list[list[Tensor]]:
        return [
            [self._tensor(view, call, taps) for call in self._calls(view, site, taps)]
            for view, site in zip(views, sites, strict=True)
        ]

    def _calls(self, view: KernelView, site: Any, taps: Taps) -> list[Call]:
        calls = taps.of(site)
        if not calls or not all(_is_reachable(call.makes) for call in calls):
            what = (
                "is called inside a loop or a compiled function of its own" if calls else "is not called in inference"
            )
            raise ValueError(f"Criterion {self._owner}: the layer of {view.name!r} {what}. {_WAY_OUT}")
        return calls

    def _tensor(self, view: KernelView, call: Call, taps: Taps) -> Tensor:
        is_depthwise_half = call.middle is not None and view.variable is view.layer.depthwise_kernel
        if self.side == "reads":
            return call.reads if call.middle is None or is_depthwise_half else call.middle
        return call.middle if is_depthwise_half else self._output(view, call, taps)

    def _output(self, view: KernelView, call: Call, taps: Taps) -> Tensor:
        """The tensor that is taken for the layer's output."""
        del view, taps
        return call.makes


def _is_reachable(tensors: Any) -> bool:
    """Whether tensors belong to the function that is being traced, not to a loop inside it."""
    import tensorflow as tf

    graphs = [getattr(tensor, "graph", None) for tensor in keras.tree.flatten(tensors)]
    return tf.executing_eagerly() or all(graph is tf.compat.v1.get_default_graph() for graph in graphs)


def _positions(meeting: Meeting, tensors: list[Tensor]) -> Tensor:
    """Values of one channel in the tensors, a float32 scalar."""
    return sum(ops.max(meeting.reduce(ops.ones_like(tensor, dtype="float32"))) for tensor in tensors)
