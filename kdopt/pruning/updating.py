"""The callback that moves the masks of `Prunable` layers."""

from typing import Any

import keras

from kdopt.core.live import callback_list
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import innermost, updates
from kdopt.pruning.company import Company
from kdopt.pruning.run import sparsity
from kdopt.pruning.wrapper import Prunable


class UpdateMasks(keras.callbacks.Callback):
    """Changes the masks of all `Prunable` layers of a model while it trains.

    Masks change at the beginning of a batch, and at the end of an epoch; where weights of another epoch are put in at
    the end of training (EarlyStopping), their masks are put in with them. A layer with `trainable=False` keeps its
    masks. Logs `sparsity` at the end of an epoch: the fraction of zeros in the kernels of these layers.

    Stands first among the callbacks, so that the others see its logs and masks.

    In a training loop of your own: `set_model(model)`, `on_train_begin()`, `on_train_batch_begin(i)` before each
    batch, `on_train_end()`.

    Args:
        optimizer: The one that trains the model. Defaults to `None`: the one it was compiled with.

    Raises: ValueError at the beginning of training if the model has no `Prunable` layer, or a schedule is in `Epochs`
        and the number of batches is not known.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer | None = None) -> None:
        super().__init__()
        self.optimizer = optimizer
        self._layers: list[Prunable] = []
        self._begin: dict[int, int] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._layers = [layer for layer in self.model._flatten_layers() if isinstance(layer, Prunable)]
        self._begin = None
        if not self._layers:
            raise ValueError(
                f"{self.model.name!r} has no Prunable layer; GradualPruning(schedule) prunes a model without them."
            )
        batches = (self.params or {}).get("steps")
        accumulated = getattr(innermost(self._optimizer()), "gradient_accumulation_steps", None) or 1
        for layer in self._layers:
            layer.begin_updates(None if batches is None else max(1, batches // accumulated))
        company = Company(callback_list(self), self)
        company.gather(after_progress=lambda logs: None, last=self._finish)
        self._ends_itself = company.run is None

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        now = updates(self._optimizer())
        if self._begin is None:  # not before: a backup restores weights and optimizer when training begins
            self._begin = {id(layer): now - layer.current_step if layer.built else now for layer in self._layers}
        for layer in self._layers:
            layer.update_masks(now - self._begin[id(layer)], self._optimizer())

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._begin is not None:
            self.on_train_batch_begin(0)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.on_train_batch_begin(0)
        for layer in self._layers:
            layer.note_step()
        if logs is not None:
            logs["sparsity"] = sparsity([view for layer in self._layers for view in layer.kernels])

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._ends_itself:
            self._finish()

    def _finish(self) -> None:
        for layer in self._layers:
            layer.apply_masks(self._optimizer())
            layer.end_updates()
        unfinished = [layer for layer in self._layers if layer.trainable and layer.built and not layer.complete]
        if unfinished:
            layer = unfinished[0]
            warn_user(
                f"UpdateMasks: training ended before the schedules of {len(unfinished)} layers did; the next fit goes "
                f"on with them. {layer.name!r} has a sparsity of {sparsity(layer.kernels):.3f} after "
                f"{layer.current_step} updates, of {layer.schedule.final_sparsity:.3f} in the end."
            )
        self._layers, self._begin = [], None

    def _optimizer(self) -> keras.optimizers.Optimizer:
        return self.model.optimizer if self.optimizer is None else self.optimizer
