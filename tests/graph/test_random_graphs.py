"""Any graph of layers with rules: what is left of it equals the oracle, or it is said why nothing may go."""

from collections import Counter, defaultdict

import keras
import numpy as np
import pytest
import random_layers  # noqa: F401  the moves list themselves
import random_ops  # noqa: F401
import random_sequences  # noqa: F401
import tensorflow as tf
from channel_oracle import chosen, disturbed, inputs_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras.src.applications.convnext import LayerScale
from random_graphs import Draws, random_model

from kdopt.graph import trace_channels, without
from kdopt.graph.channels.dead import dead_channels
from kdopt.graph.channels.rules import _RESIZES, _RULES
from kdopt.graph.trace import graph_of, nodes_of
from kdopt.pruning.structural import ReachedError, apply_plan, plan_channels
from kdopt.pruning.structural.apply import _identities

TOLERANCE = 2e-5
BYTES = 300
WITHOUT_WEIGHTS = {"Reshape", "TimeDistributed", "Bidirectional"}  # of their own
SETTINGS = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(autouse=True)
def _plain_addition(monkeypatch):
    """Keras 3.15 on TensorFlow takes (n, 1) added to (..., n, m, 1) for a bias along axis 1, if that has n places."""
    backend = keras.src.backend.numpy
    monkeypatch.setattr(backend, "add", lambda one, other: backend.subtract(one, backend.negative(other)))


def outputs(model, x):
    return [np.asarray(y, "float64") for y in keras.tree.flatten(model(x, training=False))]


def largest_difference(expected, got):
    """As a share of the largest value of each output."""
    assert [y.shape for y in expected] == [y.shape for y in got]
    pairs = zip(expected, got, strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 0.1)) for a, b in pairs)


def outputs_of_oracle(model, graph, removed, x):
    """Of the model itself while its readers' kernels have zeros for what is removed."""
    before = model.get_weights()
    for slot in graph.labels.slots():
        gone = np.isin(graph.labels.roots(slot.labels), removed)
        if slot.role == "reads" and gone.any():
            value = np.moveaxis(slot.variable.numpy(), slot.axis, 0)
            value[gone] = 0
            slot.variable.assign(np.moveaxis(value, 0, slot.axis))
    made = outputs(model, x)
    model.set_weights(before)
    return made


def widths_left(model, graph, removed):
    """The shapes that the weights must have."""
    shapes = {id(weight): list(weight.shape) for weight in model.weights}
    for slot in graph.labels.slots():
        gone = np.isin(graph.labels.roots(slot.labels), removed)
        shapes[id(slot.variable)][slot.axis] -= int(gone.sum())
    return [tuple(shapes[id(weight)]) for weight in model.weights]


def kinds_of(graph):
    """Names of all layer and operation classes, of nested models and wrapped layers, too."""
    found = set()
    for node in nodes_of(graph):
        operation = node.operation
        found.add(type(operation).__name__)
        if isinstance(operation, keras.Model):
            found |= kinds_of(graph_of(operation))
    return found


def kinds_that_shrank(graph, removed):
    """Names of the layer classes that lost a part of a Variable."""
    slots = graph.labels.slots()
    return {type(s.layer).__name__ for s in slots if np.isin(graph.labels.roots(s.labels), removed).any()}


def check_plan(model, share, x, seen):
    """The same by a criterion, or a refusal that says why."""
    try:
        plan = plan_channels(model, channels=0.9 * share, criterion="l2", scope="layer" if share > 0.5 else "global")
    except ValueError as error:
        seen["refused"] += 1
        refused = error
    else:
        refused = None
    if refused:
        assert isinstance(refused, ReachedError) or str(refused).startswith("No channel of")
        return
    small = apply_plan(model, plan)
    graph = trace_channels(model)
    removed = _identities(model, plan, graph)
    assert removed.size
    removed = np.setdiff1d(removed, dead_channels(model, graph).roots)  # `check_dead` is about these
    assert largest_difference(outputs_of_oracle(model, graph, removed, x), outputs(small, x)) < TOLERANCE
    assert sum(weight.shape.num_elements() for weight in small.weights) == plan.parameters[1]
    seen["planned"] += 1


def may_go(graph):
    """Whether any channel may."""
    made = [graph.labels.roots(slot.labels) for slot in graph.labels.slots() if slot.role == "makes"]
    return bool(set(np.concatenate(made).tolist()) - set(graph.labels.frozen()))


