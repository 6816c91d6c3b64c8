"""The graph of a model: which channels belong together, and the model made again with fewer of them."""

from kdopt.graph.channels.groups import ChannelGraph, ChannelGroup, Member, channel_groups, trace_channels
from kdopt.graph.channels.labels import Flow, Labels, Slot
from kdopt.graph.channels.rules import Call, channel_rule, resize_rule
from kdopt.graph.rebuild import without

__all__ = [
    "Call",
    "ChannelGraph",
    "ChannelGroup",
    "Flow",
    "Labels",
    "Member",
    "Slot",
    "channel_groups",
    "channel_rule",
    "resize_rule",
    "trace_channels",
    "without",
]
