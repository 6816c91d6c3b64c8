"""What a model costs with some channels gone, without building it."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kdopt.core import measure
from kdopt.graph.channels.constants import Constants
from kdopt.graph.channels.groups import ChannelGraph


class Costs:
    """Parameters, bytes and multiply-accumulates of a model with a set of channels gone.

    Parameters and bytes are exact. The multiply-accumulates of a layer are in proportion to its kernels, which is exact
    for dense layers and convolutions, and close for attention.

    Args:
        model: The model that was traced.
        graph: What was found.
        left: Function identities -> what is left without them.
        input_shape: As `measure.macs` takes it.
        branches: Whether layers may go although no channel does.

    `removed` is `None` for the model as it is.
    """

    def __init__(
        self,
        model: keras.Model,
        graph: ChannelGraph,
        left: Callable[[np.ndarray], Constants],
        input_shape: Any = None,
        branches: bool = False,
    ) -> None:
        self._model, self._graph, self._input_shape = model, graph, input_shape
        self._left, self._branches = left, branches
        self._variables = list({id(w): w for w in model.weights}.values())
        self._slots: dict[int, list[Any]] = {}
        for slot in graph.labels.slots():
            self._slots.setdefault(id(slot.variable), []).append((slot.axis, graph.labels.roots(slot.labels)))
        self._layers: dict[str, tuple[int, list[keras.Variable]]] | None = None
        self._dropped: tuple[bytes | None, set[int]] = None, set()

    def parameters(self, removed: np.ndarray | None) -> int:
        """Weights that are left."""
        return sum(self._size(variable, removed) for variable in self._variables)

    def size_bytes(self, removed: np.ndarray | None) -> int:
        """Their bytes, each in its own dtype."""
        return sum(
            self._size(variable, removed) * keras.ops.convert_to_numpy(variable).dtype.itemsize
            for variable in self._variables
        )

    def macs(self, removed: np.ndarray | None) -> int:
        """Multiply-accumulates of one sample that are left.

        Raises: ValueError where they are not known.
        """
        return round(sum(after for _, after in self._macs_by_layer(removed).values()))

    def macs_by_layer(self, removed: np.ndarray | None) -> dict[str, tuple[int, int]]:
        """Path of a layer that holds channels -> (its multiply-accumulates, those that are left).

        Raises: ValueError where they are not known.
        """
        return {path: (before, round(after)) for path, (before, after) in self._macs_by_layer(removed).items() if path}

    def dropped(self, removed: np.ndarray | None) -> set[int]:
        """Identities of the Variables whose layers go as a whole."""
        if removed is None:
            return set()
        if self._dropped[0] != (key := removed.tobytes()):
            makes = [slot.labels for slot in self._graph.labels.slots() if slot.role == "makes"]
            emptied = any(np.isin(self._graph.labels.roots(labels), removed).all() for labels in makes)
            self._dropped = key, self._without(self._left(removed).needed()) if emptied or self._branches else set()
        return self._dropped[1]

    def _without(self, needed: set[int]) -> set[int]:
        """The Variables of the other layers."""
        layers = [call.operation for call, _ in self._graph.calls if isinstance(call.operation, keras.layers.Layer)]
        kept = {id(variable) for layer in layers if id(layer) in needed for variable in layer.variables}
        return {id(variable) for layer in layers for variable in layer.variables} - kept

    def _macs_by_layer(self, removed: np.ndarray | None) -> dict[str, tuple[int, float]]:
        if self._layers is None:
            self._layers = self._by_layer()
        found = {}
        for path, (macs, kernels) in self._layers.items():
            before = sum(int(np.prod(kernel.shape)) for kernel in kernels)
            after = sum(self._size(kernel, removed) for kernel in kernels)
            found[path] = macs, macs * (after / before if before else 1.0)
        return found

    def _by_layer(self) -> dict[str, tuple[int, list[keras.Variable]]]:
        """Path -> (multiply-accumulates, kernels); under the empty one what no kernel is known of."""
        total = measure.macs(self._model, self._input_shape)
        found: dict[str, tuple[int, list[keras.Variable]]] = {}
        by_path = {record.path: record for record in measure.by_layer(self._model, self._input_shape)}
        kernels: dict[str, list[keras.Variable]] = {}
        for slot in self._graph.labels.slots():
            if len(slot.variable.shape) < 2:
                continue
            path = self._graph.paths.get(id(slot.layer), slot.layer.name)
            own = kernels.setdefault(path, [])
            if not any(variable is slot.variable for variable in own):
                own.append(slot.variable)
        for path, own in kernels.items():
            if path in by_path and by_path[path].macs:
                found[path] = int(by_path[path].macs or 0), own
        rest = total - sum(macs for macs, _ in found.values())
        return {**found, "": (rest, [])}

    def _size(self, variable: keras.Variable, removed: np.ndarray | None) -> int:
        if removed is None:
            return int(np.prod(variable.shape))
        if id(variable) in self.dropped(removed):
            return 0
        size = int(np.prod(variable.shape))
        for axis, roots in self._slots.get(id(variable), []):
            size = size // variable.shape[axis] * int(np.count_nonzero(~np.isin(roots, removed)))
        return size
