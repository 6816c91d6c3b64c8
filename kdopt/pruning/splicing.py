"""Weights that go on learning while they are masked out, so that masks can take them back."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kdopt.core.live import Live


class Spliced:
    """The values that masked weights have behind their zeros.

        every optimizer update u:   dense <- dense + u(gradient at dense * mask);   w <- dense * mask

    In use, a weight is its own dense value; so only the others are kept here, and cost one tensor of the size of each
    Variable.

    Args:
        live: Attachments of the running `fit`.
        variables: What is masked.
        masks: Its masks, bool Variables.
        strategy: `tf.distribute` strategy of the model.

    Reference: Guo, Yao & Chen, "Dynamic Network Surgery for Efficient DNNs", NeurIPS 2016; Lin et al., "Dynamic
        Model Pruning with Feedback", ICLR 2020.
    """

    def __init__(
        self, live: Live, variables: Sequence[keras.Variable], masks: Sequence[keras.Variable], strategy: Any
    ) -> None:
        self._variables, self._masks = list(variables), list(masks)
        self._was_seen = False
        with strategy.scope():
            self._hidden = [
                keras.Variable(np.zeros(variable.shape), dtype=variable.dtype, trainable=False, name="hidden")
                for variable in variables
            ]
            self._seen = keras.Variable(False, dtype="bool", trainable=False, aggregation="only_first_replica")
        for variable, mask, hidden in zip(self._variables, self._masks, self._hidden, strict=True):
            live.after_update(variable, functools.partial(self._learn, mask, hidden))

    @property
    def seen(self) -> bool:
        """Whether an update of the optimizer has passed here."""
        self._was_seen = self._was_seen or bool(self._seen.numpy())
        return self._was_seen

    def reveal(self) -> None:
        """Makes the model dense for a moment: every masked weight gets its value."""
        for variable, mask, hidden in zip(self._variables, self._masks, self._hidden, strict=True):
            variable.assign(ops.where(mask, variable, hidden))

    def hide(self) -> None:
        """Keeps the values of the weights that are masked out; the zeros are for the caller to make."""
        for variable, mask, hidden in zip(self._variables, self._masks, self._hidden, strict=True):
            hidden.assign(ops.where(mask, ops.zeros_like(variable), variable))

    def values(self) -> list[np.ndarray]:
        """What is kept, for a backup: one float array a Variable, zero where the weight is in use."""
        return [ops.convert_to_numpy(hidden) for hidden in self._hidden]

    def restore(self, values: Sequence[np.ndarray]) -> None:
        """Puts `values` of an earlier run back."""
        for hidden, value in zip(self._hidden, values, strict=True):
            hidden.assign(value)

    def _learn(self, mask: keras.Variable, hidden: keras.Variable, value: Any, update: Any) -> Any:
        del update
        self._seen.assign(True)
        zeros = ops.zeros_like(value)
        # A masked weight was zero before this update, so its value now is the update alone.
        hidden.assign(ops.where(mask, zeros, ops.add(hidden, value)))
        return ops.where(mask, value, zeros)
