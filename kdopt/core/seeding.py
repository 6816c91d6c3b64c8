"""One seed for Python, NumPy and Keras."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
from keras.src.backend.common import global_state

from kdopt.core.validation import check_integer

_GENERATOR = "global_seed_generator"


def set_seed(seed: int) -> None:
    """Seeds Python's `random`, NumPy and the Keras backend.

    Args:
        seed: Integer >= 0.
    """
    keras.utils.set_random_seed(check_integer("seed", seed, minimum=0))
    # Keras itself starts its generator anew from 3.15 on.
    global_state.set_global_attribute(_GENERATOR, None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """A context in which new layers are initialized from `seed`; afterwards all generators are as they were.

    Keras draws the seeds of initializers, of dropout and of its own generator from Python's `random`. What an
    initializer draws from `tf.random` without a seed is not reached.

    Args:
        seed: Integer >= 0.
    """
    check_integer("seed", seed, minimum=0)
    before = random.getstate(), np.random.get_state(), global_state.get_global_attribute(_GENERATOR)
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        global_state.set_global_attribute(_GENERATOR, None)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        global_state.set_global_attribute(_GENERATOR, before[2])
