"""Losses on inner layers in the Distiller: one pass of each model, projectors, what is left behind."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, hard_loss
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.feature import FeatureLoss
from kdopt.distillation.losses.hint import CosineFeature, Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.losses.relational import RelationalDistance


def net(seed, width, kind="functional", side=8):
    """conv - BatchNormalization - ReLU (`a`), the same strided (`b`), head of three logits."""
    keras.utils.set_random_seed(seed)

    def block(filters, strides, name):
        return [
            layers.Conv2D(filters, 3, strides, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(name=name),
        ]

    stack = [*block(width, 1, "a"), *block(2 * width, 2, "b"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    if kind == "subclassed":
        return Stack(stack)
    inputs = keras.Input((side, side, 2))
    if kind == "sequential":
        return keras.Sequential([inputs, *stack])
    if kind == "nested":
        body = keras.Sequential([keras.Input((side, side, 2)), *stack[:6]], name="body")
        return keras.Model(inputs, stack[7](stack[6](body(inputs))))
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


class Stack(keras.Model):
    output_activation = "linear"

    def __init__(self, stack):
        super().__init__()
        self.stack = stack

    def call(self, x, training=None):
        for layer in self.stack:
            x = layer(x, training=training) if isinstance(layer, layers.BatchNormalization) else layer(x)
        return x


def images(samples=16, seed=0, side=8):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(samples, side, side, 2)).astype("float32"), generator.integers(0, 3, samples)


def inner(model, name, x):
    """The tensor of a layer in inference, by running the layers one by one."""
    found = model.get_layer("body") if any(layer.name == "body" for layer in model.layers) else model
    for layer in getattr(found, "stack", None) or found.layers:
        if not isinstance(layer, layers.InputLayer):
            x = layer(x)
        if layer.name == name:
            return np.asarray(x, "float64")
    raise AssertionError(name)


@pytest.mark.parametrize("kind", ["functional", "sequential", "nested", "subclassed"])
def test_the_loss_is_that_of_the_inner_tensors(kind):
    student, teacher = net(1, 4, kind), net(2, 4, kind)
    x, y = images()
    student(x), teacher(x)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[Hint("b"), AttentionTransfer("a")])
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    t, s = (inner(model, "b", x) for model in (teacher, student))
    np.testing.assert_allclose(logs["hint_loss"], np.mean((t - s) ** 2), rtol=1e-4)
    maps = [(inner(model, "a", x) ** 2).sum(-1).reshape(16, -1) for model in (teacher, student)]
    maps = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in maps]
    np.testing.assert_allclose(logs["attention_transfer_loss"], ((maps[0] - maps[1]) ** 2).sum(1).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        logs["loss"],
        0.5 * logs["student_loss"] + 0.5 * (logs["hint_loss"] + logs["attention_transfer_loss"]),
        rtol=1e-5,
    )


class Counting(layers.Layer):
    """Counts, at run time, how often it runs."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.runs = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.runs.assign_add(1.0)
        return x


def counted(width, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(width, name="inner", activation="relu")(Counting(name="counting")(inputs))
    return keras.Model(inputs, layers.Dense(3)(x))


@pytest.mark.parametrize("losses", [1, 5])
def test_the_student_runs_once_a_step_whatever_the_losses(losses):
    student, teacher = counted(4, 1), counted(8, 2)
    given = [SoftTargets(), Hint("inner"), CosineFeature("inner"), RelationalDistance("inner"), RelationalDistance()]
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=given[:losses])
    distiller.compile("sgd", loss=hard_loss())
    x, y = data(64)
    distiller.fit(x, y, batch_size=16, epochs=2, verbose=0)
    assert float(student.get_layer("counting").runs) == 8
    assert float(teacher.get_layer("counting").runs) == 0  # it ran, and kept no trace


