"""Channels removed for good: smaller layers instead of masks."""

from kdopt.pruning.structural.apply import apply_plan, prune_channels
from kdopt.pruning.structural.figure import plot_channels
from kdopt.pruning.structural.plan import plan_channels
from kdopt.pruning.structural.record import ChannelPlan, LayerWidth, ReachedError

__all__ = [
    "ChannelPlan",
    "LayerWidth",
    "ReachedError",
    "apply_plan",
    "plan_channels",
    "plot_channels",
    "prune_channels",
]
