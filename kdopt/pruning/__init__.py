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
from kdopt.pruning.budget import Budget
from kdopt.pruning.callbacks import GradualPruning
from kdopt.pruning.logger import SparsityLogger
from kdopt.pruning.patterns import NM, PATTERNS, Block, Channel, Head, InputChannel, Pattern, Unstructured
from kdopt.pruning.prune import prune
from kdopt.pruning.regrow import RegrowPruning
from kdopt.pruning.report import LayerPruning, PruningReport
from kdopt.pruning.robustness import corruptions, robustness

__all__ = [
    "ALLOCATIONS",
    "NM",
    "PATTERNS",
    "Allocation",
    "Block",
    "Budget",
    "Channel",
    "ErdosRenyi",
    "Global",
    "GradualPruning",
    "Head",
    "InputChannel",
    "Lamp",
    "LayerPruning",
    "Pattern",
    "PerLayer",
    "PruningReport",
    "RegrowPruning",
    "SparsityLogger",
    "Threshold",
    "Uniform",
    "Unstructured",
    "corruptions",
    "prune",
    "robustness",
]