def test_projectors_are_trained_beside_the_student_and_are_none_of_its_layers():
    student, teacher = net(1, 2), net(2, 4)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint(["a", "b"]))
    own = {id(variable) for variable in student.variables}
    extra = [variable for variable in distiller.trainable_variables if id(variable) not in own]
    assert [tuple(variable.shape) for variable in extra] == [(2, 4), (4,), (4, 8), (8,)]
    assert not any(layer.name.startswith("hint") for layer in distiller._flatten_layers())
    before = [np.array(variable) for variable in extra]
    distiller.compile(keras.optimizers.SGD(0.1), loss=hard_loss())
    x, y = images()
    losses = distiller.fit(x, y, epochs=8, verbose=0).history["hint_loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all(not np.allclose(a, b) for a, b in zip(before, extra, strict=True))
    assert len(student.variables) == len(net(1, 2).variables)


def test_a_projector_step_follows_the_gradient():
    """One SGD step on a linear student with a projector, against the formula of the gradient."""
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((6,)), layers.Dense(2, use_bias=False, name="f"), layers.Dense(3)])
    teacher = keras.Sequential([keras.Input((6,)), layers.Dense(4, use_bias=False, name="f"), layers.Dense(3)])
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("f"), student_loss_weight=0.0)
    w, r = (np.array(v, "float64") for v in (student.layers[0].kernel, distiller.trainable_variables[-2]))
    x, _ = data()
    distiller.compile(keras.optimizers.SGD(0.5))
    distiller.fit(x, batch_size=16, verbose=0)
    error = 2 * (x @ w @ r - x @ np.array(teacher.layers[0].kernel)) / (16 * 4)
    np.testing.assert_allclose(student.layers[0].kernel, w - 0.5 * x.T @ error @ r.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(distiller.trainable_variables[-2], r - 0.5 * (x @ w).T @ error, rtol=1e-4, atol=1e-6)


def test_given_projectors_and_none():
    student, teacher = net(1, 2), net(2, 4)
    own = keras.Sequential([layers.Conv2D(8, 3, padding="same", use_bias=False), layers.BatchNormalization()])
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("b", projector=own))
    distiller.compile("adam", loss=hard_loss())
    x, y = images()
    moving = np.array(own.layers[1].moving_mean)
    distiller.fit(x, y, verbose=0)
    assert not np.allclose(moving, own.layers[1].moving_mean)  # it runs in training mode
    with pytest.raises(ValueError, match=r"4 channels, 'b' of the teacher 8, and `projector=None`"):
        Distiller(student=student, teacher=teacher, distillation_losses=Hint("b", projector=None))
    with pytest.raises(ValueError, match="1 projectors for 2 pairs"):
        Distiller(student=student, teacher=teacher, distillation_losses=Hint(["a", "b"], projector=layers.Dense(8)))
    wrong = Distiller(student=student, teacher=teacher, distillation_losses=Hint("b", projector=layers.Dense(5)))
    wrong.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match="gives 5 channels, the teacher has 8"):
        wrong.fit(x, y, verbose=0)


def test_unequal_resolutions_and_a_teacher_with_larger_images():
    student, teacher = net(1, 4, side=8), net(2, 4, side=16)
    x, y = images()
    larger = layers.Resizing(16, 16)
    distiller = Distiller(
        student=student, teacher=teacher, teacher_preprocessing=larger, distillation_losses=[SoftTargets(), Hint("b")]
    )
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    t, s = inner(teacher, "b", larger(x)), inner(student, "b", x)
    pooled = t.reshape(16, 4, 2, 4, 2, 8).mean((2, 4))
    np.testing.assert_allclose(logs["hint_loss"], np.mean((pooled - s) ** 2), rtol=1e-4)
    with pytest.raises(ValueError, match="teacher_preprocessing"):
        Distiller(student=student, teacher=teacher)


@pytest.mark.parametrize("head", [pytest.param(layers.Dense(7), marks=pytest.mark.slow), layers.Activation("linear")])
def test_teachers_of_other_classes_or_without_a_head_teach_inner_layers(head, tmp_path):
    student, whole = net(1, 4), net(2, 8)
    teacher = keras.Model(whole.inputs, head(whole.get_layer("b").output))
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("b"), distillation_loss_weights=2)
    distiller.compile("sgd", loss=hard_loss())
    x, y = images()
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)
    kernel = np.asarray(distiller._own_parts()[0].kernel)
    expected = np.mean((inner(student, "b", x) @ kernel - inner(whole, "b", x)) ** 2)
    np.testing.assert_allclose(found["hint_loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(found["loss"], 0.5 * found["student_loss"] + 0.5 * 2.0 * expected, rtol=1e-4)
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    again = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(again.evaluate(x, y, verbose=0), distiller.evaluate(x, y, verbose=0), rtol=1e-5)
    whole.layers[1].bias.assign(np.full(8, np.nan))
    with pytest.raises(ValueError, match="gives NaN"):
        distiller.fit(x, y, verbose=0)


def test_stages_with_another_depth_are_paired_by_resolution():
    teacher = net(2, 4)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", name="full")(inputs)
    x = layers.Conv2D(8, 3, 2, padding="same", name="half")(x)
    x = layers.Conv2D(8, 3, 2, padding="same", name="quarter")(x)
    student = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint())
    term = distiller._lesson.knowledge.terms[0][0]
    assert [tap.name for tap in term.student_taps] == ["full", "half"]
    assert [tap.name for tap in term.teacher_taps] == ["a", "b"]
    with pytest.raises(ValueError, match="pairs the taps .* there are 3 in the student"):
        Distiller(student=student, teacher=teacher, distillation_losses=Hint(["full", "half", "quarter"], ["a", "b"]))


def test_a_tap_that_is_not_there_and_a_wrong_rank():
    with pytest.raises(ValueError, match=r"Nothing to tap in the teacher .* for 'c'"):
        Distiller(student=net(1, 4), teacher=net(2, 4), distillation_losses=Hint("a", "c"))
    with pytest.raises(ValueError, match="compares tensors of rank 3 or 4"):
        Distiller(student=net(1, 4), teacher=net(2, 4), distillation_losses=AttentionTransfer(-1))


def test_sample_weights_reach_features():
    student, teacher = net(1, 4), net(2, 4)
    x, y = images()
    weight = np.linspace(0, 3, 16).astype("float32")
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("b"))
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, y, sample_weight=weight, verbose=0, return_dict=True)
    each = ((inner(teacher, "b", x) - inner(student, "b", x)) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(logs["hint_loss"], (weight * each).mean(), rtol=1e-4)


@pytest.mark.parametrize("how", [{"jit_compile": True}, {"steps_per_execution": 2}, {"run_eagerly": True}])
def test_every_way_to_run_a_step_trains_alike(how):
    def train(**options):
        student, teacher = net(1, 2), net(2, 4)
        given = [SoftTargets(), Hint("b"), RelationalDistance()]
        distiller = Distiller(student=student, teacher=teacher, distillation_losses=given)
        distiller.compile(keras.optimizers.SGD(0.05), loss=hard_loss(), **options)
        x, y = images(32)
        history = distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0).history
        return history["hint_loss"][0], [np.array(v) for v in student.trainable_variables]

    expected, got = train(), train(**how)
    assert got[0] == pytest.approx(expected[0], rel=1e-3)
    for ours, theirs in zip(got[1], expected[1], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)


