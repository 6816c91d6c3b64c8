"""Channel rules of attention and recurrent layers, and of the wrappers around layers."""

import dataclasses
import inspect
from typing import Any

import keras
import numpy as np

from kdopt.graph.channels.activations import is_elementwise
from kdopt.graph.channels.handlers_merge import concatenated, joined
from kdopt.graph.channels.handlers_weights import kernel_of
from kdopt.graph.channels.labels import Flow, Labels
from kdopt.graph.channels.rules import Call, channel_rule, extended, renewed, resize_rule, rule_of

L = keras.layers


def _arguments(layer: Any, call: Call) -> dict[str, Any]:
    return inspect.signature(layer.call).bind(*call.args, **call.kwargs).arguments


def _freeze_places(labels: Labels, layer: Any, flows: list[Flow]) -> None:
    """Freezes what varies along other axes than the last one."""
    for flow in flows:
        for axis in flow.labeled():
            if axis != len(flow.shape) - 1:
                labels.freeze(flow.labels[axis], f"{layer.name!r} attends over it")


@channel_rule(L.MultiHeadAttention)
def multi_head_attention(labels: Labels, layer: Any, call: Call) -> Any:
    """Whole heads go, from query, key, value and output projection together; and widths of the keys, of the values."""
    heads, query = _projections(labels, layer, call, groups=1)
    value, output = layer._value_dense, layer._output_dense
    _key_widths(labels, layer)
    widths = labels.makes(layer, kernel_of(value), 2)
    labels.follows(layer, value.bias, 1, widths)
    labels.reads(layer, kernel_of(output), 1, widths)
    if getattr(layer, "_use_gate", False):
        labels.unite(labels.makes(layer, kernel_of(layer._gate_dense), 2), widths)
        labels.follows(layer, layer._gate_dense.bias, 1, widths)
    return _attended(labels, layer, call, heads, query)


