import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.criteria import CRITERIA, GradientNorm, OutputSensitivity, Wanda

N, BATCH = 12, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 6, 6, 2)).astype("float32")
Y = RNG.integers(0, 3, size=N)


def conv_net():
    """Conv - BatchNormalization - ReLU, a residual, and a head."""
    x = keras.Input((6, 6, 2))
    h = layers.BatchNormalization(name="bn")(layers.Conv2D(4, 3, padding="same", name="conv")(x))
    h = layers.ReLU(name="relu")(h)
    h = layers.Add()([h, layers.Conv2D(4, 1, activation="relu", name="point")(h)])
    h = layers.GlobalAveragePooling2D()(layers.Dropout(0.5)(h))
    model = keras.Model(x, layers.Dense(3, name="head")(h))
    model.get_layer("bn").moving_mean.assign(RNG.normal(size=4))
    model.get_layer("bn").moving_variance.assign(RNG.uniform(0.5, 2, size=4))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def scores_of(model, criterion, data=(X, Y)):
    views, _ = find_kernels(model)
    return dict(zip([view.name for view in views], CRITERIA.get(criterion).scores(model, views, data), strict=True))


def output(model, layer):
    return keras.Model(model.input, model.get_layer(layer).output).predict(X, verbose=0)


def per_channel(score):
    """Sum of each channel, after a check that its weights have equal shares."""
    np.testing.assert_allclose(score, np.broadcast_to(score[(0,) * (score.ndim - 1)], score.shape))
    return score.sum(tuple(range(score.ndim - 1)))


def test_activation_mean_and_apoz_look_behind_batch_normalization_and_relu():
    model = conv_net()
    behind = {"conv": output(model, "relu"), "point": output(model, "point"), "head": output(model, "head")}
    means = scores_of(model, "activation_mean", X)
    with pytest.warns(UserWarning, match="'apoz' cannot tell the channels of head apart"):
        shares = scores_of(model, "apoz", X)
    for name, y in behind.items():
        places = tuple(range(y.ndim - 1))
        np.testing.assert_allclose(per_channel(means[name]), np.abs(y).mean(places), rtol=1e-4)
        np.testing.assert_allclose(per_channel(shares[name]), (y != 0).mean(places), rtol=1e-4)
    assert np.ptp(per_channel(shares["conv"])) > 0.05


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.Sequential([layers.Dense(4, name="a"), layers.BatchNormalization(name="bn")])
        self.act, self.last = layers.Activation("relu"), layers.Dense(3, name="b")

    def call(self, x, training=False):
        return self.last(self.act(self.inner(x, training=training)))


def test_a_subclassed_and_nested_model_is_seen_through():
    model = Subclassed()
    x = RNG.normal(size=(N, 5)).astype("float32")
    model(x)
    dense, norm = model.inner.layers
    norm.moving_mean.assign(RNG.normal(size=4))
    y = np.maximum(norm(dense(x)), 0)
    np.testing.assert_allclose(per_channel(scores_of(model, "activation_mean", x)["a"]), y.mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        scores_of(model, "wanda", x)["b"], np.abs(model.last.kernel) * np.linalg.norm(y, axis=0)[:, None], rtol=1e-4
    )


def test_keras_ops_in_a_graph_are_activations_too():
    x = keras.Input((6, 6, 2))
    h = keras.ops.relu(layers.Conv2D(4, 3, name="conv")(x))
    model = keras.Model(x, [h, layers.Flatten()(h)])
    y = model.predict(X, verbose=0)[0]
    np.testing.assert_allclose(per_channel(scores_of(model, "apoz", X)["conv"]), (y != 0).mean((0, 1, 2)), rtol=1e-4)


def test_an_output_that_two_things_read_is_taken_as_it_is():
    x = keras.Input((6, 6, 2))
    y = layers.Conv2D(4, 3, name="conv")(x)
    model = keras.Model(x, layers.Add()([layers.ReLU()(y), y]))
    np.testing.assert_allclose(
        per_channel(scores_of(model, "activation_mean", X)["conv"]),
        np.abs(output(model, "conv")).mean((0, 1, 2)),
        rtol=1e-4,
    )