def test_mixed_float16_with_features():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student, teacher = net(1, 2), net(2, 4)
        distiller = Distiller(student=student, teacher=teacher, distillation_losses=[SoftTargets(), Hint("b")])
    finally:
        keras.config.set_dtype_policy("float32")
    distiller.compile(keras.optimizers.Adam(0.01), loss=hard_loss())
    x, y = images()
    losses = distiller.fit(x, y, batch_size=16, epochs=10, verbose=0).history["hint_loss"]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_saved_and_loaded_with_projectors(tmp_path):
    x, y = images()
    distiller = Distiller(student=net(1, 2), teacher=net(2, 4), distillation_losses=[Hint("b", name="h")])
    distiller.compile("adam", loss=hard_loss())
    distiller.fit(x, y, verbose=0)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(distiller.evaluate(x, y, verbose=0), rel=1e-5)
    for model in (distiller, loaded):
        model.fit(x, y, batch_size=16, verbose=0)
    for ours, theirs in zip(loaded.trainable_variables, distiller.trainable_variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@keras.saving.register_keras_serializable("tests_features")
class Plain(Stack):
    """A subclassed student that can be saved."""

    def __init__(self, width=2):
        super().__init__([layers.Conv2D(width, 3, name="b"), layers.GlobalAveragePooling2D(), layers.Dense(3)])
        self.width = width

    def get_config(self):
        return {"width": self.width}


def test_an_unbuilt_subclassed_student_gets_its_taps_with_the_first_batch(tmp_path):
    x, y = images()
    teacher = net(2, 4)
    distiller = Distiller(student=Plain(), teacher=teacher, distillation_losses=Hint("b", "b"))
    distiller.compile("adam", loss=hard_loss())
    distiller.fit(x, y, verbose=0)
    assert len(distiller.trainable_variables) == 6  # convolution, head and projector
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0) == pytest.approx(distiller.evaluate(x, y, verbose=0), rel=1e-5)


def test_a_loop_of_ones_own():
    student, teacher = net(1, 4), net(2, 4)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint("b"), student_loss_weight=0.0)
    distiller.compile("sgd")
    x, _ = images()
    with tf.GradientTape() as tape, distiller.one_step():
        loss = distiller.compute_loss(x, y_pred=distiller(x, training=False))
    gradients = tape.gradient(loss, [v.value for v in (*student.trainable_variables, *teacher.trainable_variables)])
    reached = [g is not None for g in gradients]
    count = len(student.trainable_variables)
    assert any(reached[:count])
    assert not any(reached[count:])
    with pytest.raises(ValueError, match="one_step"):
        distiller.compute_loss(x, y_pred=distiller(x))


def test_a_loss_of_ones_own_on_features():
    class FeatureL1(FeatureLoss):
        def compute_loss(self, teacher, student):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    student, teacher = net(1, 4), net(2, 4)
    x, y = images()
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=FeatureL1("b"))
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, y, verbose=0, return_dict=True)
    expected = np.abs(inner(teacher, "b", x) - inner(student, "b", x)).mean()
    np.testing.assert_allclose(logs["feature_l1_loss"], expected, rtol=1e-4)


def test_one_loss_object_serves_two_distillers():
    hint = Hint("b")
    x, y = images()
    for width in (2, 3):
        distiller = Distiller(student=net(1, width), teacher=net(2, 4), distillation_losses=hint)
        distiller.compile("sgd", loss=hard_loss())
        distiller.fit(x, y, verbose=0)
        assert tuple(distiller.trainable_variables[-2].shape) == (2 * width, 8)
