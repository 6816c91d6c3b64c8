"""A smaller model must be the old one with the removed channels' places in their readers' kernels set to zero."""

import keras
import numpy as np

from kdopt.core.copying import copy_model
from kdopt.graph import trace_channels, without
from kdopt.graph.trace import graph_of


def disturbed(model, seed=0):
    """Biases, scales and statistics that matter, in place."""
    rng = np.random.default_rng(seed)
    # ConvNeXt gives its scales no name; they begin at 1e-6, which would hide all that its blocks do.
    scales = {id(getattr(layer, "gamma", None)) for layer in model._flatten_layers()}
    for weight in model.weights:
        if weight.name in ("moving_mean", "beta", "bias", "alpha"):
            weight.assign(rng.normal(size=weight.shape) * 0.1)
        if weight.name == "moving_variance" or id(weight) in scales:
            weight.assign(rng.uniform(0.5, 1.5, size=weight.shape))
    return model


def chosen(graph, share=0.5, seed=0):
    """About `share` of the channels that may go, drawn; every Variable keeps one."""
    slots, frozen = graph.labels.slots(), graph.labels.frozen()
    roots = np.unique(np.concatenate([graph.labels.roots(slot.labels) for slot in slots]))
    free = np.array([root for root in roots.tolist() if root not in frozen], int)
    removed = np.random.default_rng(seed).permutation(free)[: round(share * free.size)]
    for slot in slots:
        own = graph.labels.roots(slot.labels)
        if np.isin(own, removed).all():
            removed = removed[removed != own[0]]
    return removed


def with_zeroed_readers(model, graph, removed):
    """The oracle, made without a look at any axis that is not an input axis of a kernel."""
    oracle, places = copy_model(model), {id(weight): i for i, weight in enumerate(model.weights)}
    for slot in graph.labels.slots():
        gone = np.isin(graph.labels.roots(slot.labels), removed)
        if slot.role == "reads" and gone.any():
            weight = oracle.weights[places[id(slot.variable)]]
            value = np.moveaxis(weight.numpy(), slot.axis, 0)
            value[gone] = 0
            weight.assign(np.moveaxis(value, 0, slot.axis))
    return oracle


def outputs_with_zeroed_readers(model, graph, removed, x):
    """The same without a copy, for large models and those that cannot be copied: the kernels are put back after."""
    kept = []
    try:
        for slot in graph.labels.slots():
            gone = np.isin(graph.labels.roots(slot.labels), removed)
            if slot.role == "reads" and gone.any():
                kept.append((slot.variable, slot.variable.numpy()))
                value = np.moveaxis(slot.variable.numpy(), slot.axis, 0)
                value[gone] = 0
                slot.variable.assign(np.moveaxis(value, 0, slot.axis))
        return model(x)
    finally:
        for variable, value in reversed(kept):
            variable.assign(value)


def inputs_of(model, seed=1, size=12, samples=2):
    """Random inputs in the structure of the model's; images where it rescales them itself."""
    rng = np.random.default_rng(seed)
    images = any(isinstance(layer, keras.layers.Rescaling) for layer in model._flatten_layers())

    def draw(tensor):
        shape = (samples, *(side or size for side in tensor.shape[1:]))
        if "int" in str(tensor.dtype):
            return rng.integers(0, 5, shape).astype(str(tensor.dtype))
        return (rng.uniform(0, 255, shape) if images else rng.normal(size=shape)).astype("float32")

    return keras.tree.map_structure(draw, graph_of(model)._inputs_struct)


def difference(one, other, x):
    """Largest difference of all outputs, as a share of the largest output."""
    return gap(one(x), other(x))


def gap(expected, found):
    """The same of outputs."""
    pairs = zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True)
    arrays = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in arrays)


def check(model, share=0.5, seed=0, x=None):
    """Shrinks a model at random and compares; returns (smaller model, channels removed)."""
    disturbed(model)
    before = [weight.numpy() for weight in model.weights]
    graph = trace_channels(model)
    removed = chosen(graph, share, seed)
    small = without(model, graph, removed)
    assert difference(with_zeroed_readers(model, graph, removed), small, inputs_of(model) if x is None else x) < 2e-6
    for one, other in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    return small, removed
