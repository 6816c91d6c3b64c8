"""The recipe on real digits: sparsity, accuracy, the models it must not touch, and a run that was cut off."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.kernels import find_kernels
from kdopt.criteria.base import CRITERIA
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.pipeline.prune_and_distill import Surviving, prune_and_distill, round_sparsities
from kdopt.pruning.prune import prune

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(width, name):
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
    x = layers.Add()([x, layers.Conv2D(width, 3, padding="same", name="body")(x)])
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(40, activation="relu", name="hidden")(x)
    return keras.Model(inputs, layers.Dense(10, name="out")(x), name=name)


@pytest.fixture(scope="module")
def trained(digit_images):
    """(student, teacher)"""
    keras.utils.set_random_seed(0)
    models = net(10, "student"), net(20, "teacher")
    for model, epochs in zip(models, (6, 8), strict=True):
        model.compile(keras.optimizers.Adam(3e-3), LOSS, metrics=["accuracy"], jit_compile=False)
        model.fit(*digit_images[0], epochs=epochs, verbose=0)
    return models


def zeros(model, names=("stem", "body", "hidden", "out")):
    return [np.mean(model.get_layer(name).kernel.numpy() == 0) for name in names]


def small(data, count):
    return data[0][:count], data[1][:count]


def test_reaches_its_sparsity_and_keeps_the_accuracy(digit_images, trained):
    student, teacher = trained
    before = [w.copy() for model in trained for w in model.get_weights()]
    fits, masks = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            fits[-1].append(int(self.model.optimizer.iterations))

        def on_epoch_end(self, epoch, logs=None):
            masks.append(self.model.student.get_layer("hidden").kernel.numpy() != 0)
            assert {"student_loss", "soft_targets_loss", "accuracy"} <= set(logs)

    def callbacks(number):
        fits.append([])
        return [Watch()]

    report = prune_and_distill(
        student,
        teacher,
        digit_images[0],
        sparsity=0.9,
        rounds=2,
        epochs=6,
        loss=LOSS,
        optimizer=keras.optimizers.Adam(3e-3),
        validation_data=digit_images[1],
        callbacks=callbacks,
        progress=False,
    )
    first = 1 - 0.1**0.5
    for one, asked in zip(report.rounds, (first, 0.9), strict=True):
        assert one.sparsity == pytest.approx(asked, abs=1e-3)
    sizes = [student.get_layer(name).kernel.numpy().size for name in ("stem", "body", "hidden", "out")]
    assert zeros(report.model) == [round(0.9 * size) / size for size in sizes]
    assert [steps[0] for steps in fits] == [1, 1]  # a new optimizer each round
    assert all(np.array_equal(masks[0], mask) for mask in masks[:6])
    assert all(np.array_equal(masks[6], mask) for mask in masks[6:])
    assert not np.any(masks[6] & ~masks[0])  # what is gone stays gone

    assert report.start.value > 0.9
    assert report.rounds[-1].value > 0.93
    accuracy = np.mean(report.model.predict(digit_images[1][0], verbose=0).argmax(-1) == digit_images[1][1])
    assert report.rounds[-1].value == pytest.approx(accuracy, abs=1e-6)
    pruned_only = prune(student, 0.9)[0]
    one_shot = np.mean(pruned_only.predict(digit_images[1][0], verbose=0).argmax(-1) == digit_images[1][1])
    assert report.rounds[-1].value > one_shot + 0.2
    for now, then in zip([w for model in trained for w in model.get_weights()], before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_channels_a_foreign_criterion_chosen_layers_and_another_distiller(digit_images, trained):
    made = []

    def distill(student, teacher):
        made.append(Distiller(student=student, teacher=teacher, distillation_losses=[SoftTargets(2.0)]))
        return made[-1]

    report = prune_and_distill(
        *trained,
        small(digit_images[0], 320),
        sparsity=0.5,
        rounds=2,
        epochs=1,
        loss=LOSS,
        criterion="fpgm",
        pattern="channel",
        layers=[trained[0].get_layer("stem"), "body"],
        distill=distill,
        recalibrate=digit_images[0][0][:320],
        progress=False,
    )
    assert len(made) == 3  # one is tried before the first round
    assert zeros(report.model)[:2] == [0.5, 0.5]
    assert zeros(report.model)[2:] == zeros(trained[0])[2:]
    norm = next(layer for layer in report.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    dead = ~report.model.get_layer("stem").kernel.numpy().any(axis=(0, 1, 2))
    assert dead.sum() == 5
    assert not norm.gamma.numpy()[dead].any()
    assert not norm.beta.numpy()[dead].any()
    assert not norm.moving_mean.numpy()[dead].any()  # recalibrated: a dead channel has mean 0
    assert report.rounds[-1].value is None


def test_a_run_that_was_cut_off_ends_like_an_undisturbed_one(digit_images, trained, tmp_path):
    class CutOff(Exception):
        pass

    def run(folder, stop_at=None, **more):
        def callbacks(number):
            if number == stop_at:
                raise CutOff
            return []

        arguments = {"sparsity": 0.8, "rounds": 2, "epochs": 1, "loss": LOSS, "progress": False, **more}
        data, validation = small(digit_images[0], 320), small(digit_images[1], 200)
        return prune_and_distill(
            *trained, data, validation_data=validation, folder=folder, callbacks=callbacks, **arguments
        )

    undisturbed = run(None)
    with pytest.raises(CutOff):
        run(tmp_path, stop_at=2)
    resumed = run(tmp_path)
    for one, other in zip(undisturbed.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert [r.value for r in resumed.rounds] == pytest.approx([r.value for r in undisturbed.rounds])
    with pytest.raises(ValueError, match=r"made with something else: sparsities was .*0\.8.*, now .*0\.7"):
        run(tmp_path, sparsity=0.7)


def test_the_schedule_of_sparsity():
    assert round_sparsities(0.75, 2) == [0.5, 0.75]
    densities = 1 - np.array([0, *round_sparsities(0.97, 5)])
    np.testing.assert_allclose(densities[1:] / densities[:-1], 0.03**0.2)
    assert round_sparsities(0.9, 1) == [0.9]


def test_zeros_go_first_whatever_the_criterion_says():
    weights = np.array([[0.0, 3, -1], [0, 0, 2]])
    scores = Surviving(CRITERIA.get("random")).score(weights)
    assert np.array_equal(scores == 0, weights == 0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(8)])
    once = prune(model, 0.5, Surviving(CRITERIA.get("random")))[0]
    twice = prune(once, 0.75, Surviving(CRITERIA.get("random")))[0]
    assert np.mean(twice.layers[0].kernel.numpy() == 0) == 0.75
    assert Surviving(CRITERIA.get("taylor")).needs == "gradients"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1.0}, r"`sparsity` must be a fraction in \[0, 1\); got 1.0"),
        ({"sparsity": 0}, "which prunes nothing"),
        ({"rounds": 0}, "`rounds` must be an integer >= 1"),
        ({"epochs": 0}, "`epochs` must be an integer >= 1"),
        ({"criterion": "taylor"}, "pass `criterion_data=`"),
        ({"pattern": "n_m", "layers": ["hidden"]}, "reaches a sparsity of 0.5 at most"),
        ({"layers": ["nothing"]}, "There is no layer 'nothing'"),
        ({"train_data": iter([])}, "`train_data` is read in every round"),
        ({"distill": lambda student, teacher: student}, "must return a Distiller of the student it gets"),
        ({"patience": 1}, "need a metric"),
        ({"validation_data": iter([])}, "can be read only once"),
        ({"optimizer": "adm"}, "adm"),
        ({"pateince": 1}, "pateince"),
    ],
)
def test_bad_arguments(trained, arguments, message):
    student, teacher = trained
    data = (np.zeros((4, 8, 8, 1), "float32"), np.zeros(4))
    given = {"train_data": data, "sparsity": 0.8, "loss": LOSS, "progress": False, **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        prune_and_distill(student, teacher, **given)


def test_each_round_has_a_seed_of_its_own_and_sample_weights_arrive():
    """With weights of zero nothing is learned; with the same seed twice the rounds would draw the same numbers."""
    x, y = np.ones((16, 4), "float32"), np.zeros(16, "int32")
    student, teacher = (keras.Sequential([keras.Input((4,)), layers.Dense(2)]) for _ in range(2))
    drawn = []

    class Draw(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            drawn.append(float(np.random.default_rng(np.random.randint(1 << 30)).random()))

    report = prune_and_distill(
        student,
        teacher,
        (x, y, np.zeros(16)),
        sparsity=0.5,
        loss=LOSS,
        rounds=2,
        epochs=1,
        optimizer=keras.optimizers.SGD(1.0),
        callbacks=lambda number: [Draw()],
        progress=False,
    )
    assert len(set(drawn)) == 2
    kept = report.model.layers[0].kernel.numpy()
    np.testing.assert_array_equal(kept[kept != 0], student.layers[0].kernel.numpy()[kept != 0])


def test_scores_of_data_leave_zeros_the_first_to_go():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign([[0, 1], [2, 3], [0, 4], [5, 6]])
    view = find_kernels(model)[0]
    scores = Surviving(CRITERIA.get("wanda")).scores(model, view, np.ones((8, 4), "float32"))
    assert np.array_equal(scores[0] == 0, model.layers[0].kernel.numpy() == 0)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    plain.compile("sgd", "mse")
    fisher = Surviving(CRITERIA.get("gradient_norm"))
    plain.layers[0].kernel.assign([[0, 1], [2, 3], [0, 4], [5, 6]])
    found = fisher.scores(plain, find_kernels(plain)[0], (np.ones((8, 4), "float32"), np.ones((8, 2), "float32")))
    assert np.array_equal(found[0] == 0, plain.layers[0].kernel.numpy() == 0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with all its rounds: what it was made of, and how."""
    x, y = np.ones((16, 4), "float32"), np.zeros(16, "int32")
    net = [keras.Input((4,)), layers.Dense(3, name="a"), layers.Dense(2, name="b")]
    student, teacher = keras.Sequential(net), keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    folder = tmp_path_factory.mktemp("finished")
    arguments = {"sparsity": 0.5, "loss": LOSS, "rounds": 1, "epochs": 1, "folder": folder, "progress": False}
    prune_and_distill(student, teacher, (x, y), **arguments)
    return (student, teacher, (x, y)), arguments


@pytest.mark.parametrize("other", [{"epochs": 2}, {"layers": ["a"]}, {"batch_size": 4}, {"optimizer": "sgd"}], ids=str)
def test_a_folder_of_another_recipe_is_refused(finished, other):
    models_and_data, arguments = finished
    with pytest.raises(ValueError, match="was made with something else"):
        prune_and_distill(*models_and_data, **{**arguments, **other})


def test_an_allocation_with_its_own_numbers_is_refused(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="a")])
    with pytest.raises(ValueError, match="one that shares it out"):
        prune_and_distill(
            model, model, (np.ones((4, 4)), np.ones(4)), sparsity=0.5, loss=LOSS, allocation={"a": 0.5}, folder=tmp_path
        )
    assert not list(tmp_path.iterdir())
