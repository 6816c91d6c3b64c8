"""What is strange about representative data."""

import warnings

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.sources.quality import findings

layers = keras.layers
PIXELS = np.random.default_rng(0).integers(0, 256, (128, 12, 12, 3)).astype("float32")


@pytest.fixture(scope="module")
def trained():
    """Trained on pixels 0..1, so that BatchNormalization knows their scale."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, name="conv")(image)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.5, name="norm")(x))
    x = layers.Conv2D(8, 3, activation="relu", name="second")(x)
    model = keras.Model(image, layers.Dense(4, name="head")(layers.GlobalAveragePooling2D()(x)))
    model.compile("sgd", "mse")
    model.fit(PIXELS / 255, np.zeros((128, 4)), batch_size=32, epochs=5, verbose=0)
    return model


def kinds(diagnosis):
    return [finding.kind for finding in diagnosis.findings]


def test_good_data(trained):
    found = tflite_export.diagnose(trained, PIXELS / 255)
    assert found.healthy
    assert str(found) == "128 samples of representative data: nothing strange was found"


@pytest.mark.parametrize("factor", [1.0, 1 / 255**2])
def test_another_scale_is_told_from_the_statistics_of_training(trained, factor):
    found = tflite_export.diagnose(trained, PIXELS * factor)
    assert "scale" in kinds(found)
    scale = next(finding for finding in found.findings if finding.where == "norm")
    assert f"{factor * 255:.0f}"[:2] in scale.problem or "0.00" in scale.problem
    assert "'norm': what comes in spreads" in str(found)


def test_a_net_without_normalization():
    image = keras.Input((12, 12, 3), name="image")
    plain = keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.Conv2D(4, 3)(image))))
    assert kinds(tflite_export.diagnose(plain, PIXELS)) == ["scale"]
    assert tflite_export.diagnose(plain, PIXELS / 255).healthy
    scaled = keras.Sequential([image, layers.Rescaling(1 / 255), plain])
    assert tflite_export.diagnose(scaled, PIXELS).healthy


def test_few_alike_constant_and_outliers(trained):
    assert kinds(tflite_export.diagnose(trained, PIXELS[:20] / 255)) == ["few"]
    alike = np.repeat(PIXELS[:1] / 255, 40, axis=0)
    assert "alike" in kinds(tflite_export.diagnose(trained, alike))
    assert {"alike", "constant"} <= set(kinds(tflite_export.diagnose(trained, np.zeros_like(PIXELS))))
    wild = PIXELS / 255
    wild[3, 2, 1, 0] = 90.0
    found = tflite_export.diagnose(trained, wild)
    assert [finding.where for finding in found.findings if finding.kind == "outliers"] == ["image"]
    assert "sample 3 reaches 90, half of the samples no more than 1" in str(found)


def test_channels_that_are_never_active(trained):
    dead = keras.models.clone_model(trained)
    dead.set_weights(trained.get_weights())
    kernel, bias = trained.get_layer("second").get_weights()
    bias[:5] = -1e3
    dead.get_layer("second").set_weights([kernel, bias])
    (finding,) = tflite_export.diagnose(dead, PIXELS / 255).findings
    assert (finding.kind, finding.where) == ("never active", "second")
    assert finding.problem.startswith("5 of 8 channels give the same number")
    bias[1:5] = 1.0
    dead.get_layer("second").set_weights([kernel, bias])
    assert tflite_export.diagnose(dead, PIXELS / 255).healthy  # one of eight


def test_what_cannot_be_looked_at_is_told():
    matrix = keras.Input((3, 3))
    model = keras.Model(matrix, keras.ops.cholesky(matrix))
    data = np.stack([np.eye(3, dtype="float32") * (2 + place) for place in range(40)])
    (finding,) = tflite_export.diagnose(model, data).findings
    assert finding.kind == "not looked at"
    assert "Cholesky" in finding.problem


def test_integers_and_several_inputs():
    tokens, number = np.random.default_rng(0).integers(0, 9, (50, 6)), np.ones((50, 1), "float32")
    assert [finding.where for finding in findings({"tokens": tokens, "number": number})] == ["number"]


def test_convert_warns_where_ranges_are_learned(dense):
    data = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
    with pytest.warns(UserWarning, match="`representative_data`: 8 samples of representative data: ranges will be"):
        tflite_export.convert(dense, "int8", data[:8])
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite_export.convert(dense, "int8", data)
        tflite_export.convert(dense, "float16", data[:8])


def test_convert_tells_that_data_are_on_another_scale():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()])
    pixels = np.random.default_rng(0).random((64, 6, 6, 3)).astype("float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite_export.convert(model, "int8", 255 * pixels)  # its normalization was never trained
    model.layers[-1].momentum = 0.0
    model(pixels, training=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tflite_export.convert(model, "int8", pixels)
        folded = tflite_export.fold_processing(model, rescale=(1 / 255, 0), uint8_input=True)
        tflite_export.convert(folded, "int8", (255 * pixels).astype("uint8"))
    with pytest.warns(UserWarning, match=r"'batch_normalization.*times as far as in training"):
        tflite_export.convert(model, "int8", 255 * pixels)
