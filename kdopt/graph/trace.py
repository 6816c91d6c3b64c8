"""The graph of a model: Functional, Sequential, or subclassed with a `call` that can be traced symbolically."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
from keras.src.models.functional import Functional


def graph_of(model: keras.Model) -> keras.Function:
    """The graph of calls behind a model.

    Args:
        model: Built Functional, Sequential or subclassed model.

    Returns: a `keras.Function`; that of a subclassed model is traced anew from the shapes it was built with.
    Raises: ValueError for a model that is not built, TypeError for one whose `call` cannot be traced.
    """
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        if model._functional is None:
            raise ValueError(
                f"The Sequential model {model.name!r} is not built: start it with `keras.Input(shape)`, or call "
                "`model.build((None, ...))` first."
            )
        return model._functional
    if is_graph(model):
        return model
    return _traced(model)


def is_graph(model: Any) -> bool:
    """Whether a model's calls are recorded: it need not be traced."""
    if isinstance(model, keras.Sequential) and type(model).call is keras.Sequential.call:
        return model._functional is not None
    return isinstance(model, Functional) and type(model).call is Functional.call


def makes_graphs(kind: Any) -> bool:
    """Whether a model class is called with inputs and outputs, as `keras.Model` is."""
    return issubclass(kind, Functional) and kind.__init__ is Functional.__init__ and kind.call is Functional.call


def nodes_of(graph: keras.Function) -> Iterator[Any]:
    """The recorded calls of a graph in an order in which they can run; without its inputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def infer(
    model: keras.Model, inputs: Any, around: Callable[[Any], AbstractContextManager[Any]] = nullcontext
) -> list[Any]:
    """Outputs of a model in inference, flat; lets a tensor go after its last use, where Keras keeps all to the end.

    Args:
        model: Built Functional, Sequential or traceable subclassed model.
        inputs: Structure of arrays.
        around: Function layer or operation -> context in which it is called.
    """
    graph = graph_of(model)
    calls = list(nodes_of(graph))
    uses = Counter(id(tensor) for call in calls for tensor in call.arguments.keras_tensors)
    uses.update(id(tensor) for tensor in graph.outputs)
    values = map(keras.ops.convert_to_tensor, keras.tree.flatten(inputs))
    held = {id(tensor): value for tensor, value in zip(graph.inputs, values, strict=True)}
    for call in calls:
        args, kwargs = call.arguments.fill_in(held)
        if "training" in getattr(call.operation, "_call_context_args", {}):
            kwargs["training"] = False
        with around(call.operation):
            outputs = keras.tree.flatten(call.operation(*args, **kwargs))
        held.update({id(tensor): value for tensor, value in zip(call.outputs, outputs, strict=True)})
        del args, kwargs, outputs
        for tensor in call.arguments.keras_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                del held[id(tensor)]
    return [held[id(tensor)] for tensor in graph.outputs]


def tensors_of(args: Any, kwargs: dict[str, Any], kind: type) -> list[Any]:
    """What a nested model is called on, leaves of class `kind`; not the masks, which Keras adds as arguments."""
    named = {name: value for name, value in kwargs.items() if name != "mask" and not name.endswith("_mask")}
    return [leaf for leaf in keras.tree.flatten((args, named)) if isinstance(leaf, kind)]


def _traced(model: keras.Model) -> keras.Function:
    if not model.built:
        raise ValueError(f"{model.name!r} has no weights yet: call it on data once, or `build(input_shape)` it.")
    inputs = _inputs(model)
    ends = [ends for layer in model._flatten_layers() for ends in (layer._inbound_nodes, layer._outbound_nodes)]
    lengths = [len(nodes) for nodes in ends]
    try:
        outputs = model.call(*inputs)
        return keras.Function(list(inputs) if len(inputs) > 1 else inputs[0], outputs)
    except Exception as error:  # whatever a foreign `call` does with a tensor that has no value
        raise TypeError(
            f"The `call` of {model.name!r} ({type(model).__name__}) cannot be traced ({type(error).__name__}: "
            f"{error}). Way out: write it with the functional API, `keras.Model(inputs, outputs)`; parts with their "
            "own `call` may stay as layers in it."
        ) from error
    finally:
        for nodes, length in zip(ends, lengths, strict=True):
            del nodes[length:]


def _inputs(model: keras.Model) -> list[Any]:
    """Symbolic inputs of the shapes a subclassed model was built with."""
    config = model.get_build_config() or {}
    shapes = list((config.get("shapes_dict") or {"input_shape": config.get("input_shape")}).values())
    if not shapes or any(shape is None for shape in shapes):
        raise TypeError(
            f"The input shapes of {model.name!r} ({type(model).__name__}) are not known: call it on a batch of data "
            "first. If that was done, its `call` cannot be traced: write it with the functional API."
        )
    made: list[Any] = [
        keras.tree.map_shape_structure(lambda shape: keras.KerasTensor((None, *shape[1:]), "float32"), shape)
        for shape in shapes
    ]
    return made
