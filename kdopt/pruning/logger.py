"""How sparse a model is while it trains, whatever makes it so."""

import os
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, find_kernels
from kdopt.core.live import callback_list
from kdopt.core.notices import warn_user

Logs = dict[str, Any]


def kernel_sparsities(kernels: list[KernelView]) -> tuple[float, dict[str, float]]:
    """Fraction of exact zeros: in all kernels together, and in each by its name.

        overall = sum_k zeros_k / sum_k weights_k

    Args:
        kernels: Non-empty list, as `find_kernels` returns it.
    """
    sizes = [int(np.prod(view.variable.shape)) for view in kernels]
    zeros = [size - int(ops.count_nonzero(view.variable)) for view, size in zip(kernels, sizes, strict=True)]
    each = {view.name: z / size for view, z, size in zip(kernels, zeros, sizes, strict=True)}
    return sum(zeros) / sum(sizes), each


class SparsityLogger(keras.callbacks.Callback):
    """Logs the fraction of exact zeros in the kernels, at the end of every epoch.

    For training with penalties, proximal steps, kept zeros, or no pruning at all, of any Keras model; of a
    `Distiller`, its student. Kernels of frozen layers do not count. The logs hold `sparsity`, over all kernels, and
    `sparsity/<layer>` for each; callbacks that stand after this one in the list (`CSVLogger`, `TensorBoard`) and the
    history have both, the progress bar shows the first alone. What another callback has logged under these names
    stays: beside `GradualPruning`, `sparsity` is that of the kernels it prunes. Cost: one pass over the kernels an
    epoch.

    Args:
        log_dir: Folder for TensorBoard scalars of the same names over the epochs, from all kernels. Defaults to
            `None`: none are written.

    Example:
    ```
    logger = SparsityLogger(log_dir="logs/sparsity")
    history = model.fit(x, y, epochs=3, callbacks=[logger])
    history.history["sparsity"]      # [0.0, 0.31, 0.48]
    ```
    """

    def __init__(self, log_dir: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if log_dir is not None:
            require_tensorflow("SparsityLogger(log_dir=...)")
            log_dir = os.fspath(log_dir)
            if os.path.isfile(log_dir):
                raise NotADirectoryError(f"`log_dir` must be a folder; {log_dir!r} is a file.")
        self.log_dir = log_dir
        self._writer: Any = None
        self._behind_progress: keras.callbacks.Callback | None = None
        self._each: dict[str, float] = {}
        self._has_warned = False

    def on_train_begin(self, logs: Logs | None = None) -> None:
        run = callback_list(self)
        self._behind_progress = None
        if run is not None:
            self._behind_progress = keras.callbacks.LambdaCallback(on_epoch_end=self._log_layers)
            run.callbacks = _in_order(run.callbacks, self, self._behind_progress)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        kernels, _ = find_kernels(self.model)
        if not kernels:
            self._warn()
            return
        overall, self._each = kernel_sparsities(kernels)
        if logs is not None:
            logs.setdefault("sparsity", overall)
        if self._behind_progress is None:
            self._log_layers(epoch, logs)
        self._write(epoch, overall)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._each = None, {}

    def _log_layers(self, epoch: int, logs: Logs | None = None) -> None:
        for name, value in self._each.items():
            if logs is not None:
                logs.setdefault(f"sparsity/{name}", value)

    def _write(self, epoch: int, overall: float) -> None:
        if self.log_dir is None:
            return
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self.log_dir)
        named = {f"sparsity/{name}": value for name, value in self._each.items()}
        with self._writer.as_default(), tf.summary.record_if(True):
            for tag, value in {"sparsity": overall, **named}.items():
                # Not tf.summary.scalar, which needs the tensorboard package to write what this writes.
                tf.summary.write(tag, tf.constant(value, tf.float32), epoch, _scalar_metadata())
        self._writer.flush()  # so that a killed `fit` leaves what it had

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            warn_user("SparsityLogger: this model has no kernel that training updates, so nothing is logged.")


def _scalar_metadata() -> Any:
    """What makes TensorBoard show a summary among its scalars."""
    from tensorflow.core.framework import summary_pb2

    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="scalars")
    return summary_pb2.SummaryMetadata(plugin_data=plugin, data_class=summary_pb2.DATA_CLASS_SCALAR)


def _in_order(
    callbacks: list[keras.callbacks.Callback], logger: SparsityLogger, hook: keras.callbacks.Callback
) -> list[keras.callbacks.Callback]:
    """A new list with `hook` right after `logger`, and a progress bar that came later between the two."""
    at = next(i for i, callback in enumerate(callbacks) if callback is logger) + 1
    later = [c for c in callbacks[at:] if isinstance(c, keras.callbacks.ProgbarLogger)]
    rest = [c for c in callbacks[at:] if not isinstance(c, keras.callbacks.ProgbarLogger)]
    return [*callbacks[:at], *later, hook, *rest]
