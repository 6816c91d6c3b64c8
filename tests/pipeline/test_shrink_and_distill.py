"""The recipe on real digits: it gets smaller in every round, keeps its accuracy, and continues after a kill."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core import measure
from kdopt.pipeline import shrink_and_distill
from kdopt.pruning.structural import ReachedError

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def trained(digit_images):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Add()([x, layers.Conv2D(16, 3, padding="same", name="body")(x)])
    x = layers.Dense(40, activation="relu", name="hidden")(layers.Flatten()(layers.MaxPooling2D()(x)))
    model = keras.Model(inputs, layers.Dense(10, name="out")(x), name="student")
    model.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"], jit_compile=False)
    model.fit(*digit_images[0], epochs=5, verbose=0)
    return model


def small(data, count):
    return data[0][:count], data[1][:count]


def test_the_student_is_narrower_after_each_round_and_still_good(digit_images, trained, tmp_path, capsys):
    before, value = trained.get_weights(), trained.evaluate(*digit_images[1], verbose=0)[1]
    report = shrink_and_distill(
        trained, trained, digit_images[0], macs=0.25, loss=LOSS, rounds=2, epochs=3, validation_data=digit_images[1],
        optimizer=keras.optimizers.Adam(2e-3), channels={"scope": "layer"}, folder=tmp_path,
    )  # fmt: skip
    whole = measure.macs(trained)
    assert 0.15 * whole < measure.macs(report.model) <= 0.25 * whole
    first = keras.models.load_model(tmp_path / "round_001.keras", compile=False)
    assert 0.4 * whole < measure.macs(first) <= 0.5 * whole  # of what is left, each round takes the same share
    counts = [one.parameters for one in (report.start, *report.rounds)]
    assert report.rounds[-1].macs == measure.macs(report.model)
    assert f"{measure.macs(report.model):,} MACs" in str(report)
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == measure.parameters(report.model)
    assert report.rounds[-1].value > value - 0.03
    assert report.model.get_layer("stem").filters < 12
    assert "round  2" in capsys.readouterr().out
    for one, other in zip(before, trained.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("target", [pytest.param({"parameters": 0.5}, marks=pytest.mark.slow), {"size_bytes": 12000}])
def test_other_targets_and_a_criterion_with_data(digit_images, trained, target):
    report = shrink_and_distill(
        trained, trained, small(digit_images[0], 100), **target, loss=LOSS, rounds=2, epochs=1, criterion="taylor",
        criterion_data=small(digit_images[0], 64), channels={"exclude": ["stem"]}, progress=False,
    )  # fmt: skip
    ((name, share),) = target.items()
    limit = share if share > 1 else share * getattr(measure, name)(trained)
    assert getattr(measure, name)(report.model) <= limit
    assert report.model.get_layer("stem").filters == 16


@pytest.mark.slow
def test_a_run_that_was_cut_off_goes_on(digit_images, trained, tmp_path):
    class Killed(RuntimeError):
        pass

    def watch(number):
        if number == 2 and not (tmp_path / "again").exists():
            (tmp_path / "again").touch()
            raise Killed
        return []

    arguments = {"macs": 0.4, "loss": LOSS, "rounds": 2, "epochs": 1, "callbacks": watch, "progress": False}
    data = small(digit_images[0], 200)
    with pytest.raises(Killed):
        shrink_and_distill(trained, trained, data, **arguments, folder=tmp_path / "rounds")
    continued = shrink_and_distill(trained, trained, data, **arguments, folder=tmp_path / "rounds")
    whole = shrink_and_distill(trained, trained, data, **arguments)
    for one, other in zip(continued.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="recalibrate"):
        shrink_and_distill(trained, trained, data, **arguments, folder=tmp_path / "rounds", recalibrate=False)
    with pytest.raises(ValueError, match="target"):
        shrink_and_distill(trained, trained, data, **{**arguments, "macs": 0.3}, folder=tmp_path / "rounds")


def test_bad_arguments_are_refused_before_anything_is_trained(digit_images, trained):
    def run(**changes):
        arguments = {"loss": LOSS, "macs": 0.5, "callbacks": lambda number: pytest.fail("it trained"), **changes}
        shrink_and_distill(trained, trained, small(digit_images[0], 50), **arguments)

    with pytest.raises(ValueError, match="Give one target of macs, parameters, size_bytes"):
        run(macs=None)
    with pytest.raises(ValueError, match="Give one target"):
        run(parameters=0.5)
    with pytest.raises(ReachedError, match="cannot be reached"):
        run(macs=1e-5)
    with pytest.raises(ValueError, match="criterion='mask' takes what is zero already"):
        run(criterion="mask")
    with pytest.raises(ValueError, match="needs samples: pass `criterion_data="):
        run(criterion="taylor")
    with pytest.raises(ValueError, match="`exclude` in `channels` must have names of layers"):
        run(channels={"exclude": [trained.get_layer("stem")]})
    with pytest.raises(TypeError, match="'criterion', 'macs' in `channels` are arguments of their own"):
        run(channels={"criterion": "l2", "macs": 0.5})
    with pytest.raises(TypeError, match="has no 'evaluate'"):
        run(evaluate=len)
    with pytest.raises((TypeError, ValueError)):
        run(recalibrate=3)
    with pytest.raises(ReachedError):
        run(channels={"layers": lambda view: view.name == "hidden"}, macs=0.1)
    with pytest.raises(ValueError, match="rounds"):
        run(rounds=0)


@pytest.mark.parametrize("arguments", [{}, pytest.param({"recalibrate": False}, marks=pytest.mark.slow)], ids=str)
def test_statistics_are_those_of_the_training_data(digit_images, trained, arguments):
    """They are what the last model sees, not what is left of a moving average."""
    data = small(digit_images[0], 64)
    report = shrink_and_distill(
        trained, trained, data, macs=0.6, loss=LOSS, rounds=1, epochs=1, progress=False, **arguments
    )
    stem = next(layer for layer in report.model.layers if isinstance(layer, layers.Conv2D))
    norm = next(layer for layer in report.model.layers if isinstance(layer, layers.BatchNormalization))
    seen = np.asarray(stem(data[0])).mean((0, 1, 2))
    moved = np.abs(norm.moving_mean.numpy() - seen).max()
    assert moved > 1e-3 if arguments else moved < 1e-5