@resize_rule(L.MultiHeadAttention)
def _multi_head_attention(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    _, heads, width = size(kernel_of(layer._value_dense))
    changes = {"num_heads": heads, "value_dim": width, "key_dim": size(kernel_of(layer._key_dense))[2]}
    alone = layer.get_config()["output_shape"] or outputs[0][-1] != size(kernel_of(layer._query_dense))[0]
    if alone and len(kernel_of(layer._output_dense).shape) == 3:
        changes["output_shape"] = outputs[0][-1]  # otherwise it is as wide as the query
    return changes


@channel_rule(L.GroupQueryAttention)
def group_query_attention(labels: Labels, layer: Any, call: Call) -> Any:
    """A head of keys and values goes with all heads of queries that it serves; all inputs are equally wide.

    Keys and values are, too: a place goes from both.
    """
    arguments = _arguments(layer, call)
    wide = [arguments[name] for name in ("query", "value", "key") if arguments.get(name) is not None]
    joined(labels, layer.name, [Flow(flow.shape[-1:], flow.labels[-1:]) for flow in wide], wide[0].shape[-1:])
    heads, query = _projections(labels, layer, call, groups=layer.num_query_heads // layer.num_key_value_heads)
    widths = labels.makes(layer, kernel_of(layer._value_dense), 2)
    labels.follows(layer, layer._value_dense.bias, 1, widths)
    labels.reads(layer, kernel_of(layer._output_dense), 1, widths)
    if getattr(layer, "_gate_dense", None) is not None:
        labels.unite(labels.makes(layer, kernel_of(layer._gate_dense), 2), widths)
        labels.follows(layer, layer._gate_dense.bias, 1, widths)
    labels.unite(_key_widths(labels, layer), widths)
    return _attended(labels, layer, call, heads, query)


@resize_rule(L.GroupQueryAttention)
def _group_query_attention(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {
        "num_query_heads": size(kernel_of(layer._query_dense))[1],
        "num_key_value_heads": size(kernel_of(layer._key_dense))[1],
        "head_dim": size(kernel_of(layer._key_dense))[2],
    }


def _key_widths(labels: Labels, layer: Any) -> np.ndarray:
    """Places of the keys, which the queries read; products are divided by the square root of how many there are."""
    key, query = layer._key_dense, layer._query_dense
    widths = labels.makes(layer, kernel_of(key), 2)
    labels.follows(layer, key.bias, 1, widths)
    for variable, axis in ((kernel_of(query), 2), (query.bias, 1)):
        if variable is not None:
            labels.reads(layer, variable, axis, widths)
            labels.divides(variable, widths)
    return widths


def _projections(labels: Labels, layer: Any, call: Call, groups: int) -> tuple[np.ndarray, Flow]:
    """(identities of the query heads, query); each head of keys serves `groups` of them."""
    arguments = _arguments(layer, call)
    query, value = arguments["query"], arguments["value"]
    key = arguments["key"] if arguments.get("key") is not None else value
    _freeze_places(labels, layer, [query, key, value])
    heads = labels.makes(layer, kernel_of(layer._query_dense), 1)
    parts = [(layer._query_dense, query), (layer._key_dense, key), (layer._value_dense, value)]
    if getattr(layer, "_gate_dense", None) is not None:
        parts.append((layer._gate_dense, query))
    for part, source in parts:
        labels.reads(layer, kernel_of(part), 0, source.at(-1))
        own = labels.makes(layer, kernel_of(part), 1)
        if own is not heads:
            labels.unite(heads, own if own.size == heads.size else np.repeat(own, groups))
        labels.follows(layer, part.bias, 0, own)
    labels.reads(layer, kernel_of(layer._output_dense), 0, heads)
    return heads, query


def _attended(labels: Labels, layer: Any, call: Call, heads: np.ndarray, query: Flow) -> Any:
    output = layer._output_dense
    made = None
    if len(kernel_of(output).shape) == 3 and isinstance(layer, L.MultiHeadAttention):
        made = labels.makes(layer, kernel_of(output), 2)
        labels.follows(layer, output.bias, 0, made)
    elif isinstance(layer, L.GroupQueryAttention) and query.at(-1) is not None:  # it is as wide as its query
        made = labels.makes(layer, kernel_of(output), 2)
        labels.unite(made, query.at(-1))
        labels.follows(layer, output.bias, 0, made)
    result = query.given(call.shape, {-1: made})
    if len(call.shapes) == 1:
        return result
    if len(query.shape) > 3:
        labels.freeze(heads, f"{layer.name!r} shows its scores")
        return [result, Flow.plain(call.shapes[1])]
    return [result, Flow.plain(call.shapes[1]).given(call.shapes[1], {1: heads})]


@channel_rule(L.Attention, L.AdditiveAttention)
def attention(labels: Labels, layer: Any, call: Call) -> Any:
    inputs = call.args[0] if call.args else call.kwargs["inputs"]
    query, value = inputs[0], inputs[1]
    _freeze_places(labels, layer, list(inputs))
    for flow in (query, inputs[2] if len(inputs) > 2 else value):
        labels.freeze(flow.at(-1), f"{layer.name!r} sums products of it")
    result = query.given(call.shape, {-1: value.at(-1)})
    return result if len(call.shapes) == 1 else [result, Flow.plain(call.shapes[1])]


@channel_rule(L.SimpleRNN, L.LSTM, L.GRU)
def recurrent(labels: Labels, layer: Any, call: Call) -> Any:
    """A unit goes from all gates, from what the next step reads, and from the output together."""
    cell, arguments = layer.cell, _arguments(layer, call)
    sequence = arguments["sequences"]
    for axis in sequence.labeled():
        if axis != 2:
            labels.freeze(sequence.labels[axis], f"{layer.name!r} runs over it")
    labels.reads(layer, cell.kernel, 0, sequence.at(2))
    gates = labels.makes(layer, cell.kernel, 1)
    each = gates.reshape(-1, cell.units)
    labels.unite(each[1:], np.broadcast_to(each[0], each[1:].shape))
    labels.reads(layer, cell.recurrent_kernel, 0, each[0])
    labels.follows(layer, cell.recurrent_kernel, 1, gates)
    labels.follows(layer, cell.bias, -1, gates)
    functions = (cell.activation, getattr(cell, "recurrent_activation", cell.activation))
    if not all(is_elementwise(function) for function in functions):
        labels.freeze(each[0], f"an activation of {layer.name!r} is not known to act on every unit alone")
    for state in keras.tree.flatten(arguments.get("initial_state")):
        if isinstance(state, Flow) and state.at(-1) is not None:
            labels.unite(state.at(-1), each[0])
        elif state is not None:
            labels.freeze(each[0], f"{layer.name!r} begins with a state that has nothing to remove")
    flows = [sequence.given(shape, {-1: each[0]}) for shape in call.shapes]
    return flows if len(flows) > 1 else flows[0]


@resize_rule(L.SimpleRNN, L.LSTM, L.GRU)
def _recurrent(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    return {"units": size(layer.cell.recurrent_kernel)[0]}


@channel_rule(L.Bidirectional)
def bidirectional(labels: Labels, layer: Any, call: Call) -> Any:
    arguments = _arguments(layer, call)
    rule = rule_of(layer.forward_layer)
    other = rule_of(layer.backward_layer)
    if rule is None or rule is not other or arguments.get("initial_state") is not None or layer.return_state:
        return unknown(labels, layer, call)
    shapes = tuple((*shape[:-1], layer.forward_layer.cell.units) for shape in call.shapes)
    both = [
        rule(labels, one, Call(one, (arguments["sequences"],), {}, shapes[:1]))
        for one in (layer.forward_layer, layer.backward_layer)
    ]
    labels.unite(both[0].at(-1), both[1].at(-1))  # Keras takes it for granted that both are as wide
    if layer.merge_mode is None:
        return both
    if layer.merge_mode == "concat":
        return concatenated(labels, layer.name, both, -1, call.shape)
    return joined(labels, layer.name, both, call.shape)


@resize_rule(L.Bidirectional)
def _bidirectional(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    parts = {"layer": layer.forward_layer, "backward_layer": layer.backward_layer}
    config = layer.get_config()
    return {
        name: keras.saving.serialize_keras_object(renewed(part, size, outputs))
        for name, part in parts.items()
        if config.get(name) is not None
    }


@channel_rule(L.TimeDistributed)
def time_distributed(labels: Labels, layer: Any, call: Call) -> Any:
    rule = rule_of(layer.layer)
    if rule is None or len(call.flows) != 1:
        return unknown(labels, layer if rule else layer.layer, call)
    labels.freeze(call.x.labels[1], f"{layer.name!r} runs over it")
    inner = Flow((call.x.shape[0], *call.x.shape[2:]), (None, *call.x.labels[2:]))
    shape = (call.shape[0], *call.shape[2:])
    made = rule(labels, layer.layer, Call(layer.layer, (inner,), {}, (shape,)))
    return dataclasses.replace(made, shape=call.shape, labels=(None, None, *made.labels[1:]))


@resize_rule(L.TimeDistributed)
def _time_distributed(layer: Any, size: Any, outputs: Any) -> dict[str, Any]:
    inner = [(shape[0], *shape[2:]) for shape in outputs]
    return {"layer": keras.saving.serialize_keras_object(renewed(layer.layer, size, inner))}


def unknown(labels: Labels, layer: Any, call: Call) -> Any:
    """What nobody has a rule for: everything that goes in must stay, nothing that comes out can be removed."""
    kind = type(layer).__name__
    if extended(layer):
        reason = f"{layer.name!r} ({kind}) is quantized or has LoRA weights"
    else:
        reason = f"{layer.name!r} ({kind}) has no channel rule; give it one with @kdopt.graph.channel_rule({kind})"
    call.freeze(labels, reason)
    flows = [Flow.plain(shape) for shape in call.shapes]
    return flows if len(flows) > 1 else flows[0]
