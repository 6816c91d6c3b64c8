"""Nets as people build them, narrow: what the shrinking must know besides keras.applications."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
from channel_oracle import disturbed, inputs_of
from keras import layers as L
from keras import ops

from kdopt.core.norms import reestimate_batch_norm


def unet():
    """Ronneberger et al. 2015: two convolutions a level, skips across, transposed convolutions up."""

    def double(h, width):
        for _ in range(2):
            h = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, padding="same", use_bias=False)(h)))
        return h

    x, skips = keras.Input((32, 32, 3)), []
    h = x
    for width in (8, 16, 32):
        skips.append(double(h, width))
        h = L.MaxPooling2D()(skips[-1])
    h = L.SpatialDropout2D(0.2)(double(h, 64))
    for width, skip in zip((32, 16, 8), reversed(skips), strict=True):
        h = double(L.Concatenate()([skip, L.Conv2DTranspose(width, 2, strides=2)(h)]), width)
    return keras.Model(x, L.Conv2D(2, 1, name="mask")(h), name="unet")


def yolo(classes=4, bins=8):
    """Focus stem, C3 and C2f blocks, SPPF, path aggregation, decoupled heads with distributed boxes (YOLOv5 / v8)."""

    def conv(h, width, size=1, strides=1):
        h = L.Conv2D(width, size, strides, padding="same", use_bias=False)(h)
        return L.Activation("silu")(L.BatchNormalization()(h))

    def bottleneck(h, width, add=True):
        made = conv(conv(h, width), width, 3)
        return L.Add()([h, made]) if add else made

    def c3(h, width, repeats):
        one, other = conv(h, width // 2), conv(h, width // 2)
        for _ in range(repeats):
            one = bottleneck(one, width // 2)
        return conv(L.Concatenate()([one, other]), width)

    def c2f(h, width):
        parts = list(ops.split(conv(h, width), 2, axis=-1))
        for _ in range(2):
            parts.append(bottleneck(parts[-1], width // 2, add=False))
        return conv(L.Concatenate()(parts), width)

    def sppf(h, width):
        parts = [conv(h, width // 2)]
        for _ in range(3):
            parts.append(L.MaxPooling2D(5, 1, padding="same")(parts[-1]))
        return conv(L.Concatenate()(parts), width)

    def head(h, width):
        boxes = L.Reshape((-1, 4, bins))(L.Conv2D(4 * bins, 1)(conv(h, width, 3)))
        boxes = ops.sum(ops.softmax(boxes, axis=-1) * np.arange(bins, dtype="float32"), axis=-1)
        scores = L.Reshape((-1, classes))(L.Conv2D(classes, 1, activation="sigmoid")(conv(h, width, 3)))
        return L.Concatenate()([boxes, scores])

    x = keras.Input((64, 64, 3))
    corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    h = conv(ops.concatenate(corners, axis=-1), 8, 3)
    p3 = c3(conv(c3(conv(h, 16, 3, 2), 16, 1), 32, 3, 2), 32, 2)
    p4 = c3(conv(p3, 48, 3, 2), 48, 2)
    p5 = sppf(c3(conv(p4, 64, 3, 2), 64, 1), 64)
    n4 = c2f(L.Concatenate()([L.UpSampling2D()(p5), p4]), 48)
    n3 = c2f(L.Concatenate()([L.UpSampling2D()(n4), p3]), 32)
    n4 = c2f(L.Concatenate()([conv(n3, 32, 3, 2), n4]), 48)
    n5 = c2f(L.Concatenate()([conv(n4, 48, 3, 2), p5]), 64)
    return keras.Model(x, L.Concatenate(axis=1)([head(n, 24) for n in (n3, n4, n5)]), name="yolo")


@keras.saving.register_keras_serializable("architectures")
class Positions(L.Layer):
    """Adds a weight for each position, after a class token if wanted. Nobody has given it a channel rule."""

    def __init__(self, token=False, **arguments):
        super().__init__(**arguments)
        self.token = token

    def build(self, shape):
        _, length, width = shape
        self.positions = self.add_weight(shape=(1, length + self.token, width), name="positions")
        self.first = self.add_weight(shape=(1, 1, width), name="first") if self.token else None

    def call(self, x):
        if self.first is not None:
            x = ops.concatenate([ops.zeros_like(x[:, :1]) + self.first, x], axis=1)
        return x + self.positions

    def get_config(self):
        return {**super().get_config(), "token": self.token}


def vision_transformer(width=48, heads=4, blocks=4):
    """Dosovitskiy et al. 2021: patches, a class token, pre-normalized blocks."""
    x = keras.Input((32, 32, 3))
    h = L.Reshape((64, width))(L.Conv2D(width, 4, 4, name="patches")(L.Rescaling(1 / 255)(x)))
    h = L.Dropout(0.1)(Positions(token=True)(h))
    for _ in range(blocks):
        n = L.LayerNormalization(epsilon=1e-6)(h)
        h = L.Add()([h, L.MultiHeadAttention(heads, width // heads, dropout=0.1)(n, n)])
        n = L.Dense(3 * width, activation="gelu")(L.LayerNormalization(epsilon=1e-6)(h))
        h = L.Add()([h, L.Dense(width)(n)])
    return keras.Model(x, L.Dense(10)(L.LayerNormalization(epsilon=1e-6)(h)[:, 0]), name="vision_transformer")


def bert(width=32, heads=4, blocks=3, length=16):
    """Devlin et al. 2019: tokens, segments and a padding mask in a dict; a pooled and a sequence output."""
    kinds = {"token_ids": "int32", "segment_ids": "int32", "padding_mask": "int32"}
    inputs = {name: keras.Input((length,), dtype=kind, name=name) for name, kind in kinds.items()}
    h = L.Embedding(100, width)(inputs["token_ids"]) + L.Embedding(5, width)(inputs["segment_ids"])
    h = L.Dropout(0.1)(L.LayerNormalization()(Positions()(h)))
    mask = ops.expand_dims(ops.not_equal(inputs["padding_mask"], 0), 1)
    for _ in range(blocks):
        made = L.MultiHeadAttention(heads, width // heads)(h, h, attention_mask=mask)
        h = L.LayerNormalization()(L.Add()([h, L.Dropout(0.1)(made)]))
        made = L.Dense(width)(L.Dense(4 * width, activation="gelu")(h))
        h = L.LayerNormalization()(L.Add()([h, L.Dropout(0.1)(made)]))
    pooled = L.Dense(width, activation="tanh", name="pooler")(h[:, 0, :])
    outputs = {"classes": L.Dense(3, name="classes")(pooled), "sequence": h}
    return keras.Model(inputs, outputs, name="bert")


def tagger(unroll=False):
    """Words and their letters; two bidirectional LSTM layers, a tag a word."""
    words = keras.Input((10,), dtype="int32", name="words")
    letters = keras.Input((10, 6), dtype="int32", name="letters")
    spelled = L.TimeDistributed(L.Conv1D(12, 3, padding="same", activation="relu"))(L.Embedding(30, 8)(letters))
    spelled = L.TimeDistributed(L.GlobalMaxPooling1D())(spelled)
    h = L.Dropout(0.2)(L.Concatenate()([L.Embedding(200, 16)(words), spelled]))
    h = L.Bidirectional(L.LSTM(16, return_sequences=True, unroll=unroll))(h)
    h = L.Bidirectional(L.LSTM(12, return_sequences=True, unroll=unroll), merge_mode="sum")(h)
    h = L.TimeDistributed(L.Dense(24, activation="relu"))(h)
    return keras.Model([words, letters], L.TimeDistributed(L.Dense(5))(h), name="tagger")


def tagger_unrolled():
    """The same, as the exporter needs it for int8."""
    return tagger(unroll=True)


def causal_tcn():
    """van den Oord et al. 2016 and Bai et al. 2018: dilated causal convolutions, gates, residuals and skips."""
    x = keras.Input((64, 6))
    h, skips = L.Conv1D(16, 1)(x), []
    for dilation in (1, 2, 4, 8):
        signal = L.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="tanh")(h)
        gate = L.Conv1D(16, 3, padding="causal", dilation_rate=dilation, activation="sigmoid")(h)
        gated = L.SpatialDropout1D(0.1)(L.Multiply()([signal, gate]))
        skips.append(L.Conv1D(24, 1)(gated))
        h = L.Add()([h, L.Conv1D(16, 1)(gated)])
    h = L.ReLU()(L.Conv1D(24, 1, activation="relu")(L.ReLU()(L.Add()(skips))))
    return keras.Model(x, L.Dense(4)(h[:, -1, :]), name="causal_tcn")


def siamese():
    """Two images through one tower; a second output from a layer that both share, too."""
    one, other = keras.Input((24, 24, 3), name="one"), keras.Input((24, 24, 3), name="other")
    x = keras.Input((24, 24, 3))
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(12, 3, padding="same")(x)))
    shared = L.Conv2D(12, 3, padding="same", activation="relu")
    h = L.Add()([h, shared(shared(h))])  # one layer twice: its inputs are its outputs
    h = L.ReLU()(L.BatchNormalization()(L.Conv2D(24, 3, strides=2)(h)))
    tower = keras.Model(x, L.Dense(20)(L.GlobalAveragePooling2D()(h)), name="tower")
    a, b = tower(one), tower(other)
    h = L.Concatenate()([ops.abs(a - b), L.Multiply()([a, b])])
    same = L.Dense(1, name="same")(L.Dense(16, activation="relu")(h))
    kind = L.Dense(7, name="kind")
    return keras.Model([one, other], [same, kind(a), kind(b)], name="siamese")


@keras.saving.register_keras_serializable("architectures")
class Residual(keras.Model):
    """A block of a subclassed net, itself a subclassed model."""

    def __init__(self, width, strides=1, **arguments):
        super().__init__(**arguments)
        self.first = L.Conv2D(width, 3, strides, padding="same", use_bias=False)
        self.second = L.Conv2D(width, 3, padding="same", use_bias=False)
        self.across = L.Conv2D(width, 1, strides, use_bias=False) if strides > 1 else None
        self.norms = [L.BatchNormalization() for _ in range(2 if self.across is None else 3)]

    def call(self, x, training=None):
        h = ops.relu(self.norms[0](self.first(x), training=training))
        h = self.norms[1](self.second(h), training=training)
        return ops.relu(h + (x if self.across is None else self.norms[2](self.across(x), training=training)))


class Subclassed(keras.Model):
    """A ResNet with `call`, its blocks in a list."""

    def __init__(self):
        super().__init__(name="subclassed")
        self.stem = L.Conv2D(12, 3, padding="same", activation="relu")
        self.blocks = [Residual(12), Residual(24, 2), Residual(24), Residual(32, 2)]
        self.drop, self.head = L.Dropout(0.1), L.Dense(10)

    def call(self, x, training=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.drop(ops.mean(x, axis=(1, 2)), training=training))


def subclassed():
    model = Subclassed()
    model(np.zeros((1, 24, 24, 3), "float32"))
    return model


NETS = (unet, yolo, vision_transformer, bert, tagger, tagger_unrolled, causal_tcn, siamese, subclassed)

MLPERF = {
    "pretrainedResnet": "pretrainedResnet.h5",
    "resnet8_cifar10": "resnet8_cifar10.keras",
    "vww_96": "vww_96.keras",
    "vww_96_legacy": "vww_96_legacy.h5",
    "kws_ref": "kws_ref.keras",
    "ad01": "ad01.keras",
    "streaming_wakeword": "streaming_wakeword_legacy.h5",
}


def mlperf(file, folder):
    """A trained net of MLPerf Tiny up to its logits: a softmax that is sure of a class hides what changes before it."""
    model = _loaded(Path(file), Path(folder))
    last = model.layers[-1]
    if getattr(last, "activation", None) is keras.activations.softmax:
        last.activation = keras.activations.linear
    return model


def _loaded(file, folder):
    """Keras 3 refuses `groups` in a DepthwiseConv2D of the older files."""
    import h5py

    if file.suffix != ".h5":
        return keras.models.load_model(file, compile=False)
    copy = shutil.copyfile(file, folder / file.name)
    with h5py.File(copy, "r+") as stored:
        config = json.loads(stored.attrs["model_config"])
        for layer in config["config"]["layers"]:
            if layer["class_name"] == "DepthwiseConv2D":
                layer["config"].pop("groups", None)
        stored.attrs["model_config"] = json.dumps(config)
    return keras.models.load_model(copy, compile=False)


APPLICATIONS = sorted(name for name in dir(keras.applications) if name[0].isupper())
SMALLEST = {
    "ConvNeXtTiny": "ConvNeXt",
    "DenseNet121": "DenseNet",
    "EfficientNetB0": "EfficientNetB",
    "EfficientNetV2B0": "EfficientNetV2",
    "InceptionResNetV2": "InceptionResNet",
    "InceptionV3": "InceptionV",
    "MobileNet": "MobileNet",
    "MobileNetV2": "MobileNetV2",
    "MobileNetV3Small": "MobileNetV3",
    "NASNetMobile": "NASNet",
    "ResNet50": "ResNet",
    "ResNet50V2": "ResNet",
    "VGG16": "VGG",
    "Xception": "Xception",
}
_WIDE = ("Inception", "Xception", "NASNet")  # they refuse images of 64 pixels
# Random statistics in 100 blocks: a 1e-6 larger input changes all of the output, and so does the order of a sum.
_CHAOTIC = ("EfficientNetV2M", "EfficientNetV2L")


def application(name):
    """One of keras.applications on small images, ten classes, with random weights, biases, scales and statistics."""
    side = 96 if name.startswith(_WIDE) else 64
    make = getattr(keras.applications, name)
    model = disturbed(make(weights=None, input_shape=(side, side, 3), classes=10, classifier_activation=None))
    if name in _CHAOTIC:
        reestimate_batch_norm(model, inputs_of(model, seed=5, samples=8))
    return model
