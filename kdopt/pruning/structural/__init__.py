"""Channels removed for good: smaller layers instead of masks."""

from kdopt.pruning.structural.apply import apply_plan, prune_channels
from kdopt.pruning.structural.figure import plot_channels
from kdopt.pruning.structural.plan import plan_channels
from kdopt.pruning.structural.record import ChannelPlan, LayerWidth, ReachedError
from kdopt.pruning.structural.widths import ROUND_TO, measure_round_to

__all__ = [
    "ROUND_TO",
    "ChannelPlan",
    "LayerWidth",
    "ReachedError",
    "apply_plan",
    "measure_round_to",
    "plan_channels",
    "plot_channels",
    "prune_channels",
]
