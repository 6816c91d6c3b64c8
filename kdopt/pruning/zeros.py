"""Zeros that stay: a pruned model trained on, distilled, or quantized."""

import functools
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from kdopt.core.backend import require_tensorflow
from kdopt.core.kernels import KernelView, Skipped, find_kernels, select
from kdopt.core.live import Live
from kdopt.core.notices import warn_user
from kdopt.core.optimizers import averages, innermost
from kdopt.pruning.channel_patterns import beside
from kdopt.pruning.coupling import gone_with_channels
from kdopt.pruning.masking import Layers


def masks_of(model: keras.Model, layers: Layers = None) -> dict[str, np.ndarray]:
    """Which weights of a model are not zero now.

        mask = (w != 0)

    A mask of a running pruning may leave a weight free that is zero at the moment; then the callback's own `masks` say
    it better.

    Args:
        model: Built `keras.Model`.
        layers: As in `GradualPruning`. Defaults to `None`: all kernels that training would update.

    Returns: dict, path of a kernel (`KernelView.path`) -> bool array of its shape; where whole channels are gone, also
        path of their bias, gamma and beta (`"conv/bias"`) -> bool array (channels,).

    Example:
    ```
    qat = quantize_aware(sparse, calibration=x_train[:256])
    keep_zeros(qat, masks_of(sparse))
    ```
    """
    _check_built(model)
    found, skipped = find_kernels(model)
    views = select(found, layers, skipped)
    paths = {id(variable): path for path, variable in _vectors(model).items()}
    masks = {view.path: view.numpy() != 0 for view in views}
    for view in views:
        masks.update({paths[id(variable)]: mask for variable, mask in _companions(view, masks[view.path])})
    for variable, mask in gone_with_channels(model, [view.variable for view in views]):
        path = paths[id(variable)]
        masks[path] = mask & masks[path] if path in masks else mask
    return masks


_Held = tuple[str, keras.Variable, np.ndarray]  # path, what is held, its mask


class KeptZeros:
    """Holds zeros in a model until `release`. Made by `keep_zeros`; also a context manager.

    Attributes:
        masks: As in `masks_of`, of all that is held: False where the weight stays zero.
    """

    def __init__(self, model: keras.Model, held: list[_Held]) -> None:
        self.model = model
        self.masks = {path: mask for path, _, mask in held}
        self._live = Live(model)
        with model.distribute_strategy.scope():
            self._held = [
                (variable, keras.Variable(mask, dtype="bool", trainable=False, name="mask"))
                for _, variable, mask in held
            ]
        self._released = False
        self.apply()
        self._attach()

    def apply(self) -> bool:
        """Zeroes the weights now, e.g. after `load_weights`; True if that changed any."""
        changed = False
        for own, mask in self._held:
            for variable in [own, *(averages(self.model.optimizer, own) if self.model.compiled else [])]:
                if ops.convert_to_numpy(ops.any(ops.logical_and(ops.not_equal(variable, 0), ops.logical_not(mask)))):
                    changed = changed or variable is own
                    variable.assign(_masked(mask, variable))
        return changed

    def release(self) -> None:
        """Lets the weights go; they are exact zeros until training changes them."""
        if self._released:
            return
        self._released = True
        if self.apply():
            warn_user(
                "keep_zeros: weights that were held at zero are not zero, and were zeroed now. Either other weights "
                "were put in (load_weights, an averaging optimizer), or the weights were trained by another model than "
                f"{self.model.name!r}, whose training step was compiled before: pass keep_zeros the model that you fit "
                "(the Distiller, not its student). Evaluate before you use it."
            )
        self._live.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _attach(self) -> None:
        # An averaging optimizer reads the weights before the constraints run, and puts its averages in.
        averaging = self.model.compiled and getattr(innermost(self.model.optimizer), "use_ema", False)
        for variable, mask in self._held:
            self._live.constrain(variable, functools.partial(_masked, mask))
            if averaging:
                self._live.after_update(variable, functools.partial(_masked_after_update, mask))
        if self.model.compiled:
            self._live.rebuild()


