"""Models nobody thought of: the function of the source, a file that is the model, or a refusal with a way out."""

import keras
import numpy as np
import pytest
from int8_file import on_grid, outputs_of
from keras import layers as L
from keras import ops
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

import tflite_export
from kdopt.core.copying import copy_model
from kdopt.quantization import equalize, post_training, quantization_error, quantize_aware

RANDOM = np.random.default_rng(4)
X = RANDOM.normal(0.2, 1.0, (32, 8, 8, 2)).astype("float32")


def native(build, x=X, shape=(8, 8, 2), dtype="float32"):
    keras.utils.set_random_seed(2)
    inputs = keras.Input(shape, name="image", dtype=dtype)
    source = keras.Model(inputs, build(inputs))
    return source, quantize_aware(source, engine="native", calibration=x)


def closeness(source, model, x=X):
    """Largest difference as a share of the largest output."""
    one, other = (np.asarray(m.predict(x, verbose=0)) for m in (source, model))
    return float(np.abs(one - other).max() / np.abs(one).max())


def relus(x):
    return L.ReLU()(x), L.Activation("relu")(x)


MODELS = {
    "dropout before the norm": lambda x: L.BatchNormalization()(L.Dropout(0.3)(L.Conv2D(4, 3)(x))),
    "identity before the norm": lambda x: L.BatchNormalization()(L.Activation("linear")(L.Conv2D(4, 3)(x))),
    "einsum with a shared bias": lambda x: L.EinsumDense("abcd,de->abce", (8, 8, 3), bias_axes="e")(x),
    "residual times a number": lambda x: L.ReLU()(CustomScaleLayer(0.17)([L.Conv2D(4, 3)(x), L.Conv2D(4, 3)(x)])),
    "a number times a pooling": lambda x: CustomScaleLayer(-0.5)([x, L.MaxPooling2D(3, 1, "same")(x)]),
    "two relus of one tensor": lambda x: L.Add()([L.Conv2D(3, 1)(y) for y in relus(L.Conv2D(4, 3)(x))]),
    "norm without offset": lambda x: L.BatchNormalization(center=False, scale=False)(L.Conv2D(4, 3)(x)),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_source_and_the_file_is_it(name):
    source, model = native(MODELS[name])
    assert closeness(source, model) < 0.03
    content = tflite_export.convert(model, "int8").content
    ((got, step),) = outputs_of(content, X)
    assert (np.abs(got - model.predict(on_grid(content, X)[1], verbose=0)) / step).max() < 1.01


def dense():
    return L.Dense(4)


def einsum():
    return L.EinsumDense("abcd,de->abce", (8, 8, 4))


OTHERS = [pytest.param(*one, marks=pytest.mark.slow) for one in ((dense, "relu6"), (einsum, "relu"))]


@pytest.mark.parametrize(("build", "relu"), [(dense, "relu"), (einsum, "relu6"), *OTHERS])
def test_a_dense_layer_that_a_relu_and_others_read_is_there_twice(build, relu):
    def made(x):
        y = build()(x)
        return L.Add()([y, L.Dense(4)(L.Activation(relu)(y))])

    model = native(made)[1]
    content = tflite_export.convert(model, "int8").content
    ((got, step),) = outputs_of(content, X)
    assert (np.abs(got - model.predict(on_grid(content, X)[1], verbose=0)) / step).max() < 0.01


def test_parts_of_one_layer_are_outputs_of_their_own():
    source, model = native(lambda x: list(ops.split(L.Dense(6)(L.Flatten()(x)), 2, axis=-1)))
    made = outputs_of(tflite_export.convert(model, "int8").content, X)
    for (got, _), wanted in zip(made, source.predict(X, verbose=0), strict=True):
        assert np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()


def test_integers_are_rescaled_in_floating_point():
    x = RANDOM.integers(0, 255, (32, 8, 8, 2)).astype("uint8")
    source, model = native(lambda x: L.Conv2D(3, 3)(L.Rescaling(1 / 255.0)(x)), x, dtype="uint8")
    assert closeness(source, model, x) < 0.03


@pytest.mark.parametrize("first", ["conv", "pool"])
def test_channels_in_front_are_not_mixed_up(first):
    def build(x):
        if first == "pool":
            x = L.Conv2D(8, 3, padding="same", activation="relu")(x)
            return L.Dense(3)(L.GlobalAveragePooling2D(data_format="channels_first")(x))
        return L.BatchNormalization(axis=-1)(L.AveragePooling2D(2, data_format="channels_first")(L.Conv2D(8, 1)(x)))

    source, model = native(build)
    assert closeness(source, model) < 0.03
    copied = copy_model(source)
    equalize(copied)
    assert closeness(source, copied) < 1e-5


def test_what_attention_must_not_see_has_no_influence():
    series = L.Reshape((8, 16))
    source, model = native(lambda x: L.MultiHeadAttention(2, 4)(series(x), series(x), use_causal_mask=True))
    assert closeness(source, model) < 0.05
    changed = X.copy()
    changed[:, 5:] *= -1  # places 5, 6, 7 of the sequence
    content = tflite_export.convert(model, "int8").content
    for run in (lambda x: model.predict(x, verbose=0), lambda x: outputs_of(content, x)[0][0]):
        np.testing.assert_array_equal(run(X)[:, :5], run(changed)[:, :5])
        assert np.abs(run(X)[:, 5:] - run(changed)[:, 5:]).max() > 0.1


def test_masks_beside_the_tensors_are_refused():
    series = L.Reshape((8, 16))

    def masked(x):
        return L.MultiHeadAttention(2, 4)(series(x), series(x), value_mask=series(x)[..., 0] > 0)

    with pytest.raises(ValueError, match="attends with value_mask.*Way out"):
        native(masked)
    with pytest.raises(ValueError, match="attends with mask.*Way out"):
        native(lambda x: L.Attention()([series(x), series(x)], mask=[None, series(x)[..., 0] > 0]))


def test_an_activation_that_keras_has_not_built_is_refused():
    with pytest.raises(ValueError, match=r"'head' has a PReLU as its activation.*Way out"):
        native(lambda x: L.Dense(3, activation=L.PReLU(), name="head")(x))


DROPOUTS = {
    "attention": lambda x: L.MultiHeadAttention(2, 4, dropout=0.5)(L.Reshape((4, 32))(x), L.Reshape((4, 32))(x)),
    "simple": lambda x: L.SimpleRNN(4, recurrent_dropout=0.5)(L.Reshape((4, 32))(x)),
    "lstm": lambda x: L.LSTM(4, dropout=0.5)(L.Reshape((4, 32))(x)),
}


@pytest.mark.parametrize("kind", ["attention", "simple", pytest.param("lstm", marks=pytest.mark.slow)])
def test_dropout_of_attention_and_of_recurrent_layers(kind):
    source, model = native(DROPOUTS[kind])
    assert {entry.mode for entry in model.report} == {"quantized"}
    assert closeness(source, model) < 0.08
    random = [np.asarray(model(X, training=training)) for training in (True, True, False, False)]
    assert np.abs(random[0] - random[1]).max() > 0
    np.testing.assert_array_equal(random[2], random[3])


ONE_LEFT = [pytest.param(options, marks=pytest.mark.slow) for options in ({"center": False}, {"scale": False})]


@pytest.mark.parametrize("options", [*ONE_LEFT, {"center": False, "scale": False}])
def test_norms_without_factor_or_offset_are_equalized_and_corrected(options):
    def build(x):
        for filters in (6, 6):
            x = L.ReLU()(L.BatchNormalization(**options)(L.Conv2D(filters, 3, use_bias=False)(x)))
        return L.Dense(3)(L.GlobalAveragePooling2D()(x))

    source, _ = native(build)
    for layer in source.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.moving_mean.assign(RANDOM.normal(0, 0.3, 6))
            layer.moving_variance.assign(10 ** RANDOM.uniform(-1, 1, 6))
            if layer.gamma is not None:
                layer.gamma.assign(np.array([0, 1, 1, 1, 1, 1]))
    copied = copy_model(source)
    assert len(equalize(copied)) == 2
    assert closeness(source, copied) < 1e-4
    exact = source.predict(X, verbose=0)
    plain = quantize_aware(source, engine="native", calibration=X).predict(X, verbose=0)
    made = post_training(source, (X[i : i + 8] for i in range(0, 32, 8)), ranges="min_max", equalize=False)
    corrected = made.predict(X, verbose=0)
    assert np.isfinite(corrected).all()
    assert np.abs((corrected - exact).mean(0)).max() < np.abs((plain - exact).mean(0)).max() + 1e-6


def test_a_tensor_that_is_always_zero_trains():
    _, model = native(lambda x: L.Dense(2)(L.Flatten()(L.ReLU()(L.Conv2D(3, 3, name="dead")(x)))))
    dead = model.get_layer("dead")
    dead.kernel.assign(dead.kernel * 0)
    dead.bias.assign([-1.0, -1.0, -1.0])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(X, np.ones((32, 2)), epochs=2, verbose=0)
    assert np.isfinite(model.predict(X, verbose=0)).all()
    before = model.range_of("image.input")
    model.fit(X * np.nan, np.ones((32, 2)), verbose=0)
    assert model.range_of("image.input") == before
    assert np.isfinite(np.asarray(model.ranges.limits)).all()


def test_wrong_calls_are_told():
    source, model = native(lambda x: L.Dense(3)(L.Flatten()(x)))
    uncalibrated = quantize_aware(source, engine="native")
    with pytest.raises(RuntimeError, match="have not seen any data"):
        quantization_error(uncalibrated, X, verbose=0)
    with pytest.raises(TypeError, match="of the engine 'tfmot'"):
        quantization_error(quantize_aware(source, calibration=X), X, verbose=0)
    with pytest.raises(TypeError, match=r"is quantized already.*strip"):
        post_training(model, X)
    for wrong in ("x", None, 3):
        with pytest.raises(TypeError, match="Expected a built keras.Model"):
            quantize_aware(wrong, engine="native")
        with pytest.raises(TypeError, match="built keras.Model"):
            equalize(wrong)
    for samples in (0, -1, 2.5):
        with pytest.raises(ValueError, match="samples"):
            post_training(source, X, samples=samples)
        with pytest.raises(ValueError, match="samples"):
            quantization_error(source, X, samples=samples, verbose=0)
    for targets in (np.full(32, -1), np.full(32, 3)):
        with pytest.raises(ValueError, match=r"`targets` must lie in \[0, 3\)"):
            quantization_error(source, X, targets, verbose=0)
    images, _ = native(lambda x: L.Dense(3)(x))
    with pytest.raises(ValueError, match="for a classifier with one output"):
        quantization_error(images, X, np.zeros(32, int), verbose=0)


def test_probabilities_behind_a_dropout_are_probabilities():
    source, _ = native(lambda x: L.Dropout(0.5)(L.Dense(3, activation="softmax")(L.Flatten()(x))))
    targets = RANDOM.integers(0, 3, 32)
    probabilities = source.predict(X, verbose=0)
    wanted = -np.mean(np.log(np.maximum(probabilities[np.arange(32), targets], 1 / 512)))
    errors = quantization_error(source, (X[i : i + 8] for i in range(0, 32, 8)), targets, verbose=0)
    assert errors.cross_entropy[0] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("observer", ["ema", "lsq_plus"])
def test_a_batch_of_nan_shows_in_the_loss_as_without_rounding(observer):
    inputs = keras.Input((8, 8, 2))
    source = keras.Model(inputs, L.Dense(2)(L.Flatten()(L.Conv2D(3, 3, activation="relu")(inputs))))
    model = quantize_aware(source, "native", calibration=X, observer=observer)
    model.compile("sgd", "mse")
    x = X.copy()
    x[0, 0] = np.nan
    assert np.isnan(model.train_on_batch(x, np.zeros((32, 2))))


@keras.saving.register_keras_serializable("test_oddities")
class Net(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.first, self.last = L.Dense(6, name="first"), L.Dense(3, name="last")

    def call(self, inputs):
        return self.last(keras.ops.relu(self.first(inputs)))


def test_a_subclassed_model_comes_back_with_its_sample(tmp_path):
    source = Net()
    source(X[:, 0, 0])
    model = quantize_aware(source, "native", calibration=X[:, 0, 0])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again.predict(X[:, 0, 0], verbose=0), model.predict(X[:, 0, 0], verbose=0))
    np.testing.assert_array_equal(again._kept[0], model._kept[0])


def test_what_is_verified_is_what_the_model_predicts():
    x = np.random.default_rng(3).normal(size=(32, 6, 4)).astype("float32")
    keras.utils.set_random_seed(3)
    source = keras.Sequential([keras.Input((6, 4)), L.LSTM(5), L.Dense(3)])
    model = quantize_aware(source, "native", calibration=x)
    file = tflite_export.convert(model, "int8")
    found = tflite_export.verify(model, file, x)
    difference = file.predict(x) - model.predict(x, verbose=0)
    assert found.rmse == pytest.approx(np.sqrt(np.mean(difference**2)), abs=1e-9)


def test_names_of_nested_layers_in_the_report():
    inside = keras.Sequential([keras.Input((8, 8, 2)), L.Conv2D(3, 3, name="conv"), L.BatchNormalization(name="norm")])
    inside.name = "inside"
    inputs = keras.Input((8, 8, 2))
    model = quantize_aware(keras.Model(inputs, L.Flatten(name="flat")(inside(inputs))), "native")
    assert [entry.layer for entry in model.report] == ["inside.conv", "inside.norm", "flat"]
    with pytest.raises(ValueError, match=r"All layers of a nested model: re.compile\('inside.'\)"):
        quantize_aware(model.strip(), "native", layers={"inside": 4})


def test_the_samples_of_two_inputs_come_back_in_their_places(tmp_path):
    one, two = keras.Input((4,), name="one"), keras.Input((3,), name="two")
    source = keras.Model([two, one], L.Dense(2)(L.Concatenate()([one, two])))
    data = {"one": RANDOM.normal(size=(20, 4)).astype("float32"), "two": RANDOM.normal(size=(20, 3)).astype("float32")}
    model = quantize_aware(source, "native", calibration=data)
    model.save(tmp_path / "model.keras")
    kept = keras.models.load_model(tmp_path / "model.keras").__tflite_source__()["calibration"]
    assert {name: array.shape[1:] for name, array in kept.items()} == {"two": (3,), "one": (4,)}
    for name, array in kept.items():
        np.testing.assert_array_equal(array, data[name][: len(array)])


def test_a_batch_of_a_recurrent_layer_is_all_its_steps_of_time():
    source = keras.Sequential([keras.Input((5, 1)), L.SimpleRNN(1, activation="relu", name="rnn"), L.Dense(1)])
    source.get_layer("rnn").set_weights([np.ones((1, 1)), np.zeros((1, 1)), np.zeros(1)])  # the state is the input
    x = np.tile(np.array([1.0, 9.0, 4.0, 2.0, 0.5], "float32")[None, :, None], (8, 1, 1))
    model = quantize_aware(source, "native", observer="min_max")
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(((x, np.zeros((8, 1))) for _ in range(1)), steps_per_epoch=1, verbose=0)
    high = max(high for name, (_, high) in model.all_ranges().items() if name.startswith("rnn.state"))
    assert high == pytest.approx(9.0, rel=0.01)
