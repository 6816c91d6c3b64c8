"""What a net at half its multiply-accumulates must still be and do: shared by the tests and the printed matrix."""

from dataclasses import dataclass

import keras
import numpy as np
from channel_oracle import gap, inputs_of, outputs_with_zeroed_readers

from kdopt.core import measure
from kdopt.graph import trace_channels
from kdopt.graph.trace import graph_of
from kdopt.pruning.structural import ChannelPlan, apply_plan, plan_channels
from kdopt.pruning.structural.apply import _identities


@dataclass(frozen=True)
class Halved:
    """A smaller model, how far it is from the old one in which nobody reads the removed channels, and how far that is
    from the old one as it was: an oracle that changes nothing would prove nothing."""

    small: keras.Model
    plan: ChannelPlan
    macs: tuple[int, int]
    difference: float
    changed: float


def halved(model):
    """Half the multiply-accumulates, as `measure` counts them in both models."""
    shapes = [tuple(tensor.shape[1:]) for tensor in graph_of(model).inputs]
    shape = None if getattr(model, "inputs", None) else shapes[0]  # a subclassed model does not know it
    plan = plan_channels(model, macs=0.5, input_shape=shape)
    small = apply_plan(model, plan, check=False)
    graph, x = trace_channels(model), inputs_of(model)
    expected = outputs_with_zeroed_readers(model, graph, _identities(model, plan, graph), x)
    macs = measure.macs(model, shape), measure.macs(small)
    return Halved(small, plan, macs, gap(expected, small(x)), gap(model(x), expected))


def train_step(model, samples=4, eagerly=False):
    """One update of `fit` on random targets; returns the loss and the kernels that it left as they were."""
    x = inputs_of(model, samples=samples)
    targets = keras.tree.map_structure(lambda y: np.random.default_rng(2).normal(size=y.shape), model(x))
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False, run_eagerly=eagerly)
    before = [(weight, weight.numpy()) for weight in model.trainable_weights if "kernel" in weight.name]
    loss = model.fit(x, targets, batch_size=samples, epochs=1, verbose=0).history["loss"][0]
    return loss, [weight.path for weight, value in before if np.array_equal(weight.numpy(), value)]


def exported(model, precision, samples=32):
    """The verification of the file, and its largest error as a share of the largest output.

    Raises: `tflite_export.ConversionError` where the exporter refuses.
    """
    import tflite_export

    data = [dict_of(model, inputs_of(model, seed=seed, samples=samples)) for seed in (3, 4)]
    file = tflite_export.convert(model, precision, data[0] if precision == "int8" else None)
    found = tflite_export.verify(model, file, data[1])
    outputs = keras.tree.flatten(model(keras.tree.pack_sequence_as(model._inputs_struct, list(data[1].values()))))
    peaks = [float(np.abs(np.asarray(output)).max()) for output in outputs]
    return found, max(check.max_abs_error / peak for check, peak in zip(found.outputs, peaks, strict=True))


def dict_of(model, x):
    """Arrays by the names that the exporter gives the inputs, in its order."""
    from tflite_export.sources.resolve import resolve

    return dict(zip(resolve(model).inputs, keras.tree.flatten(x), strict=True))
