"""From what users write to the tensors it names."""

import re

import keras
import pytest
from keras import layers

from kdopt.distillation.taps import (
    check_taps,
    resolve,
    taps_from_config,
    taps_to_config,
    tensors_of,
)


def conv_net():
    inputs = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 255, name="scale")(inputs)
    for stage, width in enumerate((4, 8)):
        x = layers.ZeroPadding2D(1, name=f"pad_{stage}")(x)
        x = layers.Conv2D(width, 3, strides=2, name=f"conv_{stage}")(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        x = layers.Multiply(name=f"gated_{stage}")([x, layers.Conv2D(width, 1, activation="sigmoid")(gate)])
        x = layers.ReLU(name=f"relu_{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dropout(0.5, name="drop")(x)
    return keras.Model(inputs, layers.Dense(5, name="head")(x), name="net")


def found(taps, model=None, role="student"):
    model = conv_net() if model is None else model
    return [tap.name for tap in resolve(taps, tensors_of(model, model.input), model, role)]


def test_names_indices_and_patterns():
    assert found("conv_1") == ["conv_1"]
    assert found(-1) == ["head"]
    assert found(["relu_1", 3]) == ["relu_1", "conv_0"]
    assert found(re.compile(r"^relu_\d$")) == ["relu_0", "relu_1"]


def test_stages_are_the_last_layers_of_each_resolution_without_gates_and_padding():
    assert found("stages") == ["relu_0", "relu_1"]
    assert found("embedding") == ["drop"]


def test_stages_of_a_sequence_model():
    inputs = keras.Input((12, 6))
    x = layers.Conv1D(4, 3, strides=2, padding="same", name="a")(inputs)
    x = layers.Add(name="b")([x, layers.MultiHeadAttention(2, 2, name="mha")(x, x)])
    x = layers.MaxPooling1D(2, name="c")(x)
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D(name="mean")(x)))
    assert found("stages", model) == ["b", "c"]
    assert found("attention", model) == ["mha"]
    assert found("embedding", model) == ["mean"]


def test_nested_models_and_shared_layers():
    shared = layers.Dense(4, name="shared")
    block = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="inside")], name="block")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, shared(block(shared(inputs))))
    assert found("inside", model) == found("block/inside", model) == ["block/inside"]
    assert found("block", model) == ["block"]
    assert found("shared@1", model) == ["shared@1"]
    with pytest.raises(ValueError, match=r"fits 2 tensors .* 'shared@0', 'shared@1'"):
        found("shared", model)


def test_what_is_not_there_is_refused_with_what_is_close():
    with pytest.raises(ValueError, match=r"in the teacher 'net' for 'conv_2'. Did you mean 'conv_[01]'.*relu_1"):
        found("conv_2", role="teacher")
    with pytest.raises(ValueError, match="regular expression 'attention'"):
        found(re.compile("attention"))
    with pytest.raises(ValueError, match=r"Tap 99: the student 'net' has \d+ layers"):
        found(99)
    with pytest.raises(ValueError, match="the student 'net' calls no MultiHeadAttention"):
        found("attention")


@pytest.mark.parametrize(("taps", "error"), [(1.5, TypeError), (True, TypeError), ("", TypeError), ([], ValueError)])
def test_what_is_no_tap(taps, error):
    with pytest.raises(error, match="student_tap"):
        check_taps("student_tap", taps)


def test_config_round_trip():
    taps = ["a", 3, re.compile("b", re.IGNORECASE), "stages"]
    again = taps_from_config(taps_to_config(taps))
    assert again == taps
    assert again[2].flags == taps[2].flags


def test_looking_at_a_model_leaves_it_as_it_was():
    model = conv_net()
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    tensors_of(model, model.input)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert not any("call" in vars(layer) for layer in model.layers)
