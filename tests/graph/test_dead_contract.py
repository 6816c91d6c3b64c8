"""Every layer and operation with a channel rule says what it makes of a constant, or is named here."""

import keras
import numpy as np
import pytest
from dead_oracle import ZEROS, X, image_net, lossless
from keras import layers as L
from keras import ops

from kdopt.graph.channels.constant_rules import _RULES as CONSTANTS
from kdopt.graph.channels.rules import _RULES

RESIZE = ops.image.resize
CONSTANTS_STAY = {
    **{f"upsampling, {kind}": L.UpSampling2D(2, interpolation=kind) for kind in ("nearest", "bilinear", "lanczos3")},
    "resizing": lambda x: L.Resizing(4, 9)(x),
    "resizing, cropped": lambda x: L.Resizing(4, 9, "bicubic", True, antialias=True)(x),
    "center crop": lambda x: L.CenterCrop(4, 5)(x),
    "resize": lambda x: RESIZE(x, (5, 4)),
    "mean": lambda x: ops.mean(x, axis=1, keepdims=True),
    "mean over all places": lambda x: ops.mean(x, axis=(1, 2), keepdims=True),
    "largest, smallest": lambda x: ops.max(x, axis=1, keepdims=True) + ops.amin(x, axis=2, keepdims=True),
    "median": lambda x: ops.median(x, axis=1, keepdims=True),
    "mirrored": lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)), mode="reflect"),
    "max pool": lambda x: ops.max_pool(x, 3, 2, padding="same"),
    "average pool": lambda x: ops.average_pool(x, 3, 2, padding="same"),
    "average pooling": L.AveragePooling2D(3, 2, padding="same"),
    "slices": lambda x: x[:, 1:-1, ::2],
    "slice of channels": lambda x: x[..., ::-1][:, 1:, None][:, :, 0],
    "numbers": lambda x: (1 - (x * 0.5 + 1) / 2) ** 2,
    "number over": lambda x: 2 / (4 + x),
    "largest of numbers": lambda x: ops.minimum(0.3, ops.maximum(x, -0.1)),
    "clip": lambda x: ops.clip(x, -0.05, 0.5),
    "stack": lambda x: ops.mean(ops.stack([x, ops.copy(x)], axis=1), axis=1),
    "group": L.GroupNormalization(6),
}
ZEROS_STAY = {
    "padding": L.ZeroPadding2D(2),
    "pad": lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))),
    "resizing in a border": lambda x: L.Resizing(4, 9, "bicubic", pad_to_aspect_ratio=True)(x),
    "resize in a border": lambda x: RESIZE(x, (5, 4), pad_to_aspect_ratio=True),
    "unit norm over places": L.UnitNormalization(axis=(1, 2)),
    "sum": lambda x: ops.sum(x, axis=1, keepdims=True),
    "deviation": lambda x: ops.std(x, axis=1, keepdims=True) * ops.var(x, axis=2, keepdims=True),
    "product": lambda x: ops.prod(x[:, :2], axis=1, keepdims=True),
}
LOST = {
    "border of another number": lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0)), constant_values=0.5),
    "border of another number, resized": lambda x: RESIZE(x, (5, 4), pad_to_aspect_ratio=True, fill_value=0.5),
    "an array": lambda x: x + np.arange(6, dtype="float32"),
    "another tensor": lambda x: x * ops.mean(x + 1, axis=-1, keepdims=True),
}
READERS = {
    "conv": lambda x: L.Conv2D(5, 1, activation="relu", name="reader")(x),
    "dense": lambda x: L.Dense(5, activation="relu", name="reader")(L.Flatten()(x)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CONSTANTS_STAY)
def test_constants_stay(kind, bias, reader):
    middle = CONSTANTS_STAY[kind]
    model = image_net(fresh(middle), READERS[reader], bias)
    assert lossless(model, X)[1].dead == ZEROS


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ZEROS_STAY)
def test_zeros_stay_and_other_constants_do_not(kind, reader):
    for bias in (True, False):
        model = image_net(fresh(ZEROS_STAY[kind]), READERS[reader], bias)
        assert lossless(model, X)[1].dead == (0 if bias else ZEROS)


@pytest.mark.parametrize("kind", LOST)
def test_no_constant_is_left(kind):
    for bias in (True, False):
        assert lossless(image_net(fresh(LOST[kind]), READERS["conv"], bias), X)[1].dead == 0


def test_a_group_of_constants_is_constant():
    model = image_net(L.GroupNormalization(2, center=False), READERS["conv"], bias=False)
    assert lossless(model, X)[1].dead == 1
    model = image_net(L.GroupNormalization(3, center=False), READERS["conv"], bias=False)
    assert lossless(model, X)[1].dead == 1  # the second of these groups has a channel that is none


def test_zeros_in_a_unit_vector():
    model = image_net(L.UnitNormalization(), READERS["conv"], bias=False)
    with pytest.warns(UserWarning, match="with normalized channels gone"):
        assert lossless(model, X, allow_normalized_axes=True)[1].dead == ZEROS


def test_a_largest_that_begins_with_a_number():
    model = image_net(lambda x: ops.max(x, axis=1, keepdims=True, initial=0.5), READERS["conv"])
    assert lossless(model, X)[1].dead == 0


def fresh(layer):
    return type(layer).from_config(layer.get_config()) if isinstance(layer, keras.layers.Layer) else layer


MIXES = "Softmax LogSoftmax LayerNormalization RMSNormalization Normalization Dot Average Nanmedian Argmax Argmin"
ATTEND = "Attention AdditiveAttention Matmul Where Any All"
LOGIC = "Equal NotEqual Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalXor"
ARITHMETIC = "DivideNoNan Fmax Fmin FloorDivide Mod Arctan2 Hypot Logaddexp"


def test_every_rule_for_channels_has_one_for_constants():
    known = {kind.__name__ for kind in CONSTANTS} | set(f"{MIXES} {ATTEND} {LOGIC} {ARITHMETIC}".split())
    assert {kind.__name__ for kind in _RULES if kind.__module__.startswith("keras.")} - known == set()