def keep_zeros(model: keras.Model, masks: Mapping[str, np.ndarray] | None = None, layers: Layers = None) -> KeptZeros:
    """Holds zeros at zero through later training: fine-tuning, distillation, quantization-aware training.

        every optimizer update:   w <- w * mask

    inside the compiled step of the model's own `fit` (and in every `optimizer.apply` traced from now on). It needs no
    recompiling, outlives a `fit` and a `compile`, and stays until `release()`. Saving writes a plain model, without it.
    Cost: one multiplication per kernel and step.

    A channel that is gone (no weight left in the kernel's mask; bias, and gamma and beta of the BatchNormalization that
    alone follows, zero too) stays gone: these are held as well. `masks_of` carries them to another model.

    Args:
        model: Built `keras.Model`, compiled or not, fit or not. The one you `fit`: for distillation the `Distiller`
            (its student is meant), for quantization-aware training the `quantize_aware` model.
        masks: Dict, path of a kernel as in `masks_of` -> bool array of its shape, False where the weight is zero from
            now on; e.g. `masks_of(source)`, or `pruning.masks` after a `fit` with `GradualPruning`. A path may lack
            names in front, or have more of them, where it is clear which kernel is meant: those of a student fit its
            Distiller. Kernels that are not in it are left alone. Defaults to `None`: what is zero now stays zero.
        layers: Which kernels, as in `GradualPruning`. Defaults to `None`: all, or those in `masks`. Layers frozen now
            are none of them: freeze after this call, not before.

    Returns: `KeptZeros` with `release()`, `apply()` and `masks`; a context manager.
    Raises: ValueError for a model without weights yet, masks that fit no kernel or not its shape, and if there is
        nothing to hold.

    Example:
    ```
    with keep_zeros(sparse):
        sparse.fit(x, y, epochs=2)
    ```
    """
    require_tensorflow("keep_zeros")
    _check_built(model)
    found, skipped = find_kernels(model)
    chosen = select(found, layers, skipped)
    if masks is None:
        masks = {path: mask for path, mask in masks_of(model, layers).items() if not mask.all()}
        reason = "no kernel has a zero"
    else:
        reason = "`masks` is empty"
    if not masks:
        raise ValueError(
            f"There is nothing to hold: {reason}. Prune first, e.g. prune(model, 0.8), or pass the masks of the pruned "
            "model."
        )
    return KeptZeros(model, _placed(masks, model, chosen, skipped))


def _placed(
    masks: Mapping[str, np.ndarray], model: keras.Model, views: list[KernelView], skipped: list[Skipped]
) -> list[_Held]:
    """Each mask with its Variable, and what goes with the channels that are gone.

    Raises: ValueError.
    """
    kernels, vectors = {view.path: view for view in views}, _vectors(model)
    variables = {**vectors, **{path: view.variable for path, view in kernels.items()}}
    held: dict[str, _Held] = {}
    for asked, mask in masks.items():
        path = _match(asked, list(kernels)) or _match(asked, list(vectors))
        if path is None:
            reasons = [
                f" ({skip.name!r}: {skip.reason})" for skip in skipped if f"{asked}/".startswith(f"{skip.name}/")
            ]
            raise ValueError(f"There is nothing called {asked!r} to hold at zero{''.join(reasons)}. {_listed(views)}")
        if path in held:
            raise ValueError(f"Two masks are for {path!r}; one of them is called {asked!r}.")
        held[path] = (path, variables[path], _checked(asked, mask, variables[path], views))
    names = {id(variable): path for path, variable in vectors.items()}
    for path, view in kernels.items():
        for variable, mask in _companions(view, held[path][2]) if path in held else []:
            held.setdefault(names[id(variable)], (names[id(variable)], variable, mask))
    return list(held.values())


def _match(asked: str, paths: list[str]) -> str | None:
    """The path that is meant; `None` for none of them.

    Raises: ValueError if it may be several.
    """
    if asked in paths:
        return asked
    near = [path for path in paths if f"/{path}".endswith(f"/{asked}") or f"/{asked}".endswith(f"/{path}")]
    if len(near) > 1:
        told = ", ".join(map(repr, near))
        raise ValueError(f"The mask {asked!r} may be for several kernels: {told}. Write the whole path.")
    return near[0] if near else None


def _checked(path: str, mask: Any, variable: keras.Variable, views: list[KernelView]) -> np.ndarray:
    array = np.asarray(mask)
    if array.shape != tuple(variable.shape):
        raise ValueError(
            f"The mask for {path!r} must have the shape {tuple(variable.shape)} of the weights; got {array.shape}. "
            f"{_listed(views)}"
        )
    if array.dtype != bool:
        raise ValueError(f"The mask for {path!r} must be of bools; got {array.dtype}. E.g. `weights != 0`.")
    return array


def _listed(views: list[KernelView]) -> str:
    return f"Kernels here: {', '.join(f'{view.path!r} {tuple(view.variable.shape)}' for view in views)}."


def _vectors(model: keras.Model) -> dict[str, keras.Variable]:
    """Path -> trainable Variable of every layer, kernels included."""
    found: dict[str, keras.Variable] = {}

    def walk(layer: keras.layers.Layer, path: str) -> None:
        for variable in layer._trainable_variables:
            found.setdefault(f"{path}/{variable.name}" if path else variable.name, variable)
        for child in layer._layers:
            walk(child, f"{path}/{child.name}" if path else child.name)

    walk(model, "")
    return found


def _companions(view: KernelView, mask: np.ndarray) -> list[tuple[keras.Variable, np.ndarray]]:
    """(bias, gamma or beta, its mask) of the channels that are gone; nothing if there are none."""
    axis = view.channel_axis % mask.ndim
    stays = np.asarray(mask.any(axis=tuple(i for i in range(mask.ndim) if i != axis)))
    variables = [variable for variable in beside(view) if len(variable.shape) == 1]
    for variable in variables:
        stays = np.logical_or(stays, ops.convert_to_numpy(variable) != 0)
    return [] if stays.all() else [(variable, stays) for variable in variables]


def _check_built(model: keras.Model) -> None:
    if not (model.built and model.weights):
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")


def _masked(mask: keras.Variable, value: Any) -> Any:
    return ops.where(mask, value, ops.zeros_like(value))


def _masked_after_update(mask: keras.Variable, value: Any, update: Any) -> Any:
    del update
    return _masked(mask, value)
