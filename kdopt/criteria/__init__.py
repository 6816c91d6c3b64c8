"""Which weights matter."""

from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.criteria.weight import L1

__all__ = ["CRITERIA", "L1", "Criterion"]
