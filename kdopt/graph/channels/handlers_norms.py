"""Channel rules of normalizations: those over space and batch keep channels apart, those over channels do not."""

from typing import Any

import keras
import numpy as np
from keras.src.applications.convnext import LayerScale

from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, channel_rule, resize_rule

L = keras.layers


@channel_rule(L.BatchNormalization)
def batch_normalization(labels: Labels, layer: Any, call: Call) -> Flow:
    read = call.x.labels[layer.axis]
    variables = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
    if getattr(layer, "renorm", False):
        labels.freeze(read, f"{layer.name!r} uses renorm")
    for variable in variables:
        labels.follows(layer, variable, 0, read)
    return call.x


@channel_rule(L.PReLU)
def prelu(labels: Labels, layer: Any, call: Call) -> Flow:
    for axis in range(1, len(call.x.shape)):
        if axis not in (layer.shared_axes or ()):
            labels.follows(layer, layer.alpha, axis - 1, call.x.labels[axis])
    return call.x


@channel_rule(L.LayerNormalization, L.RMSNormalization, L.UnitNormalization)
def over_channels(labels: Labels, layer: Any, call: Call) -> Flow:
    """The mean of fewer channels is another mean: these must stay, unless that was asked for."""
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    axes = [axis % len(call.x.shape) for axis in axes]
    for axis in axes:
        label = call.x.labels[axis]
        if not labels.cut_normalized_axes:
            labels.freeze(label, f"{layer.name!r} normalizes over it")
        for name in ("gamma", "beta", "scale"):
            variable = getattr(layer, name, None)
            if isinstance(variable, keras.Variable):
                labels.follows(layer, variable, axes.index(axis), label)
    return call.x


@channel_rule(L.GroupNormalization)
def group_normalization(labels: Labels, layer: Any, call: Call) -> Flow:
    """Groups do not know of each other: the channels of one stay or go together. A single group is as a layer's."""
    axis = layer.axis
    label = call.x.labels[axis]
    for other in call.x.labeled():
        if other != axis % len(call.x.shape):
            labels.freeze(call.x.labels[other], f"{layer.name!r} normalizes over it")
    if layer.groups == 1 < call.x.shape[axis]:
        if not labels.cut_normalized_axes:
            labels.freeze(label, f"{layer.name!r} normalizes over it")
    elif label is not None:
        each = label.reshape(layer.groups, -1)
        labels.unite(each, np.broadcast_to(each[:, :1], each.shape))
    for variable in (layer.gamma, layer.beta):
        labels.follows(layer, variable, 0, label)
    return call.x


@resize_rule(L.GroupNormalization)
def _group_normalization(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    together = layer.input_spec.axes[layer.axis] // layer.groups
    return {"groups": 1 if layer.groups == 1 else outputs[0][layer.axis] // together}


@channel_rule(L.Normalization)
def normalization(labels: Labels, layer: Any, call: Call) -> Flow:
    call.freeze(labels, f"{layer.name!r} has statistics of its own for it")
    return call.x


@channel_rule(LayerScale)
def layer_scale(labels: Labels, layer: Any, call: Call) -> Flow:
    """ConvNeXt's weight for each channel."""
    labels.follows(layer, layer.gamma, 0, call.x.at(-1))
    return call.x


@resize_rule(LayerScale)
def _layer_scale(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"projection_dim": outputs[0][-1]}
