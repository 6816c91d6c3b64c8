import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.norms import Moments, batch_moments, reestimate_batch_norm

X = (np.random.default_rng(0).normal(1.5, 2, size=(50, 6, 6, 3)) * [1, 5, 0.1]).astype("float32")


def sequential(shape, *stack, name=None):
    return keras.Sequential([keras.Input(shape), *stack], name=name)


def residual():
    """Two BatchNormalization layers, the second behind a residual of the first; dropout in between."""
    x = keras.Input((6, 6, 3))
    h = layers.ReLU()(layers.BatchNormalization(name="first")(layers.Conv2D(4, 3, padding="same", name="conv")(x)))
    h = layers.Add()([h, layers.DepthwiseConv2D(3, padding="same", name="depthwise")(layers.Dropout(0.5)(h))])
    h = layers.BatchNormalization(name="second", epsilon=1e-2)(h)
    return keras.Model(x, layers.GlobalAveragePooling2D()(h))


def randomize(model):
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype == "float32" and "seed" not in weight.path:
            weight.assign(
                rng.uniform(0.5, 2, weight.shape) * rng.choice([1, 1, -1] if "kernel" in weight.path else [1])
            )


def normalized(h, layer, statistics):
    mean, variance = statistics
    gamma, beta = layer.gamma.numpy().astype("float64"), layer.beta.numpy()
    return (h - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta


def moments(h):
    flat = h.reshape(-1, h.shape[-1]).astype("float64")
    return flat.mean(0), flat.var(0)


def by_hand(model, batches):
    """Mean and variance of both layers' inputs over all batches, each batch normalized by itself, in float64."""
    conv, depthwise = model.get_layer("conv"), model.get_layer("depthwise")
    first, second = [], []
    for x in batches:
        h = conv(x).numpy()
        first.append(h)
        h = np.maximum(normalized(h, model.get_layer("first"), moments(h)), 0)
        second.append(h + depthwise(h.astype("float32")).numpy())
    return {"first": moments(np.concatenate(first)), "second": moments(np.concatenate(second))}


def assert_statistics(layer, expected):
    np.testing.assert_allclose(layer.moving_mean.numpy(), expected[0], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), expected[1], rtol=2e-5)


def weights_of(model):
    return [weight.numpy() for weight in model.weights]