def test_gradient_norm_equals_finite_differences_of_the_output():
    """A bias added to one place of one channel of one sample is a step of the output there."""
    model, width = conv_net(), 2e-3
    conv, head = model.get_layer("conv"), model.get_layer("head")

    def loss(x, y, delta):
        h = keras.ops.relu(model.get_layer("bn")(conv(x) + delta, training=False))
        h = h + model.get_layer("point")(h)
        return model.loss(y, head(keras.ops.mean(h, (1, 2)))).numpy()

    expected, rng = [], np.random.default_rng(1)
    for start in range(0, N, BATCH):
        x, y = X[start : start + BATCH], Y[start : start + BATCH]
        delta = tf.zeros((len(x), 6, 6, 4))
        with tf.GradientTape() as tape:
            tape.watch(delta)
            h = keras.ops.relu(model.get_layer("bn")(conv(x) + delta, training=False))
            h = h + model.get_layer("point")(h)
            value = model.loss(y, head(keras.ops.mean(h, (1, 2))))
        gradient = tape.gradient(value, delta).numpy()
        direction = rng.normal(size=delta.shape).astype("float32")  # the tape itself, against a difference quotient
        slope = (loss(x, y, width * direction) - loss(x, y, -width * direction)) / (2 * width)
        np.testing.assert_allclose(slope, np.sum(gradient * direction), rtol=0.05)
        expected.append(np.linalg.norm(gradient.reshape(-1, 4), axis=0))
    views, _ = find_kernels(model)
    score = GradientNorm(batch_size=BATCH).scores(model, views, (X, Y))[0]
    np.testing.assert_allclose(per_channel(score), np.mean(expected, 0), rtol=1e-4)


def test_gradient_norm_of_the_last_layer_by_hand():
    model = conv_net()
    logits = output(model, "head")
    gradient = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - np.eye(3)[Y]) / N
    np.testing.assert_allclose(
        per_channel(scores_of(model, "gradient_norm")["head"]), np.linalg.norm(gradient, axis=0), rtol=1e-4
    )


def test_wanda_equals_numpy():
    model = conv_net()
    scores = scores_of(model, "wanda", X)
    pooled = keras.Model(model.input, model.layers[-2].output).predict(X, verbose=0)
    norm = np.linalg.norm(X.reshape(-1, 2), axis=0)
    kernel = model.get_layer("conv").kernel.numpy()
    np.testing.assert_allclose(scores["conv"], np.abs(kernel) * norm[:, None], rtol=1e-4)
    kernel = model.get_layer("head").kernel.numpy()
    np.testing.assert_allclose(scores["head"], np.abs(kernel) * np.linalg.norm(pooled, axis=0)[:, None], rtol=1e-4)


def test_a_shared_layer_shows_all_its_calls():
    shared, a, b = layers.Dense(3, name="shared"), keras.Input((4,)), keras.Input((4,))
    model = keras.Model([a, b], layers.Add()([shared(a), shared(b)]))
    xa, xb = RNG.normal(size=(2, N, 4)).astype("float32")
    both = np.concatenate([xa, xb])
    expected = np.abs(shared.kernel) * np.linalg.norm(both, axis=0)[:, None]
    np.testing.assert_allclose(scores_of(model, "wanda", [xa, xb])["shared"], expected, rtol=1e-4)
    means = np.abs(both @ shared.kernel.numpy()).mean(0)
    np.testing.assert_allclose(
        per_channel(scores_of(model, "activation_mean", ([xa, xb],))["shared"]), means, rtol=1e-4
    )


def test_output_sensitivity_equals_difference_quotients():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4, "tanh"), layers.Dense(2)])
    x, width = RNG.normal(size=(N, 3)).astype("float32"), 1e-2
    kernel = model.layers[0].kernel.numpy()

    def outputs(value):
        hidden = np.tanh(x.astype("float64") @ value + model.layers[0].bias.numpy())
        y = hidden @ model.layers[1].kernel.numpy()
        return np.array([y[i : i + BATCH].mean(0) for i in range(0, N, BATCH)])

    expected = np.zeros_like(kernel)
    for place in np.ndindex(kernel.shape):
        step = np.zeros_like(kernel, dtype="float64")
        step[place] = width
        slopes = (outputs(kernel + step) - outputs(kernel - step)) / (2 * width)
        expected[place] = np.abs(slopes).mean() * abs(kernel[place])
    views, _ = find_kernels(model)
    score, _ = OutputSensitivity(batch_size=BATCH).scores(model, views, x)
    np.testing.assert_allclose(score, expected, rtol=1e-3)


