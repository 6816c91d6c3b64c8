"""Small nets of the kinds that quantization-aware training meets besides keras.applications, and inputs for all."""

import keras
import numpy as np
from keras import layers as L
from keras import ops

from kdopt.core.norms import reestimate_batch_norm


def conv(x, filters, size=3, strides=1, activation="relu"):
    x = L.Conv2D(filters, size, strides, padding="same", use_bias=False)(x)
    return L.Activation(activation)(L.BatchNormalization()(x))


def head(x, classes=10):
    return L.Dense(classes)(L.GlobalAveragePooling2D()(x))


def nested():
    """Blocks that are models, one of them called twice."""

    def block(width, filters, name):
        x = keras.Input((16, 16, width))
        return keras.Model(x, conv(conv(x, filters), filters), name=name)

    x = keras.Input((16, 16, 3))
    first, second = block(3, 8, "first"), block(8, 8, "second")
    return keras.Model(x, head(second(second(first(x)))), name="nested")


def squeeze_excite():
    """Hu et al. 2018, with residuals."""
    x = keras.Input((16, 16, 3))
    h = conv(x, 16)
    for activation in ("sigmoid", "hard_sigmoid"):
        made = conv(h, 16)
        gate = L.Dense(4, activation="relu")(L.GlobalAveragePooling2D()(made))
        gate = L.Reshape((1, 1, 16))(L.Dense(16, activation=activation)(gate))
        h = L.ReLU()(L.Add()([h, L.Multiply()([made, gate])]))
    return keras.Model(x, head(h), name="squeeze_excite")


def channel_attention():
    """Woo et al. 2018 (CBAM): two poolings through one shared pair of layers, then a map of places."""
    x = keras.Input((16, 16, 3))
    h = conv(x, 16)
    down, up = L.Dense(4, activation="relu"), L.Dense(16)
    poolings = (L.GlobalAveragePooling2D(keepdims=True), L.GlobalMaxPooling2D(keepdims=True))
    h = h * ops.sigmoid(L.Add()([up(down(pool(h))) for pool in poolings]))
    places = L.Concatenate()([ops.mean(h, axis=-1, keepdims=True), ops.max(h, axis=-1, keepdims=True)])
    h = h * L.Conv2D(1, 7, padding="same", activation="sigmoid")(places)
    return keras.Model(x, head(h), name="channel_attention")


def convolutions_1d():
    """Of a series: strided, dilated, separable."""
    x = keras.Input((64, 6))
    h = L.ReLU()(L.BatchNormalization()(L.Conv1D(16, 5, strides=2, padding="same", use_bias=False)(x)))
    h = L.MaxPooling1D()(L.Conv1D(24, 3, dilation_rate=2, padding="causal", activation="relu")(h))
    h = L.ReLU()(L.BatchNormalization()(L.SeparableConv1D(24, 3, use_bias=False)(h)))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling1D()(h)), name="convolutions_1d")


def rescaled():
    """Tan & Le 2019: rescaling and normalization in front, inverted residuals with gates."""
    x = keras.Input((32, 32, 3))
    h = L.Normalization(mean=[0.5, 0.45, 0.4], variance=[0.05, 0.06, 0.05])(L.Rescaling(1 / 255)(x))
    h = conv(L.ZeroPadding2D(((0, 1), (0, 1)))(h), 8, activation="silu")
    for _ in range(2):
        made = conv(h, 24, 1, activation="silu")
        made = L.DepthwiseConv2D(3, padding="same", use_bias=False)(made)
        made = L.Activation("silu")(L.BatchNormalization()(made))
        gate = L.Conv2D(6, 1, activation="silu")(L.GlobalAveragePooling2D(keepdims=True)(made))
        made = L.Multiply()([made, L.Conv2D(24, 1, activation="sigmoid")(gate)])
        made = L.BatchNormalization()(L.Conv2D(8, 1, use_bias=False)(made))
        h = L.Add()([h, L.Dropout(0.2, noise_shape=(None, 1, 1, 1))(made)])
    return keras.Model(x, head(h), name="rescaled")


def preactivated():
    """He et al. 2016b: normalization and ReLU before the convolutions."""
    x = keras.Input((16, 16, 3))
    h = L.Conv2D(12, 3, padding="same")(x)
    for width, strides in ((12, 1), (24, 2)):
        n = L.ReLU()(L.BatchNormalization()(h))
        across = L.Conv2D(width, 1, strides)(n)
        n = L.ReLU()(L.BatchNormalization()(L.Conv2D(width, 3, strides, padding="same", use_bias=False)(n)))
        h = L.Add()([across, L.Conv2D(width, 3, padding="same")(n)])
    return keras.Model(x, head(L.ReLU()(L.BatchNormalization()(h))), name="preactivated")


