"""Discriminators: their step and the student's by hand, for linear ones, and what is saved of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from bound_losses import assert_gradient, bound, computed, gradient, normal, values_of
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.adversarial import AdversarialFeature, AdversarialLogits


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Linear:
    """D(x) = x . w + b, trained by gradient descent with momentum, in float64."""

    def __init__(self, dense, rate, momentum):
        self.w, self.b = (np.asarray(weight, "float64") for weight in dense.weights)
        self.rate, self.momentum = rate, momentum
        self.velocity = [np.zeros_like(self.w), np.zeros_like(self.b)]

    def __call__(self, x):
        return (np.asarray(x, "float64") @ self.w + self.b)[..., 0]

    def wrong(self, teacher, student):
        return softplus(-self(teacher)) + softplus(self(student))

    def learn(self, teacher, student):
        """One step; returns what it cost before."""
        cost = self.wrong(teacher, student)
        slope_t, slope_s = -sigmoid(-self(teacher)), sigmoid(self(student))
        of_w = np.mean(slope_t[:, None] * teacher + slope_s[:, None] * student, axis=0)[:, None]
        of_b = np.mean(slope_t + slope_s, keepdims=True)
        self.velocity = [self.momentum * v - self.rate * g for v, g in zip(self.velocity, (of_w, of_b), strict=True)]
        self.w, self.b = self.w + self.velocity[0], self.b + self.velocity[1]
        return cost


def linear_game(**options):
    dense = layers.Dense(1)
    loss = AdversarialLogits(discriminator=dense, optimizer=keras.optimizers.SGD(0.5, momentum=0.9), **options)
    loss.build_for([3])
    return loss, Linear(dense, 0.5, 0.9), dense


def test_the_discriminators_steps_and_the_students_value():
    loss, oracle, dense = linear_game()
    loss.training = True
    for step in range(3):
        teacher, student = normal(6, 3, seed=step), normal(6, 3, seed=step + 9) + 1
        found = loss.compute_loss(teacher, student)
        cost = oracle.learn(teacher, student)
        np.testing.assert_allclose(dense.kernel, oracle.w, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(dense.bias, oracle.b, rtol=1e-4, atol=1e-6)
        # The discriminator has learned before it judges the student.
        np.testing.assert_allclose(found, softplus(-oracle(student)), rtol=1e-4)
        np.testing.assert_allclose(loss.metrics[0].result(), cost.mean(), rtol=1e-4)
        loss.metrics[0].reset_state()
    assert loss.metrics[0].name == "adversarial_logits_discriminator_loss"


def test_the_students_gradient_is_that_against_the_discriminator_after_its_step():
    loss, oracle, _ = linear_game()
    loss.training = True
    teacher, student = normal(6, 3, seed=1), normal(6, 3, seed=2)
    found = gradient(lambda s: loss.compute_loss(teacher, s), student)
    oracle.learn(teacher, student)
    expected = -sigmoid(-oracle(student))[:, None] * oracle.w[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_outside_of_training_the_discriminator_is_measured_and_stays():
    loss, oracle, dense = linear_game()
    teacher, student = normal(2, 3, 3, seed=1), normal(2, 3, 3, seed=2)
    found = loss.compute_loss(teacher, student)
    assert found.shape == (2, 3)  # position by position
    np.testing.assert_allclose(found, softplus(-oracle(student)), rtol=1e-4)
    np.testing.assert_array_equal(dense.kernel, oracle.w.astype("float32"))
    np.testing.assert_allclose(loss.metrics[0].result(), oracle.wrong(teacher, student).mean(), rtol=1e-4)


def test_masked_positions_teach_the_discriminator_nothing():
    loss, oracle, dense = linear_game()
    loss.training = True
    teacher, student = normal(2, 3, 3, seed=1), normal(2, 3, 3, seed=2)
    mask = np.array([[True, True, False], [True, False, False]])
    loss.compute_loss(teacher, student, mask=mask)
    cost = oracle.learn(teacher[mask], student[mask])
    np.testing.assert_allclose(dense.kernel, oracle.w, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss.metrics[0].result(), cost.mean(), rtol=1e-4)


def test_several_logits_are_averaged():
    judge = layers.Conv2D(1, 2)
    teacher, student = normal(2, 4, 3, 5, seed=1), normal(2, 4, 3, 5, seed=2)
    loss = AdversarialFeature("a", discriminator=judge)
    found = computed(loss, teacher, student)
    expected = np.asarray(judge(student)).reshape(2, -1).mean(axis=1)
    np.testing.assert_allclose(found, softplus(-expected), rtol=1e-4)


def test_features_of_other_widths_and_several_taps():
    teacher = [normal(4, 6, 6, 5, seed=1), normal(4, 4, seed=2)]
    student = [normal(4, 3, 3, 2, seed=3), normal(4, 3, seed=4)]
    loss = bound(AdversarialFeature("a", optimizer=keras.optimizers.SGD(0.1)), teacher, student)
    (maps, first, vectors, second), projectors = loss.extras, loss.parts
    assert first is not second
    assert [type(maps.layers[0]), type(vectors.layers[0])] == [layers.Conv2D, layers.Dense]
    before = [np.array(judge.layers[0].kernel) for judge in (maps, vectors)]
    loss.training = True
    found = values_of(loss, teacher, student)
    np.testing.assert_allclose(found, softplus(-np.asarray(maps(projectors[0](student[0])))[:, 0]), rtol=1e-4)
    for kernel, judge in zip(before, (maps, vectors), strict=True):
        assert np.abs(np.asarray(judge.layers[0].kernel) - kernel).max() > 0
    loss.training = False
    assert_gradient(
        lambda s: values_of(loss, teacher, [s, student[1]]),
        lambda s: np.asarray(values_of(loss, teacher, [s.astype("float32"), student[1]]), "float64"),
        student[0],
        rtol=1e-2,
        step=0.02,
    )
    assert [metric.name[-20:] for metric in loss.metrics] == ["0_discriminator_loss", "1_discriminator_loss"]


def net(seed, width):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(width, activation="relu")(inputs)))


def distiller_of(seed):
    judge = keras.Sequential([layers.Dense(4, activation="tanh"), layers.BatchNormalization(), layers.Dense(1)])
    losses = [AdversarialFeature(optimizer="adam"), AdversarialLogits(discriminator=judge, optimizer="adam")]
    made = Distiller(student=net(seed, 5), teacher=net(2, 7), distillation_losses=losses, student_loss_weight=0.0)
    made.compile(keras.optimizers.SGD(0.01))
    return made


def hidden(distiller):
    """All that the discriminators and their optimizers hold."""
    return [np.array(v) for loss in distiller.distillation_losses for extra in loss.extras for v in extra.variables]


def assert_equal_arrays(found, expected):
    assert len(found) == len(expected) > 20
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_discriminators_are_trained_by_their_own_optimizers_and_saved(tmp_path):
    x = normal(16, 6)
    distiller = distiller_of(1)
    before, teacher = hidden(distiller), distiller.teacher.get_weights()
    logs = distiller.fit(x, batch_size=8, epochs=2, verbose=0).history
    assert {"adversarial_feature_discriminator_loss", "adversarial_logits_discriminator_loss"} < set(logs)
    own = {id(v) for loss in distiller.distillation_losses for extra in loss.extras for v in extra.variables}
    assert not own & {id(v) for v in (*distiller.trainable_variables, *distiller.variables)}
    for judge, optimizer in (loss.extras for loss in distiller.distillation_losses):
        assert int(optimizer.iterations) == 4
        assert optimizer is not distiller.optimizer
        assert all(variable.trainable for variable in judge.trainable_variables)
    assert sum(np.any(a != b) for a, b in zip(hidden(distiller), before, strict=True)) > 20
    for found, expected in zip(distiller.teacher.get_weights(), teacher, strict=True):
        np.testing.assert_array_equal(found, expected)

    distiller.save(tmp_path / "distiller.keras")
    loaded = keras.saving.load_model(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "distiller.weights.h5")
    other = distiller_of(5)
    other.load_weights(tmp_path / "distiller.weights.h5")
    for one in (loaded, other):
        assert_equal_arrays(hidden(one), hidden(distiller))
    batch = (keras.ops.convert_to_tensor(x),)
    for one in (distiller, loaded):
        one.reset_metrics()
    steps = [{name: float(v) for name, v in one.train_step(batch).items()} for one in (distiller, loaded)]
    assert steps[1] == pytest.approx(steps[0], rel=1e-4)  # the next step is the same one
    for found, expected in zip(hidden(loaded), hidden(distiller), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_losses_made_outside_of_a_strategys_scope_train_inside():
    losses = [AdversarialFeature(), AdversarialLogits()]
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        made = Distiller(student=net(1, 5), teacher=net(2, 7), distillation_losses=losses, student_loss_weight=0.0)
        made.compile(keras.optimizers.SGD(0.01))
    made.fit(normal(8, 6), batch_size=8, verbose=0)
    assert [int(keras.ops.convert_to_numpy(loss.extras[1].iterations)) for loss in losses] == [1, 1]
    assert [loss.get_config()["optimizer"] for loss in losses] == ["adam", "adam"]


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs an optimizer of its own"):
        AdversarialLogits(optimizer=None)
    with pytest.raises(ValueError, match="nonsense"):
        AdversarialFeature(optimizer="nonsense")
    with pytest.raises(TypeError, match="`discriminator` must be 'auto'"):
        AdversarialFeature(discriminator=len)
    with pytest.raises(ValueError, match="One discriminator cannot judge 2 outputs"):
        AdversarialLogits().build_for([3, 4])
    two = [normal(2, 4), normal(2, 4)]
    with pytest.raises(ValueError, match="One discriminator cannot judge 2 pairs"):
        bound(AdversarialFeature("a", discriminator=layers.Dense(1)), two, two)
