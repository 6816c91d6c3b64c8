"""One seed for Python, NumPy and Keras."""

import keras
from keras.src.backend.common import global_state

from kdopt.core.validation import check_integer


def set_seed(seed: int) -> None:
    """Seeds Python's `random`, NumPy and the Keras backend.

    Args:
        seed: Integer >= 0.
    """
    keras.utils.set_random_seed(check_integer("seed", seed, minimum=0))
    # Keras itself starts its generator anew from 3.15 on.
    global_state.set_global_attribute("global_seed_generator", None)