def check_dead(model, graph, x, seed, seen):
    """Kernels with zeros, of some channels or of whole layers: what is dead goes, and nothing is lost."""
    before, rng = model.get_weights(), np.random.default_rng(seed)
    roots = np.unique(np.concatenate([graph.labels.roots(s.labels) for s in graph.labels.slots() if s.role == "makes"]))
    zero = roots[rng.random(roots.size) < 0.5]
    for slot in graph.labels.slots():
        own = graph.labels.roots(slot.labels)
        if slot.role == "makes" and (rng.random() < 0.3 or np.isin(own, zero).any()):
            value = np.moveaxis(slot.variable.numpy(), slot.axis, 0)
            value[np.isin(own, zero) if rng.random() < 0.5 else slice(None)] = 0
            slot.variable.assign(np.moveaxis(value, 0, slot.axis))
    expected = outputs(model, x)
    if may_go(graph):
        plan = plan_channels(model, criterion="mask", minimum=0)
        small = apply_plan(model, plan, check=False)
        assert largest_difference(expected, outputs(small, x)) < TOLERANCE
        assert sum(weight.shape.num_elements() for weight in small.weights) == plan.parameters[1]
        seen["dead"] += plan.dead > 0
        seen["vanished"] += any(layer.after == 0 for layer in plan.layers)
    model.set_weights(before)


def check_example(draws, folder, seen):
    """One graph, one random choice of channels."""
    keras.backend.clear_session()
    share, seed = draws.one_of(0.5, 0.2, 0.8, 1.0), draws.number(0, 99)
    save, plan = draws.maybe(8), draws.maybe(6)
    model = disturbed(random_model(draws))
    before, x = model.get_weights(), inputs_of(model, size=6)
    seen["examples"] += 1
    try:
        whole = outputs(model, x)
    except (ValueError, tf.errors.InvalidArgumentError):  # open sizes that do not fit, found only now
        seen["illegal"] += 1
        return
    seen["kinds"].update(kinds_of(graph_of(model)))
    graph = trace_channels(model)
    assert all(isinstance(reason, str) and reason for reason in graph.labels.frozen().values())
    if not graph.labels.slots():
        return
    removed = chosen(graph, share, seed)
    expected = outputs_of_oracle(model, graph, removed, x)
    small = without(model, graph, removed)
    assert [tuple(weight.shape) for weight in small.weights] == widths_left(model, graph, removed)
    assert largest_difference(expected, outputs(small, x)) < TOLERANCE
    for one, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    if not removed.size:
        return
    seen["removed"] += 1
    seen["mattered"] += largest_difference(whole, expected) > 100 * TOLERANCE
    seen["kinds with removal"].update(kinds_of(graph_of(model)))
    seen["kinds that shrank"].update(kinds_that_shrank(graph, removed))
    if plan:
        check_plan(model, share, x, seen)
    check_dead(model, graph, x, seed, seen)
    if save:
        seen["saved"] += 1
        small.save(folder / "small.keras")
        assert largest_difference(outputs(small, x), outputs(keras.models.load_model(folder / "small.keras"), x)) == 0


def check_examples(count, folder):
    """Checks `count` graphs and returns what occurred in them."""
    seen = defaultdict(int) | {name: Counter() for name in ("kinds", "kinds with removal", "kinds that shrank")}

    @settings(max_examples=count, **SETTINGS)
    @given(st.binary(min_size=BYTES, max_size=BYTES))
    def check(stream):
        check_example(Draws(stream), folder, seen)

    check()
    print({name: number for name, number in seen.items() if isinstance(number, int)})
    for name in ("kinds with removal", "kinds that shrank"):
        print(name, dict(seen[name].most_common()))
    assert seen["removed"] > 0.55 * seen["examples"]
    assert seen["mattered"] > 0.9 * seen["removed"]
    assert seen["illegal"] < 0.05 * seen["examples"]
    assert seen["dead"] > 0.2 * seen["removed"]
    return seen


def test_a_few_random_graphs(tmp_path):
    seen = check_examples(12, tmp_path)
    assert len(seen["kinds with removal"]) >= 25


@pytest.mark.slow
def test_a_thousand_random_graphs(tmp_path):
    """Every layer that has a rule, and every rule for operations, is in a graph that lost channels."""
    seen = check_examples(1000, tmp_path)
    found = set(seen["kinds with removal"])
    layers = {kind.__name__ for kind in _RULES if issubclass(kind, keras.layers.Layer) and kind is not LayerScale}
    assert layers - found == set()
    rules = {rule: {kind.__name__ for kind in _RULES if _RULES[kind] is rule} for rule in set(_RULES.values())}
    assert [rule.__name__ for rule, kinds in rules.items() if not kinds & (found | {"LayerScale"})] == []
    sized = {kind.__name__ for kind in _RESIZES if issubclass(kind, keras.layers.Layer)} & found
    assert sized - set(seen["kinds that shrank"]) <= WITHOUT_WEIGHTS
    assert seen["vanished"] > 20
    assert seen["saved"] > 50
    assert seen["planned"] > 50
