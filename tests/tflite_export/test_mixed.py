"""Layers with another precision than the rest of their file."""

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.errors import ConversionError
from tflite_export.tflite import records

layers = keras.layers
X = np.random.default_rng(0).random((48, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def net():
    keras.utils.set_random_seed(6)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(image)
    x = layers.BatchNormalization(name="norm")(layers.DepthwiseConv2D(3, padding="same", name="spread")(x))
    inner = keras.Input((10, 10, 8))
    block = keras.Model(inner, layers.Conv2D(8, 1, name="inside")(inner), name="block")
    x = layers.Add(name="sum")([layers.ReLU(name="relu")(x), block(x)])
    x = layers.Flatten(name="flat")(layers.Dropout(0.5, name="drop")(x))
    return keras.Model(image, layers.Dense(6, name="head")(layers.Dense(32, activation="relu", name="wide")(x)))


def kinds(file, model):
    names = frozenset(layer.name for layer in model._flatten_layers(include_self=False))
    found = records.ops(file.content, names, scopes_numbered=True)
    return {op.layer: "float" if op.is_float else op.inputs[1].dtype if len(op.inputs) > 1 else "int8" for op in found}


@pytest.mark.parametrize(
    ("precision", "chosen", "left"),
    [
        ("int8", "head", "head"),
        ("uint8", "head", "head"),
        ("int8_float_io", "stem", "stem"),
        ("uint8", "stem", "stem"),
        ("int8", "spread", "norm"),  # fused: named after the last of depthwise convolution, normalization and ReLU
        ("int8", "norm", "norm"),
        ("int8", "block/inside", "block/inside"),
        ("int8_float_io", "inside", "block/inside"),
        ("int8", "sum", "sum"),
    ],
)
def test_a_layer_stays_float_and_nothing_else(net, precision, chosen, left):
    file = tflite_export.convert(net, precision, X, layers={chosen: "float32"})
    found = kinds(file, net)
    assert [layer for layer, kind in found.items() if kind == "float"] == [left]
    assert tflite_export.verify(net, file, X).passed


def test_float_layers_bring_the_accuracy_back(net):
    """A layer whose outputs differ by a factor of a thousand from channel to channel."""
    wild = keras.models.clone_model(net)
    wild.set_weights(net.get_weights())
    scale = np.logspace(0, 3, 32)
    wild.get_layer("wide").kernel.assign(net.get_layer("wide").kernel * scale)
    wild.get_layer("head").kernel.assign(net.get_layer("head").kernel / scale[:, None])
    plain = tflite_export.verify(wild, tflite_export.convert(wild, "int8", X), X)
    mixed = tflite_export.convert(wild, "int8", X, layers={"wide": "float32", "head": "float32"})
    assert tflite_export.verify(wild, mixed, X).rmse < 0.5 * plain.rmse


def test_dense_layers_of_four_bits_by_name(net):
    found = kinds(tflite_export.convert(net, "int8", X, layers={"wide": "int4"}), net)
    assert (found["wide"], found["head"], found["stem"]) == ("int4", "int8", "int8")
    found = kinds(tflite_export.convert(net, "int8_int4", X, layers={"head": "int8"}), net)
    assert (found["wide"], found["head"]) == ("int4", "int8")
    mixed = {"head": "float32", "wide": "int4", "stem": "float32"}
    file = tflite_export.convert(net, "int8_float_io", X, layers=mixed)
    found = kinds(file, net)
    assert (found["wide"], found["head"], found["stem"], found["norm"]) == ("int4", "float", "float", "int8")
    assert tflite_export.verify(net, file, X, 0.15).passed


def test_what_is_refused(net):
    bad = [
        ({"heads": "float32"}, "int8", ValueError, "names 'heads', which is no layer.*Did you mean 'head'"),
        ({"head": "int2"}, "int8", ValueError, "of 'head' must be one of 'float32', 'int8', 'int4'; got 'int2'"),
        ({"head": "float32"}, "float16", ValueError, "goes with 'int8', 'uint8'.*got precision 'float16'"),
        ({"drop": "float32"}, "int8", ConversionError, "'drop' .* makes no operation of its own"),
        ({"stem": "int4"}, "int8", ConversionError, "'stem' is no dense layer"),
        ({"drop": "int4"}, "int8", ConversionError, "'drop' .* makes no operation of its own"),
        (["head"], "int8", TypeError, "must be a dict layer name -> precision; got list"),
    ]
    for chosen, precision, error, message in bad:
        with pytest.raises(error, match=message):
            tflite_export.convert(net, precision, X, layers=chosen)
    with pytest.raises(ValueError, match="for one source"):
        tflite_export.convert({"a": net}, "float32", layers={"head": "float32"})
    assert tflite_export.convert(net, "int8", X, layers={}).precision == "int8"
