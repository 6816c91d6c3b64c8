"""Schedules: optimizer step -> sparsity.

Constant                                 from the first step on
OneShot, MultiStep                       at given moments
Linear, Polynomial, Exponential, Cosine  along a curve
Cyclic                                   again and again, with masks that come back
Epochs                                   a time in epochs instead of steps
plot                                     a picture of one or several
"""

from kdopt.schedules.base import Schedule
from kdopt.schedules.cyclic import Cyclic
from kdopt.schedules.figure import plot
from kdopt.schedules.jumps import Constant, MultiStep, OneShot
from kdopt.schedules.ramps import Cosine, Exponential, Linear, Polynomial
from kdopt.schedules.times import Epochs

__all__ = [
    "Constant",
    "Cosine",
    "Cyclic",
    "Epochs",
    "Exponential",
    "Linear",
    "MultiStep",
    "OneShot",
    "Polynomial",
    "Schedule",
    "plot",
]
