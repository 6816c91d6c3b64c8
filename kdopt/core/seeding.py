"""One seed for Python, NumPy and Keras."""

import keras

from kdopt.core.validation import check_integer


def set_seed(seed: int) -> None:
    """Seeds Python's `random`, NumPy and the Keras backend.

    Args:
        seed: Integer >= 0.
    """
    keras.utils.set_random_seed(check_integer("seed", seed, minimum=0))
