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
from kdopt.pruning.channel_patterns import Channel, Head, InputChannel
from kdopt.pruning.iterative import iterative
from kdopt.pruning.logger import SparsityLogger
from kdopt.pruning.loop import pruning_loop
from kdopt.pruning.patterns import NM, PATTERNS, Block, Pattern, Unstructured
from kdopt.pruning.prune import prune
from kdopt.pruning.regrow import RegrowPruning
from kdopt.pruning.report import LayerPruning, PruningReport
from kdopt.pruning.robustness import corruptions, robustness
from kdopt.pruning.rounds import IterationReport, Round
from kdopt.pruning.sensitivity import Sensitivity, from_sensitivity, sensitivity
from kdopt.pruning.strip import strip
from kdopt.pruning.updating import UpdateMasks
from kdopt.pruning.wrapper import Prunable
from kdopt.pruning.zeros import KeptZeros, keep_zeros, masks_of

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
    "IterationReport",
    "KeptZeros",
    "Lamp",
    "LayerPruning",
    "Pattern",
    "PerLayer",
    "Prunable",
    "PruningReport",
    "RegrowPruning",
    "Round",
    "Sensitivity",
    "SparsityLogger",
    "Threshold",
    "Uniform",
    "Unstructured",
    "UpdateMasks",
    "corruptions",
    "from_sensitivity",
    "iterative",
    "keep_zeros",
    "masks_of",
    "prune",
    "pruning_loop",
    "robustness",
    "sensitivity",
    "strip",
]
