"""Argument checks with one wording: what was expected, what was received."""

import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


def check_fraction(name: str, value: Any, *, one: bool = False) -> float:
    """Returns `value` as a float if it lies in [0, 1), or in [0, 1] with `one=True`.

    Raises: ValueError.
    """
    valid = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or not (0 <= value < 1 or (one and value == 1)):
        raise ValueError(f"`{name}` must be a fraction in [0, 1{']' if one else ')'}; got {value!r}.")
    return float(value)


def check_positive(name: str, value: Any, *, zero: bool = False) -> float:
    """Returns `value` as a float if it is a finite number > 0, or >= 0 with `zero=True`.

    Raises: ValueError.
    """
    valid = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not valid or not (value > 0 or (zero and value == 0)):
        raise ValueError(f"`{name}` must be a number {'>=' if zero else '>'} 0; got {value!r}.")
    return float(value)


def check_integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """Returns `value` as an int if it is an integer >= `minimum`.

    Raises: ValueError.
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an integer >= {minimum}; got {value!r}.")
    return int(value)


def check_one_of(name: str, value: Any, choices: Collection[str]) -> str:
    """Returns `value` if it is one of `choices`.

    Raises: ValueError that lists the choices and the closest one.
    """
    if isinstance(value, str) and value in choices:
        return value
    begun = [choice for choice in choices if value and choice.startswith(str(value))]
    close = begun or get_close_matches(str(value), list(choices), n=1)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.{hint}")


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False.

    Raises: TypeError.
    """
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False; got {value!r}.")
    return value