@pytest.mark.parametrize("batch_size", [50, 20], ids=["one batch", "unequal batches"])
def test_residual_net_against_numpy(batch_size):
    model = residual()
    randomize(model)
    report = reestimate_batch_norm(model, X, batch_size=batch_size)
    expected = by_hand(model, [X[i : i + batch_size] for i in range(0, 50, batch_size)])
    for name, statistics in expected.items():
        assert_statistics(model.get_layer(name), statistics)
    assert (report.done, report.skipped) == (("first", "second"), ())
    assert (report.batches, report.samples) == (-(-50 // batch_size), 50)


def test_inference_equals_training_mode_on_a_single_batch():
    model = residual()
    randomize(model)
    reestimate_batch_norm(model, X, batch_size=50)
    dropout = next(layer for layer in model.layers if isinstance(layer, layers.Dropout))
    dropout.rate = 0.0
    np.testing.assert_allclose(model(X), model(X, training=True), rtol=1e-4, atol=1e-4)


def test_only_the_statistics_change():
    model = residual()
    randomize(model)
    model.get_layer("first").momentum = 0.7
    model.get_layer("second").trainable = False
    moving = {
        id(getattr(model.get_layer(n), m)) for n in ("first", "second") for m in ("moving_mean", "moving_variance")
    }
    before = weights_of(model)
    assert reestimate_batch_norm(model, X).done == ("first", "second")
    for weight, old in zip(model.weights, before, strict=True):
        assert np.array_equal(weight.numpy(), old) == (id(weight) not in moving), weight.path
    assert [model.get_layer(n).momentum for n in ("first", "second")] == [0.7, 0.99]
    assert [model.get_layer(n).trainable for n in ("first", "second")] == [True, False]
    assert "call" not in model.get_layer("first").__dict__


def test_nested_shared_and_same_names():
    inner = sequential((3,), layers.Dense(3, name="dense"), layers.BatchNormalization(name="norm"), name="inner")
    shared = layers.BatchNormalization(name="shared")
    x = keras.Input((3,))
    h = layers.Concatenate()([shared(x), shared(layers.ReLU()(x))])
    model = keras.Model(x, [layers.BatchNormalization(name="norm")(inner(x)), h])
    randomize(model)
    data = X[:, 0, 0]
    assert sorted(reestimate_batch_norm(model, data).done) == ["inner/norm", "norm", "shared"]
    h = inner.get_layer("dense")(data).numpy()
    assert_statistics(inner.get_layer("norm"), moments(h))
    assert_statistics(model.get_layer("norm"), moments(normalized(h, inner.get_layer("norm"), moments(h))))
    assert_statistics(shared, moments(np.concatenate([data, np.maximum(data, 0)])))


class Subclassed(keras.Model):
    """Two layers of one name, one that is never called, one that infers even in training."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.BatchNormalization(name="norm", axis=1), layers.BatchNormalization(name="norm")]
        self.unused = layers.BatchNormalization(name="unused")
        self.time = layers.TimeDistributed(layers.BatchNormalization(name="timed"), name="time_distributed")

    def build(self, shape):
        self.unused.build(shape)
        super().build(shape)

    def call(self, x, training=None):
        return self.time(self.blocks[1](self.blocks[0](x, training=False)))


def test_subclassed_model():
    model = Subclassed()
    model(X)
    report = reestimate_batch_norm(model, X, batch_size=50)
    assert report.done == ("norm", "norm", "time_distributed/timed")
    assert report.skipped == (("unused", "the model did not call it on this data"),)
    channels_first = moments(np.moveaxis(X, 1, -1))
    assert_statistics(model.blocks[0], channels_first)
    h = (X - channels_first[0][:, None, None]) / np.sqrt(channels_first[1] + 1e-3)[:, None, None]
    assert_statistics(model.blocks[1], moments(h))
    np.testing.assert_array_equal(model.unused.moving_variance, np.ones(3))


def test_masked_steps_do_not_count():
    x = keras.Input((4, 2))
    norm = layers.BatchNormalization()
    model = keras.Model(x, norm(layers.Masking(0.0)(x)))
    data = X[:, 0, :4, :2].copy()
    data[::2, 2:] = 0
    reestimate_batch_norm(model, data, batch_size=16)
    kept = data.reshape(-1, 2)[np.any(data.reshape(-1, 2) != 0, axis=1)]
    assert_statistics(norm, (kept.mean(0), kept.var(0)))


@pytest.mark.skipif(
    "renorm" not in inspect.signature(layers.BatchNormalization).parameters, reason="this Keras has no renorm"
)
def test_batch_renormalization():
    model = sequential((3,), layers.BatchNormalization(renorm=True))
    reestimate_batch_norm(model, X[:, 0, 0])
    norm, (mean, variance) = model.layers[0], moments(X[:, 0, 0])
    assert_statistics(norm, (mean, variance))
    np.testing.assert_allclose(norm.renorm_mean, mean, rtol=1e-5)
    for stddev in (norm.renorm_stddev, norm.moving_stddev):
        np.testing.assert_allclose(stddev, np.sqrt(variance + 1e-3), rtol=1e-5)


def test_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sequential((3,), layers.BatchNormalization())
    finally:
        keras.config.set_dtype_policy("float32")
    data = np.float32(100) + X[:, 0, 0].astype("float16").astype("float32")
    reestimate_batch_norm(model, data)
    assert_statistics(model.layers[0], moments(data.astype("float16").astype("float32")))


class Data(keras.utils.PyDataset):
    def __len__(self):
        return 5

    def __getitem__(self, index):
        return X[10 * index : 10 * index + 10], np.zeros(10)


def forms():
    dataset = tf.data.Dataset.from_tensor_slices((X, np.zeros(50))).batch(10)
    return {
        "dataset": (dataset, None, 5),
        "endless dataset": (dataset.repeat(), 5, 5),
        "PyDataset": (Data(), None, 5),
        "generator": ((X[i : i + 10] for i in range(0, 50, 10)), 9, 5),
        "tensor": (tf.constant(X), None, 1),
        "a part": (Data(), 2, 2),
    }


@pytest.mark.parametrize("form", forms())
def test_forms_of_data(form):
    data, batches, used = forms()[form]
    norm = layers.BatchNormalization()
    report = reestimate_batch_norm(sequential((6, 6, 3), norm), data, batches)
    count = 20 if form == "a part" else 50
    assert_statistics(norm, moments(X[:count]))
    assert (report.batches, report.samples) == (used, count)


def test_inputs_by_name():
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    norm = layers.BatchNormalization()
    model = keras.Model(inputs, norm(layers.Subtract()([inputs["a"], inputs["b"]])))
    a, b = X[:, 0, 0], X[:, 1, 1]
    assert reestimate_batch_norm(model, {"b": b, "a": a}, batch_size=17).batches == 3
    assert_statistics(norm, moments(a - b))


def test_no_batch_normalization():
    model = sequential((3,), layers.Dense(2), layers.LayerNormalization())
    report = reestimate_batch_norm(model, X[:, 0, 0])
    assert (report.done, report.skipped, report.batches) == ((), (), 0)


def failing():
    yield from (X[:10], X[10:20])
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (failing(), KeyboardInterrupt, None),
        (X[:0], ValueError, "`data` is empty"),
        (iter(()), ValueError, "`data` is empty"),
        (X * np.nan, ValueError, "'first' is NaN or infinite on this data"),
        (X[..., :2], ValueError, "expected shape"),
        (tf.data.Dataset.from_tensors(X).repeat(), ValueError, "`data` has no end: say with `batches`"),
        ("train", TypeError, "`data` must be an array"),
        ({"a": X, "b": X[:3]}, ValueError, r"the same number of samples for each input; got \[3, 50\]"),
    ],
)
def test_whatever_is_raised_the_statistics_are_as_they_were(data, error, message):
    model = residual()
    randomize(model)
    before = weights_of(model)
    with pytest.raises(error, match=message):
        reestimate_batch_norm(model, data)
    for weight, old in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), old)
    assert not any("call" in layer.__dict__ for layer in model.layers)


def test_refused_models():
    with pytest.raises(ValueError, match="has no weights yet"):
        reestimate_batch_norm(Subclassed(), X)

    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.norm = layers.BatchNormalization(name="norm")

        @tf.function
        def call(self, x):
            return self.norm(x)

    model = Compiled()
    model(X)
    with pytest.raises(RuntimeError, match="BatchNormalization 'norm' runs inside a compiled function"):
        reestimate_batch_norm(model, X[:7])
    with pytest.raises(ValueError, match="`batches` must be an integer >= 1"):
        reestimate_batch_norm(residual(), X, batches=0)


def test_moments_are_exact_far_from_zero():
    values = np.random.default_rng(0).normal(1e6, 1e-2, (1000, 2))
    together = Moments()
    for part in np.split(values, [10, 11, 700]):
        together.add(len(part), part.mean(0), part.var(0))
    np.testing.assert_allclose(together.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(together.variance, values.var(0), rtol=1e-6)
    count, mean, variance = batch_moments(X, -1)
    assert float(count) == 50 * 36
    np.testing.assert_allclose(mean, moments(X)[0], rtol=1e-5)
    np.testing.assert_allclose(variance, moments(X)[1], rtol=1e-5)