def test_output_sensitivity_draws_features():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(5)])
    views, _ = find_kernels(model)
    x = RNG.normal(size=(N, 3)).astype("float32")
    (score,) = OutputSensitivity(outputs=2, seed=1).scores(model, views, x)
    assert np.count_nonzero(score.sum(0)) == 2
    with pytest.raises(ValueError, match="`outputs` is 6, but the model has 5 output features"):
        OutputSensitivity(outputs=6).scores(model, views, x)


def test_run_eagerly_is_respected():
    model = conv_net()
    expected = scores_of(model, "gradient_norm")
    model.run_eagerly = True
    for name, score in scores_of(model, "gradient_norm").items():
        np.testing.assert_allclose(score, expected[name], rtol=1e-4)


class Doubled(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=(shape[-1], 2), name="table")

    def call(self, x):
        return x @ self.table

    def get_prunable_weights(self):
        return [self.table]


def test_refusals_name_kernel_and_criterion():
    recurrent = keras.Sequential([keras.Input((4, 3)), layers.LSTM(2), layers.Dense(2)])
    x = np.ones((2, 4, 3), "float32")
    views, _ = find_kernels(recurrent)
    with pytest.raises(
        ValueError, match="Wanda has no meaning for the kernel 'lstm_cell/recurrent_kernel' of LSTMCell"
    ):
        Wanda().scores(recurrent, views, x)
    with pytest.raises(ValueError, match="ActivationMean has no meaning for the kernel 'lstm_cell/kernel'"):
        CRITERIA.get("activation_mean").scores(recurrent, views, x)
    own = keras.Sequential([keras.Input((3,)), Doubled(name="own")])
    with pytest.raises(ValueError, match=r"APoZ does not know how the kernel 'own.*' meets the tensors .* \(Doubled\)"):
        CRITERIA.get("apoz").scores(own, find_kernels(own)[0], x[0])
    stacked = keras.Sequential([keras.Input((4, 3)), layers.RNN([layers.LSTMCell(2), layers.LSTMCell(2)])])
    views, _ = find_kernels(stacked)
    with pytest.raises(ValueError, match="Wanda: the layer of 'lstm_cell.*' is called inside a loop"):
        Wanda().scores(stacked, [view for view in views if view.variable is view.layer.kernel], x)
    branched = Subclassed()
    branched.unused = layers.Dense(2, name="unused")
    branched.unused.build((None, 3))
    branched(x[0])
    with pytest.raises(ValueError, match="Wanda: the layer of 'unused' is not called in inference"):
        Wanda().scores(branched, find_kernels(branched)[0], x[0])


def test_refusals_without_data_labels_or_loss():
    model = conv_net()
    views, _ = find_kernels(model)
    with pytest.raises(ValueError, match="APoZ needs data: pass `data=x`"):
        CRITERIA.get("apoz").scores(model, views)
    with pytest.raises(ValueError, match=r"Wanda needs data: call `scores\(model, views, data=...\)`"):
        CRITERIA.get("wanda").score(np.ones((2, 2)))
    with pytest.raises(ValueError, match="GradientNorm needs labels"):
        CRITERIA.get("gradient_norm").scores(model, views, X)
    with pytest.raises(ValueError, match="GradientNorm needs a loss: compile the model"):
        CRITERIA.get("gradient_norm").scores(keras.Model(model.input, model.output), views, (X, Y))
    with pytest.raises(ValueError, match="scores of 'conv' are NaN or infinite"):
        CRITERIA.get("wanda").scores(model, views, np.full_like(X, np.nan))
    assert not any("call" in vars(layer) for layer in model._flatten_layers())
