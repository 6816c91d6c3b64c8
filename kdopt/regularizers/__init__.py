"""Penalties that make weights small, and proximal training that makes them zero."""

from kdopt.regularizers.attach import Attachment, attach, detach
from kdopt.regularizers.base import PENALTIES, Penalty
from kdopt.regularizers.elementwise import L1, L1L2, HoyerSquare, TransformedL1
from kdopt.regularizers.following import RegularizationLogger
from kdopt.regularizers.gates import L0
from kdopt.regularizers.grouping import Grouping
from kdopt.regularizers.groupwise import GroupLasso, SparseGroupLasso
from kdopt.regularizers.growing import GrowingRegularization
from kdopt.regularizers.norm_scale import BatchNormScale
from kdopt.regularizers.ordered import OrderedL1
from kdopt.regularizers.proximal import Proximal
from kdopt.regularizers.strip import strip_regularizers
from kdopt.regularizers.wrapper import SparseRegularized

__all__ = [
    "L0",
    "L1",
    "L1L2",
    "PENALTIES",
    "Attachment",
    "BatchNormScale",
    "GroupLasso",
    "Grouping",
    "GrowingRegularization",
    "HoyerSquare",
    "OrderedL1",
    "Penalty",
    "Proximal",
    "RegularizationLogger",
    "SparseGroupLasso",
    "SparseRegularized",
    "TransformedL1",
    "attach",
    "detach",
    "strip_regularizers",
]