def mixed_precision():
    """Computes in float16, its variables float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        x = keras.Input((16, 16, 3))
        h = conv(conv(x, 12), 16, strides=2)
        h = L.Add()([h, conv(h, 16)])
        h = L.Dense(10)(L.GlobalAveragePooling2D()(h))
        return keras.Model(x, L.Activation("linear", dtype="float32")(h), name="mixed_precision")
    finally:
        keras.config.set_dtype_policy(before)


def text():
    """Kim 2014: embedded tokens, convolutions of several widths, the largest over time."""
    x = keras.Input((24,), dtype="int32", name="tokens")
    h = L.Embedding(100, 16)(x)
    parts = [L.GlobalMaxPooling1D()(L.Conv1D(12, size, activation="relu")(h)) for size in (3, 4, 5)]
    return keras.Model(x, L.Dense(4)(L.Dropout(0.5)(L.Concatenate()(parts))), name="text")


def lstm():
    x = keras.Input((8, 12))
    return keras.Model(x, L.Dense(5)(L.LSTM(16)(L.LSTM(16, return_sequences=True)(x))), name="lstm")


def gru():
    x = keras.Input((8, 12))
    h = L.Bidirectional(L.GRU(12, return_sequences=True))(L.Conv1D(16, 3, padding="same", activation="relu")(x))
    return keras.Model(x, L.Dense(5)(L.GlobalAveragePooling1D()(h)), name="gru")


def transformer():
    """Vaswani et al. 2017, an encoder block without a mask, normalized after."""
    x = keras.Input((12, 16))
    h = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(4, 4)(x, x)]))
    made = L.Dense(16)(L.Dense(32, activation="relu")(h))
    h = L.LayerNormalization()(L.Add()([h, made]))
    return keras.Model(x, L.Dense(5)(L.GlobalAveragePooling1D()(h)), name="transformer")


def several():
    """An image and numbers in, by name; classes and a box out, by name."""
    image, numbers = keras.Input((16, 16, 3), name="image"), keras.Input((5,), name="numbers")
    h = L.Flatten()(L.MaxPooling2D(4)(conv(conv(image, 8), 8)))
    h = L.Concatenate()([h, L.Dense(8, activation="relu")(numbers)])
    outputs = {"box": L.Dense(4, activation="relu", name="box")(h), "class": L.Dense(6, name="class")(h)}
    return keras.Model({"image": image, "numbers": numbers}, outputs, name="several")


def operations():
    """`keras.ops` instead of layers."""
    x = keras.Input((16, 16, 3))
    h = ops.relu(L.BatchNormalization()(L.Conv2D(12, 3, padding="same")(x - 0.5)))
    one, other = ops.split(h, 2, axis=-1)
    h = ops.concatenate([ops.maximum(one, other), one * other, one + 0.5 * other], axis=-1)
    h = ops.silu(L.Conv2D(12, 3, 2)(ops.pad(h, [[0, 0], [1, 1], [1, 1], [0, 0]])))
    h = ops.reshape(ops.transpose(ops.max_pool(h, 2), (0, 3, 1, 2)), (-1, 12, 16))
    h = ops.squeeze(ops.mean(h, axis=2, keepdims=True), 2)
    return keras.Model(x, L.Dense(5)(ops.leaky_relu(h)), name="operations")


@keras.saving.register_keras_serializable("qat_nets")
class Block(keras.Model):
    """A residual block with `call`."""

    def __init__(self, width, **arguments):
        super().__init__(**arguments)
        self.width, self.first, self.norm = width, L.Conv2D(width, 3, padding="same"), L.BatchNormalization()

    def call(self, x, training=None):
        return ops.relu(x + self.norm(self.first(x), training=training))

    def get_config(self):
        return {**super().get_config(), "width": self.width}


@keras.saving.register_keras_serializable("qat_nets")
class Subclassed(keras.Model):
    """A net with `call`, its blocks in a list."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.stem, self.blocks = L.Conv2D(12, 3, strides=2, activation="relu"), [Block(12), Block(12)]
        self.head = L.Dense(10)

    def call(self, x, training=None):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.mean(x, axis=(1, 2)))


def with_call():
    model = Subclassed(name="with_call")
    model(np.zeros((1, 16, 16, 3), "float32"))
    return model


NETS = (
    *(nested, squeeze_excite, channel_attention, convolutions_1d, rescaled, preactivated, mixed_precision, text),
    *(lstm, gru, transformer, several, operations, with_call),
)


def alive(model, seed=5):
    """`model` with statistics of BatchNormalization that its activations have: those of a deep net stay alive."""
    reestimate_batch_norm(model, iter([inputs_of(model, seed, 64)]))
    return model


def inputs_of(model, seed, samples):
    """Inputs in the structure of the model's: spots on a ground for images, as bright as the model wants them; tokens
    below 5; noise around a mean elsewhere."""
    from kdopt.graph.trace import graph_of

    random = np.random.default_rng(seed)
    bright = any(isinstance(layer, (L.Rescaling, L.Normalization)) for layer in model._flatten_layers())

    def draw(tensor):
        shape = (samples, *(side or 12 for side in tensor.shape[1:]))
        if "int" in str(tensor.dtype):
            return random.integers(0, 5, shape).astype(str(tensor.dtype))
        mean = random.normal(0, 0.7, (samples, *(1 for _ in shape[2:]), shape[-1]))
        x = mean + random.normal(0, 0.5, shape)
        if len(shape) == 4:
            coarse = random.normal(0, 1.0, (samples, 4, 4, shape[-1])).astype("float32")
            x = x * 0.5 + keras.ops.convert_to_numpy(keras.ops.image.resize(coarse, shape[1:3]))
        return (np.clip(128 + 60 * x, 0, 255) if bright else x).astype("float32")

    return keras.tree.map_structure(draw, graph_of(model)._inputs_struct)
