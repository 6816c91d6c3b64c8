"""The pruning callbacks in a training loop of your own."""

from types import TracebackType
from typing import Self

import keras
import numpy as np

from kdopt.core.optimizers import updates
from kdopt.core.validation import check_integer
from kdopt.pruning.masking import MaskCallback
from kdopt.pruning.run import sparsity


class PruningLoop:
    """What `pruning_loop` returns; a context manager. Call `step` after every optimizer update."""

    def __init__(
        self,
        model: keras.Model,
        pruning: MaskCallback,
        optimizer: keras.optimizers.Optimizer,
        updates_per_epoch: int | None,
    ) -> None:
        self.model, self.pruning, self.optimizer = model, pruning, optimizer
        self._updates_per_epoch = updates_per_epoch
        self._begin: int | None = None

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """Path of a kernel (`KernelView.path`) -> its mask as it is now; see `keep_zeros`."""
        return self.pruning.masks

    @property
    def sparsity(self) -> float:
        """Fraction of zeros in all pruned kernels, as they are now."""
        return sparsity(self.pruning.kernels)

    def __enter__(self) -> Self:
        if self._begin is not None:
            raise RuntimeError("This pruning loop has begun already; make another one with pruning_loop(...).")
        self._begin = updates(self.optimizer)
        self.pruning._loop_optimizer = self.optimizer
        try:
            self.pruning.set_model(self.model)
            self.pruning.set_params({"steps": self._updates_per_epoch})
            self.pruning.on_train_begin()
            self.pruning.on_train_batch_begin(0)
        except BaseException:
            self._leave()
            raise
        return self

    def step(self) -> None:
        """Zeroes what the masks leave out, and changes the masks if it is time.

        Raises: RuntimeError outside the `with`, inside a `tf.function`, or where a criterion needs gradients that
            it does not see.
        """
        import tensorflow as tf

        if tf.inside_function():
            raise RuntimeError(
                "step() runs between the optimizer's updates, not inside a tf.function (there it would run once, while "
                "the function is traced). Call it after the function: `train_step(x, y); pruning.step()`."
            )
        run = self.pruning._run
        if run is None:
            raise RuntimeError("step() works inside the `with` only: `with pruning_loop(...) as pruning: ...`.")
        run.hold()
        self.pruning.on_train_batch_begin(0)
        if run.is_blind and updates(self.optimizer) != self._begin:
            ways = "" if self.pruning.splicing else ", pass `data=`, or use a criterion of the weights, such as 'l1'"
            raise RuntimeError(
                f"{type(self.pruning).__name__} needs the gradients, but saw none although the optimizer made updates: "
                "the tf.function with `optimizer.apply` was traced before the loop began. Make the tf.function inside "
                f"the `with`{ways}."
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            run = self.pruning._run
            if kind is None and run is not None:
                run.update_if_due()
                run.apply()
                self.pruning.on_train_end()
        finally:
            self._leave()

    def _leave(self) -> None:
        self.pruning.release()
        self.pruning._loop_optimizer = None


def pruning_loop(
    model: keras.Model,
    pruning: MaskCallback,
    optimizer: keras.optimizers.Optimizer | None = None,
    updates_per_epoch: int | None = None,
) -> PruningLoop:
    """Prunes in a training loop of your own, as the callback does in `fit`.

        on entry:          masks are made; those due at update 0 are set
        in every step():   w <- w * mask;   if the schedule has an update at or before this step: new masks
        on exit:           exact zeros; nothing stays attached

    The same seed and data give the weights that `fit` with the callback gives. Works with eager steps and with a
    `tf.function`, also one that was traced before: masks act in `step`, not inside the function. So call it after each
    optimizer update, and before you evaluate or save. Steps are counted by the optimizer's `iterations`. Cost: one
    multiplication per kernel and step, in one compiled call.

    A criterion that needs gradients (`"taylor"`) and `RegrowPruning(method="rigl")` read them in `optimizer.apply`;
    for these, make the `tf.function` inside the `with`, and a new one for training after it (the old one goes on
    summing). Differs from `fit` in one thing: a constraint of your own on a kernel, such as UnitNorm, sees the weights
    before the mask, not after it.

    Args:
        model: Built `keras.Model`; need not be compiled.
        pruning: `GradualPruning`, `RegrowPruning` or another `MaskCallback`. After the loop its `masks` are the last
            ones.
        optimizer: The `keras.optimizers.Optimizer` whose updates train `model`. Defaults to `None`: the one `model`
            was compiled with.
        updates_per_epoch: Integer >= 1, needed for a schedule in `Epochs`. Defaults to `None`.

    Returns: `PruningLoop` with `step()`, `masks` and `sparsity`.
    Raises: TypeError for what is no pruning callback; ValueError for a model that is not built or has no optimizer, and
        as the callback does.

    Example:
    ```
    with pruning_loop(model, GradualPruning(Polynomial(0.8, end_step=1000)), optimizer) as pruning:
        for x, y in batches:
            train_step(x, y)
            pruning.step()
    ```
    """
    if not isinstance(pruning, MaskCallback):
        raise TypeError(
            "`pruning` must be a pruning callback, e.g. GradualPruning(Polynomial(0.8, end_step=1000)); "
            f"got {pruning!r}."
        )
    if not (model.built and model.weights):
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
    if optimizer is None:
        optimizer = getattr(model, "optimizer", None)
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise ValueError(
            "pruning_loop needs the Keras optimizer that trains the model: pass `optimizer=`, or compile the model; "
            f"got {optimizer!r}."
        )
    if updates_per_epoch is not None:
        accumulated = getattr(optimizer, "gradient_accumulation_steps", None) or 1
        updates_per_epoch = check_integer("updates_per_epoch", updates_per_epoch) * accumulated
    return PruningLoop(model, pruning, optimizer, updates_per_epoch)
