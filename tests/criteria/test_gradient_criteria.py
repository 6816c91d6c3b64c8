import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.core.live import Live
from kdopt.criteria import CRITERIA, OBD, Fisher, GradientCriterion, Movement

N, IN, HIDDEN, OUT, BATCH = 20, 4, 5, 3, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, IN)).astype("float32")
Y = RNG.normal(size=(N, OUT)).astype("float32")
WEIGHT = RNG.uniform(0.5, 2, size=N).astype("float32")
GRADIENT = [name for name in CRITERIA.names() if isinstance(CRITERIA.get(name), GradientCriterion)]


def make_model(**compile_args):
    stack = [layers.Dense(HIDDEN, "tanh", kernel_regularizer=keras.regularizers.L2(0.01)), layers.Dense(OUT)]
    model = keras.Sequential([keras.Input((IN,)), *stack])
    model.compile(**{"optimizer": keras.optimizers.SGD(0.0), "loss": "mse", **compile_args})
    return model


def numpy_gradients(model, rows, weight=None):
    """Backpropagation by hand: mean squared error of a batch, and the penalty."""
    w1, b1, w2, b2 = model.get_weights()
    hidden = np.tanh(X[rows] @ w1 + b1)
    scale = np.ones(len(hidden)) if weight is None else weight[rows]
    error = 2 * (hidden @ w2 + b2 - Y[rows]) / OUT / len(hidden) * scale[:, None]
    return X[rows].T @ ((error @ w2.T) * (1 - hidden**2)) + 2 * 0.01 * w1, hidden.T @ error


def expected(name, model, size=BATCH, weight=None):
    slices = [slice(i, i + size) for i in range(0, N, size)]
    gradients = list(zip(*(numpy_gradients(model, rows, weight) for rows in slices), strict=True))
    formula = {
        "taylor": lambda w, g: np.mean((g * w) ** 2, 0),
        "fisher": lambda w, g: np.mean(g**2, 0),
        "obd": lambda w, g: np.mean(g**2, 0) * w**2 / 2,
        "movement": lambda w, g: np.mean(-w * g, 0) - np.mean(-w * g, 0).min(),
    }[name]
    return [formula(view.numpy(), np.array(g)) for view, g in zip(find_kernels(model)[0], gradients, strict=True)]


def close(scores, wanted):
    for score, value in zip(scores, wanted, strict=True):
        np.testing.assert_allclose(score, value, rtol=2e-4, atol=1e-6 * np.abs(value).max())


@pytest.mark.parametrize("name", GRADIENT)
def test_equals_backpropagation_in_numpy(name):
    model = make_model()
    scores = type(CRITERIA.get(name))(batch_size=BATCH).scores(model, find_kernels(model)[0], (X, Y))
    close(scores, expected(name, model))


@pytest.mark.parametrize("name", GRADIENT)
def test_a_running_fit_gives_the_same_numbers(name):
    model, criterion = make_model(), type(CRITERIA.get(name))(batch_size=BATCH)
    views, _ = find_kernels(model)
    live = Live(model)
    sums = live.accumulate([view.variable for view in views], criterion.transform)
    live.rebuild()
    model.fit(X, Y, batch_size=BATCH, shuffle=False, verbose=0)
    live.release()
    means = [total / sums.batches() for total in sums.sums()]
    finished = [criterion.finish(view.numpy(), mean) for view, mean in zip(views, means, strict=True)]
    close(criterion.scores(model, views, (X, Y)), finished)


def test_per_sample_averages_squares_of_single_samples():
    model = make_model()
    views, _ = find_kernels(model)
    for criterion, name in ((OBD(per_sample=True), "obd"), (Fisher(per_sample=True), "fisher")):
        assert criterion.needs == "data"
        close(criterion.scores(model, views, (X, Y)), expected(name, model, size=1))
        close(criterion.scores(model, views, [(X[:13], Y[:13]), (X[13:], Y[13:])]), expected(name, model, size=1))
    assert OBD().needs == "gradients"


def as_dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(BATCH)


class AsPyDataset(keras.utils.PyDataset):
    def __len__(self):
        return -(-N // BATCH)

    def __getitem__(self, i):
        return X[i * BATCH : (i + 1) * BATCH], Y[i * BATCH : (i + 1) * BATCH]


def test_every_form_of_data_gives_the_same():
    model = make_model()
    views, _ = find_kernels(model)
    criterion = CRITERIA.get("taylor")
    pairs = [(X[i : i + BATCH], Y[i : i + BATCH]) for i in range(0, N, BATCH)]
    for data in (as_dataset(X, Y), pairs, iter(pairs), AsPyDataset()):
        close(criterion.scores(model, views, data), expected("taylor", model))
    close(criterion.scores(model, views, as_dataset(X, Y, WEIGHT)), expected("taylor", model, weight=WEIGHT))


def test_movement_orders_as_the_paper_and_leaves_what_is_zero():
    weights, mean = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, -5.0, 1.0, -2.0])
    np.testing.assert_array_equal(Movement().finish(weights, mean), [0, 0, 6, 3])
    np.testing.assert_array_equal(Fisher().finish(weights, mean**2), [0, 25, 1, 4])


