"""Penalties on a built model, put on and taken off without a rebuild."""

from typing import Any

import keras

from kdopt.core.backend import require_tensorflow
from kdopt.core.live import Live
from kdopt.regularizers.base import PENALTIES, Penalty
from kdopt.regularizers.choosing import Layers, choose
from kdopt.regularizers.following import PenaltyCallback, Priced, bind


class Attachment(PenaltyCallback):
    """A penalty on a model, as `attach` returns it: also a callback that logs it and follows its schedule.

    Attributes:
        penalty: The `Penalty`.
        kernels: List of `KernelView`, what it is on.
        skipped: List of `Skipped`, what it is not on and why.
    """

    def __init__(self, model: keras.Model, penalty: Penalty, layers: Layers) -> None:
        super().__init__()
        self.penalty = penalty
        self.kernels, self.skipped = choose(model, penalty, layers, "attach")
        self._priced = bind(penalty, self.kernels, model)
        self._live = Live(model)
        for bound, variable in self._priced:
            self._live.penalize(variable, bound)
        if model.compiled:
            self._live.rebuild()
        self.attached = True

    def priced(self) -> list[Priced]:
        return self._priced

    def value(self) -> float:
        """The penalty now, summed over its kernels: what it adds to the loss."""
        return sum(float(penalty(variable)) for penalty, variable in self._priced)

    def detach(self) -> None:
        """Takes the penalty off; what the user's own regularizers do is left as it was."""
        self._live.release()
        self.attached = False

    def set_model(self, model: keras.Model) -> None:
        if not self.attached:
            raise ValueError(
                f"This {type(self.penalty).__name__} was detached: attach it again, or leave it out of fit."
            )
        if model is not self._live.model:  # e.g. a Distiller around the model
            trained = {id(variable) for variable in model.trainable_variables}
            strangers = [view.name for view in self.kernels if id(view.variable) not in trained]
            if strangers:
                raise ValueError(
                    f"The {type(self.penalty).__name__} is attached to {self._live.model.name!r}, but this fit trains "
                    f"{model.name!r}, which does not have {', '.join(strangers)}."
                )
            Live(model).rebuild()
        super().set_model(model)


def attach(model: keras.Model, penalty: Any, layers: Layers = None) -> Attachment:
    """Adds a penalty to the loss of a built model, fresh or trained, compiled or not.

        loss = loss + sum over the chosen kernels W of penalty(W)

    Acts in every `fit` until `detach`; nothing has to be compiled again. It is not saved with the model.
    Pulls weights towards zero but makes no exact zeros: for those, use `Proximal`.

    Args:
        model: Built `keras.Model` whose `fit` is called (a `Distiller`, not its student).
        penalty: `Penalty`, or a name in `PENALTIES`. `BatchNormScale` goes on the gammas, the others on the
            kernels.
        layers: What to choose, see `kdopt.core.kernels.select`. Defaults to `None`: all.

    Returns: a handle for `detach`. Given to `fit` as a callback it logs `penalty/<name>` and, if the
        strength is a schedule, follows it.
    Raises: ValueError if the model is not built or nothing in it can carry the penalty.

    Example:
    ```
    handle = attach(model, GroupLasso(1e-3))
    model.fit(x, y, callbacks=[handle])
    detach(handle)
    ```
    """
    require_tensorflow("attach")
    return Attachment(model, PENALTIES.get(penalty), layers)


def detach(handle: Attachment) -> None:
    """Takes off what `attach` put on; a second call does nothing."""
    if not isinstance(handle, Attachment):
        raise TypeError(f"`handle` must be what attach returned; got {handle!r}.")
    handle.detach()
