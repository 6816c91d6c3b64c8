"""A layer that is pruned while it trains, for models that are being written."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView
from kdopt.core.live import Live
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import averages, slots
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.pruning.patterns import PATTERNS, Pattern
from kdopt.pruning.selection import Selection, listed
from kdopt.regularizers.wrapper import all_trainable, kernels_inside
from kdopt.schedules.base import Schedule
from kdopt.schedules.jumps import Constant

Tensor = Any


@keras.saving.register_keras_serializable("kdopt")
class Prunable(keras.layers.Wrapper):
    """Makes weights of one layer (or block of layers) zero while the model trains.

    For models being written; a model that exists is pruned by `GradualPruning` without any wrapper. Masks, step (real
    optimizer updates, over all `fit`s) and schedule are part of the model: they are saved in `.keras` and weight files,
    go on in the next `fit`, and resume with `BackupAndRestore`.

        every training step:   w <- w * mask   inside the compiled step, after the optimizer's update
        every update of the schedule, at t optimizer updates since training began:
            mask = the 1 - schedule(t) share of weights with the highest scores

    so the forward pass uses w * mask, in training and inference. Give `fit` the callback `UpdateMasks()`, which changes
    the masks between batches (selection is work for the host, not for the compiled step); without it the masks stay
    as they are, and a warning says so. `strip` takes the wrappers off.

    Args:
        layer: `keras.layers.Layer` called on one input, with at least one kernel inside: `Dense`, convolutions,
            `LSTM`, or a `Sequential` block, e.g. of a convolution and its BatchNormalization.
        sparsity: Float in [0, 1), fraction of zeros in each kernel inside from the first step on; or a
            `kdopt.schedules.Schedule`.
        criterion: Name in `kdopt.criteria.CRITERIA` or a `Criterion`, of those that need the weights only. Defaults to
            `"l1"`.
        pattern: Name in `kdopt.pruning.PATTERNS`, or a `Pattern`. Defaults to `"unstructured"`.

    Raises: ValueError for an argument it cannot use, and when it is built, if the layer has no kernel or the pattern
        does not divide it.

    Example:
    ```
    x = Prunable(keras.layers.Conv2D(32, 3), Polynomial(0.8, end_step=1000))(x)
    ...
    model.fit(x_train, y_train, callbacks=[UpdateMasks()])
    strip(model).save("sparse.keras")
    ```

    Reference: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        sparsity: float | Schedule,
        criterion: str | Criterion = "l1",
        pattern: str | Pattern = "unstructured",
        **kwargs: Any,
    ) -> None:
        require_tensorflow("Prunable")
        super().__init__(layer, **{"name": f"prunable_{getattr(layer, 'name', '')}", **kwargs})
        if any(isinstance(inner, Prunable) for inner in layer._flatten_layers()):
            raise ValueError(f"{layer.name!r} is or holds a Prunable already; wrap it once.")
        self.schedule = _schedule(sparsity)
        self.criterion = CRITERIA.get(criterion)
        self.pattern = PATTERNS.get(pattern)
        if self.criterion.needs != "weights":
            raise ValueError(
                f"The criterion {type(self.criterion).__name__} needs {self.criterion.needs}, which a layer does not "
                "see. Use one of the weights, such as 'l1', or prune with GradualPruning instead of the wrapper."
            )
        self._times = self.schedule
        self._selection: Selection | None = None
        self._masks: list[keras.Variable] = []
        self._is_updated = False  # whether an `UpdateMasks` is at work
        self._warned = False
        self._now: int | None = None  # the step, between two writes of it
        self._due: float | None = None  # the step of the next update; infinite when there is none
        self.supports_masking = layer.supports_masking

    def build(self, input_shape: Any = None) -> None:
        super().build(input_shape)
        self._input_shape = input_shape
        with all_trainable(self):  # masks for frozen layers too
            kernels_inside(self)
            selection = Selection(self, None, self.pattern, "uniform")
        self._warn_of_skipped(selection)
        selection.check_sparsity(self.schedule.final_sparsity)
        self._masks = [
            self.add_weight(
                shape=variable.shape,
                initializer="ones",
                dtype="bool",
                trainable=False,
                name=f"mask_{i}",
                autocast=False,
            )
            for i, variable in enumerate(selection.variables)
        ]
        self.step, self._updated_at = (
            self.add_weight(shape=(), initializer=start, dtype="int64", trainable=False, name=name)
            for name, start in (("step", "zeros"), ("updated_at", keras.initializers.Constant(-1)))
        )
        live = Live(self)
        for variable, mask in zip(selection.variables, self._masks, strict=True):
            live.constrain(variable, functools.partial(self._mask, mask))
        self._selection = selection
        self.built = True

    def call(self, inputs: Tensor, **kwargs: Any) -> Tensor:
        return self.layer(inputs, **kwargs)

    def compute_mask(self, inputs: Tensor, previous_mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.layer.compute_output_shape(input_shape)

    @property
    def kernels(self) -> list[KernelView]:
        """The kernels inside that lose weights; empty before it is built."""
        return [] if self._selection is None else list(self._selection.kernels)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Path of a kernel inside this wrapper -> its mask, bool, False where the weight is held at zero."""
        return {view.path: ops.convert_to_numpy(mask) for view, mask in zip(self.kernels, self._masks, strict=False)}

    @property
    def complete(self) -> bool:
        """Whether the schedule has made its last update."""
        if self._selection is None or self._times.has_epochs:
            return False
        return self._times.next_update(int(self._updated_at.numpy())) is None

    @property
    def current_step(self) -> int:
        """Optimizer updates so far."""
        return int(self.step.numpy()) if self._now is None else self._now

    def update_masks(self, step: int, optimizer: keras.optimizers.Optimizer | None = None) -> None:
        """Changes the masks if the schedule has an update at or before `step`; see `UpdateMasks`.

        Args:
            step: Integer >= 0, optimizer updates so far.
            optimizer: The one that trains the layer; forgets the momentum of weights that come back. Defaults to
                `None`.
        """
        if self._selection is None or not self.trainable:
            return
        self._now = step
        due = self._times.next_update(int(self._updated_at.numpy())) if self._due is None else self._due
        self._due = np.inf if due is None else due
        if step < self._due:
            return
        now, final = self._times(step), self._times.final_sparsity
        scores = self.criterion.scores(self, self._selection.kernels)
        self._set(self._selection.masks(scores, now, min(1.0, now / final) if final else 1.0), optimizer)
        self._updated_at.assign(step)
        self.note_step()
        self._due = None

    def note_step(self) -> None:
        """Writes the step into the weights, which are saved and put back with all others."""
        if self._now is not None:
            self.step.assign(self._now)
            self._now = None

    def _set(self, masks: list[np.ndarray], optimizer: keras.optimizers.Optimizer | None) -> None:
        assert self._selection is not None
        for variable, own, mask in zip(self._selection.variables, self._masks, masks, strict=True):
            back = mask & ~ops.convert_to_numpy(own)
            own.assign(mask)
            for kept in slots(optimizer, variable) if optimizer is not None and back.any() else []:
                kept.assign(ops.where(back, ops.zeros_like(kept), kept))
        self.apply_masks(optimizer)

    def apply_masks(self, optimizer: keras.optimizers.Optimizer | None = None) -> None:
        """Zeroes what the masks leave out, in an optimizer's averages too, e.g. after other weights were put in."""
        for variable, mask in zip(
            [] if self._selection is None else self._selection.variables, self._masks, strict=True
        ):
            for target in [variable, *(averages(optimizer, variable) if optimizer is not None else [])]:
                target.assign(_masked(mask, target))

    def to_plain(self) -> keras.layers.Layer:
        """A new layer without the wrapper, built if this one is, with the same weights and exact zeros."""
        plain = type(self.layer).from_config(self.layer.get_config())
        if self._selection is None:
            return plain
        if not plain.built:
            plain.build(self._input_shape)
        places = {id(variable): i for i, variable in enumerate(self.layer.weights)}
        values = self.layer.get_weights()
        for variable, mask in zip(self._selection.variables, self._masks, strict=True):
            i = places[id(variable)]
            values[i] = np.where(ops.convert_to_numpy(mask), values[i], np.zeros_like(values[i]))
        plain.set_weights(values)
        return plain

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        parts = {"sparsity": self.schedule, "criterion": self.criterion, "pattern": self.pattern}
        return {**super().get_config(), **{name: serialize(part) for name, part in parts.items()}}

    def save_own_variables(self, store: Any) -> None:
        self.note_step()
        super().save_own_variables(store)

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables(store)
        self._now = self._due = None

    def begin_updates(self, updates_per_epoch: int | None = None) -> None:
        """Says that masks are going to be updated; see `UpdateMasks`, which calls it.

        Args:
            updates_per_epoch: Integer >= 1, for a schedule in `Epochs`. Defaults to `None`.
        """
        self._times = self.schedule.in_steps(updates_per_epoch)
        self._is_updated, self._now, self._due = True, None, None

    def end_updates(self) -> None:
        """Says that masks stay as they are from now on."""
        self.note_step()
        self._is_updated = False

    def _mask(self, mask: keras.Variable, value: Tensor) -> Tensor:
        if not (self._is_updated or self._warned):
            self._warn_of_no_updates()
        return _masked(mask, value)

    def _warn_of_skipped(self, selection: Selection) -> None:
        left_out = [skip for skip in selection.skipped if skip.unfit or not skip.known]
        if left_out:
            warn_user(f"Prunable {self.name!r} leaves out layers inside. {listed(left_out)}.")

    def _warn_of_no_updates(self) -> None:
        import tensorflow as tf

        self._warned = True
        with tf.init_scope():
            done = self.complete
        if not done:
            warn_user(
                f"The masks of {self.name!r} do not change in this training: give fit the callback UpdateMasks(), or "
                "call its hooks in a training loop of your own."
            )


def _schedule(sparsity: Any) -> Schedule:
    if isinstance(sparsity, dict):
        sparsity = keras.saving.deserialize_keras_object(sparsity)
    return sparsity if isinstance(sparsity, Schedule) else Constant(sparsity)


def _masked(mask: keras.Variable, value: Tensor) -> Tensor:
    return ops.where(mask, value, ops.zeros_like(value))