def test_transform_works_in_float32_on_half_precision():
    tiny = keras.ops.cast(np.full(3, 1e-4), "float16")
    for name in GRADIENT:
        value = CRITERIA.get(name).transform(tiny, tiny)
        assert value.dtype == "float32"
        assert np.all(np.abs(value.numpy()) > 0), name


def test_mixed_float16_is_near_float32():
    model = make_model()
    penalty = keras.regularizers.L2(0.01)
    first = layers.Dense(HIDDEN, "tanh", dtype="mixed_float16", kernel_regularizer=penalty)
    half = keras.Sequential([keras.Input((IN,)), first, layers.Dense(OUT, dtype="mixed_float16")])
    half.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.0)), "mse")
    half.set_weights(model.get_weights())
    scores = CRITERIA.get("obd").scores(half, find_kernels(half)[0], (X, Y))
    for score, value in zip(scores, expected("obd", model, size=32), strict=True):
        np.testing.assert_allclose(score, value, rtol=0.1, atol=0.01 * value.max())


def test_embedding_gradients_are_dense_and_several_outputs_work():
    tokens = np.array([[1, 2], [2, 2], [0, 1]])
    x = keras.Input((2,), dtype="int32")
    h = layers.Flatten()(layers.Embedding(4, 2, name="table")(x))
    model = keras.Model(x, {"a": layers.Dense(2, name="a")(h), "b": layers.Dense(1, name="b")(h)})
    model.compile("sgd", {"a": "mse", "b": "mse"})
    y = {"a": np.ones((3, 2), "float32"), "b": np.ones((3, 1), "float32")}
    table, *_ = Fisher().scores(model, find_kernels(model)[0], (tokens, y))
    assert np.all(table[:3] > 0)
    np.testing.assert_array_equal(table[3], 0)


def test_a_model_without_labels_needs_none():
    class Reconstruct(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(IN)

        def call(self, x):
            y = self.dense(x)
            self.add_loss(keras.ops.mean((y - x) ** 2))
            return y

    model = Reconstruct()
    model.compile("sgd")
    model.fit(X, epochs=1, verbose=0)
    (score,) = Fisher().scores(model, find_kernels(model)[0], X)
    kernel, bias = model.get_weights()
    gradient = X.T @ (2 * (X @ kernel + bias - X) / X.size)
    np.testing.assert_allclose(score, gradient**2, rtol=1e-3, atol=1e-8)
    assert model.losses == []


@pytest.mark.parametrize("name", GRADIENT)
def test_refusals(name):
    model, criterion = make_model(), CRITERIA.get(name)
    views, _ = find_kernels(model)
    with pytest.raises(ValueError, match=r"needs gradients: call `scores\(model, views, data=\(x, y\)\)`"):
        criterion.score(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"needs data: pass `data=\(x, y\)`"):
        criterion.scores(model, views)
    with pytest.raises(ValueError, match=r"needs labels: pass `data=\(x, y\)`"):
        criterion.scores(model, views, X)
    with pytest.raises(ValueError, match="`data` is empty"):
        criterion.scores(model, views, (X[:0], Y[:0]))
    with pytest.raises(ValueError, match="`batch_size` must be an integer >= 1; got 0"):
        type(criterion)(batch_size=0)


def test_refusals_of_data_and_model():
    model, criterion = make_model(), CRITERIA.get("taylor")
    views, _ = find_kernels(model)
    for data, message in (
        ([], "`data` is empty"),
        ((X, Y[:3]), r"different numbers of samples: \[3, 20\]"),
        ((X, Y, WEIGHT, WEIGHT), "got 4 parts"),
        (as_dataset(X, Y).repeat(), "`data` never ends"),
        ((np.full_like(X, np.nan), Y), "scores of 'dense.*' are NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=message):
            criterion.scores(model, views, data)
    with pytest.raises(TypeError, match="must be a tuple of arrays"):
        criterion.scores(model, views, 3)
    with pytest.raises(ValueError, match="needs a loss: compile the model"):
        criterion.scores(keras.Sequential(model.layers), views, (X, Y))
    other = make_model()
    with pytest.raises(ValueError, match="the loss depends on none of the kernels"):
        criterion.scores(model, find_kernels(other)[0], (X, Y))
