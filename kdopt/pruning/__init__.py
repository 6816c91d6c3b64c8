"""Weights that become zero while the model trains."""

from kdopt.pruning.allocation import (
    ALLOCATIONS,
    Allocation,
    ErdosRenyi,
    Global,
    Lamp,
    PerLayer,
    Threshold,
    Uniform,
)
from kdopt.pruning.callbacks import GradualPruning
from kdopt.pruning.patterns import NM, PATTERNS, Block, Channel, Head, InputChannel, Pattern, Unstructured
from kdopt.pruning.regrow import RegrowPruning

__all__ = [
    "ALLOCATIONS",
    "NM",
    "PATTERNS",
    "Allocation",
    "Block",
    "Channel",
    "ErdosRenyi",
    "Global",
    "GradualPruning",
    "Head",
    "InputChannel",
    "Lamp",
    "Pattern",
    "PerLayer",
    "RegrowPruning",
    "Threshold",
    "Uniform",
    "Unstructured",
]
