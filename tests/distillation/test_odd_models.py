"""Models that are unlike most: shared layers, several outputs, layers that return more or run more than once."""

import keras
import numpy as np
import pytest
from distillation_oracles import data, hard_loss, hinton, mlp, softmax
from keras import layers, ops

from kdopt.distillation import Distiller, recommend
from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.attention_maps import AttentionMapsKL
from kdopt.distillation.losses.decoupled import DecoupledKD, decoupled
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.relational import RelationalDistance
from kdopt.quantization import quantize_aware


def two_heads(seed, *names):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="relu", name="h")(inputs)
    return keras.Model(inputs, [layers.Dense(3, name=name)(hidden) for name in names])


def evaluate(distiller, x, y=None, **options):
    distiller.compile("sgd", loss=None if y is None else hard_loss())
    return distiller.evaluate(x, y, verbose=0, return_dict=True, **options)


def compared(loss, student, teacher):
    """(tap of the student, tap of the teacher) of a loss with one pair."""
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=loss)
    if not distiller.built:
        distiller(data()[0])
    term = distiller._lesson.knowledge.terms[0][0]
    return term.student_taps[0].name, term.teacher_taps[0].name


# Shared layers


def sharing(layer, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    return keras.Model(inputs, layers.Dense(3)(layer(inputs)))


def test_shared_layers_train_and_are_not_saved_by_halves(tmp_path):
    frozen = layers.Dense(4, trainable=False)
    distiller = Distiller(student=sharing(frozen, 1), teacher=sharing(frozen, 2))
    distiller.compile("sgd", loss=hard_loss())
    distiller.fit(*data(), verbose=0)
    with pytest.raises(ValueError, match=r"share layers \(dense.*Save `distiller.student`"):
        distiller.save(tmp_path / "d.keras")
    assert not (tmp_path / "d.keras").exists()
    distiller.student.save(tmp_path / "s.keras")
    frozen.trainable = True
    with pytest.raises(ValueError, match="share weights that training changes"):
        distiller.fit(*data(), verbose=0)


def test_statistics_that_both_models_share():
    norm = layers.BatchNormalization(center=False, scale=False)
    with pytest.raises(ValueError, match=r"share weights that training changes \(batch_normalization.*/moving_mean"):
        Distiller(student=sharing(norm, 1), teacher=sharing(norm, 2))


# Labels and weights by name


@pytest.mark.parametrize("named", [False, True])
def test_labels_and_weights_go_to_their_outputs(named):
    student, teacher = two_heads(1, "z", "a"), two_heads(2, "z", "a")
    x, first = data(16)
    labels, weights = [first, (first + 1) % 3], [np.linspace(0, 2, 16), np.linspace(3, 0, 16)]
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[DecoupledKD(), "soft_targets"])
    expected = np.zeros(2)
    for z, t, y, w in zip(student(x), teacher(x), labels, [1.0, 1.0] if named else weights, strict=True):
        each = decoupled(ops.convert_to_tensor(t), ops.convert_to_tensor(z), y, 4.0, 1.0, 8.0)
        expected += [np.mean(w * np.asarray(each)), np.mean(w * hinton(t, z, 4.0))]
    if named:
        labels, weights = dict(zip(("z", "a"), labels, strict=True)), None
    distiller.compile("sgd", {"z": hard_loss(), "a": hard_loss()})
    logs = distiller.evaluate(x, labels, sample_weight=weights, verbose=0, return_dict=True)
    np.testing.assert_allclose([logs["decoupled_kd_loss"], logs["soft_targets_loss"]], expected, rtol=1e-4)


def both_heads(teacher, student):
    return ops.mean(ops.square(teacher[0] - student[0]), axis=-1)


@pytest.mark.parametrize("loss", [both_heads, Hint("h")])
def test_weights_for_each_output_and_a_loss_on_none_of_them(loss):
    x, y = data()
    distiller = Distiller(student=two_heads(1, "a", "b"), teacher=two_heads(2, "a", "b"), distillation_losses=loss)
    distiller.compile("sgd", [hard_loss(), hard_loss()])
    with pytest.raises(ValueError, match="takes one weight for each sample; `sample_weight` holds 2"):
        distiller.fit(x, [y, y], sample_weight=[np.ones(16), np.ones(16)], verbose=0)


def test_labels_beyond_the_classes_are_none():
    x, y = data()
    distiller = Distiller(student=mlp(1), teacher=mlp(2), distillation_losses="decoupled_kd")
    ignoring = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    distiller.compile("sgd", ignoring)
    found = distiller.evaluate(x, y * 0 + 255, verbose=0, return_dict=True)["decoupled_kd_loss"]
    without = DecoupledKD(target="teacher")
    other = Distiller(student=distiller.student, teacher=distiller.teacher, distillation_losses=without)
    assert found == pytest.approx(evaluate(other, x, y)["decoupled_kd_loss"], rel=1e-5)


def test_confidence_in_teachers_of_samples_without_a_label():
    x, y = data(8)
    y[:4] = -1
    student, teachers = mlp(1), [mlp(2), mlp(3)]
    distiller = Distiller(student=student, teacher=teachers, teacher_weights="confidence", student_loss_weight=0.0)
    distiller.compile("sgd")
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)["soft_targets_loss"]
    z, t = np.asarray(student(x)), [np.asarray(teacher(x)) for teacher in teachers]
    entropies = np.stack([-np.log(softmax(each.astype("float64"))[np.arange(8), y]) for each in t])
    weights = 1 - np.exp(entropies) / np.exp(entropies).sum(0)
    weights[:, :4] = 0.5
    expected = np.mean(sum(w * hinton(each, z, 4.0) for w, each in zip(weights, t, strict=True)))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    several = [mlp(seed, "sigmoid") for seed in (1, 2, 3)]
    with pytest.raises(ValueError, match="ends in sigmoid units"):
        Distiller(student=several[0], teacher=several[1:], teacher_weights="confidence")


# Taps


def in_float16(layer):
    policy = "float32" if layer.name == "out" else "mixed_float16"
    return type(layer).from_config({**layer.get_config(), "dtype": policy})


def test_the_embedding_is_what_the_last_layer_reads():
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, name="h")(inputs)
    gated = keras.Model(
        inputs, layers.Multiply()([layers.Dense(1, name="gate")(hidden), layers.Dense(3, name="out")(hidden)])
    )
    assert compared(RelationalDistance(), gated, keras.models.clone_model(gated)) == ("h", "h")
    assert compared(RelationalDistance(), two_heads(1, "a", "b"), two_heads(2, "a", "b")) == ("h", "h")
    # Where the tensor that is read is another one: cast, or rounded.
    mixed = keras.models.clone_model(gated, clone_function=in_float16)
    assert compared(RelationalDistance(), mixed, gated) == ("h", "h")
    for engine in ("native", "tfmot"):
        quantized = quantize_aware(keras.models.clone_model(gated), engine=engine, calibration=data()[0])
        assert [name.split("/")[-1] for name in compared(RelationalDistance(), quantized, gated)] == ["h", "h"]


class TwoOfOneName(keras.Model):
    output_activation = "linear"

    def __init__(self):
        super().__init__()
        self.first, self.second = layers.Dense(5, name="d"), layers.Dense(8, name="d")
        self.head = layers.Dense(3)

    def call(self, x):
        return self.head(self.second(self.first(x)))


def test_an_index_names_a_layer_not_its_name():
    student = TwoOfOneName()
    x, y = data()
    student(x)
    distiller = Distiller(student=student, teacher=mlp(2), distillation_losses=Hint(1, 1))
    distiller.compile("sgd", loss=hard_loss())
    distiller.fit(x, y, verbose=0)
    assert distiller._lesson.knowledge.terms[0][0].student_taps[0].shape[-1] == 8


class Wandering(keras.Model):
    output_activation = "linear"

    def __init__(self, way):
        super().__init__()
        self.inner, self.head, self.way = layers.Dense(8, name="inner"), layers.Dense(3), way

    def call(self, x, training=False):
        if self.way == "again" and training:
            self.inner(x * 0)
        if self.way == "in a branch":
            return self.head(ops.cond(ops.sum(x) > 0, lambda: self.inner(x), lambda: x @ ops.ones((6, 8))))
        if self.way == "by sample":
            return self.head(ops.vectorized_map(lambda one: self.inner(one[None])[0], x))
        return self.head(self.inner(x))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("again", "called 2 times in this pass, and 1 times when"),
        ("by sample", "Nothing to tap"),
        ("in a branch", "Nothing to tap"),
    ],
)
def test_calls_that_are_not_one_of_the_batch(way, message):
    student = Wandering(way)
    x, y = data()
    student(x)
    distiller = Distiller(student=student, teacher=mlp(2), distillation_losses=Hint("inner", 1))
    distiller.compile("sgd", loss=hard_loss())
    with pytest.raises(ValueError, match=message):
        distiller.fit(x, y, verbose=0)


def attending(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 8))
    x, _ = layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs, return_attention_scores=True)
    x = layers.GRU(8, return_sequences=True, return_state=True, name="gru")(x)[0]
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D(name="pool")(x)))


def test_layers_that_return_more_than_their_tensor():
    student, teacher = attending(1), attending(2)
    assert [type(loss).__name__ for loss in recommend(teacher, student).losses] == [
        "SoftTargets",
        "AttentionMapsKL",
        "RelationalDistance",
    ]
    x = np.random.default_rng(0).normal(size=(4, 6, 8)).astype("float32")
    for name in ("mha", "gru"):
        distiller = Distiller(student=student, teacher=teacher, distillation_losses=Hint(name), student_loss_weight=0.0)
        sides = [np.asarray(keras.Model(m.inputs, m.get_layer(name).output[0])(x)) for m in (student, teacher)]
        np.testing.assert_allclose(evaluate(distiller, x)["hint_loss"], np.mean((sides[0] - sides[1]) ** 2), rtol=1e-4)
    maps = Distiller(student=student, teacher=teacher, distillation_losses=AttentionMapsKL(), student_loss_weight=0.0)
    assert evaluate(maps, x)["loss"] > 0


def test_a_teacher_that_keras_quantized():
    teacher, x = mlp(2), data()[0]
    plain = np.asarray(teacher.layers[1](x))
    teacher.quantize("int8")
    distiller = Distiller(student=mlp(1), teacher=teacher, distillation_losses=Hint(1), student_loss_weight=0.0)
    found = evaluate(distiller, x)["hint_loss"]
    np.testing.assert_allclose(found, np.mean((np.asarray(distiller.student.layers[1](x)) - plain) ** 2), rtol=0.05)


def channels_first(width):
    inputs = keras.Input((6, 6, 3))
    x = layers.Permute((3, 1, 2))(inputs)
    x = layers.BatchNormalization(axis=1, name="norm")(x)
    x = layers.GlobalAveragePooling2D(data_format="channels_first", name="pool")(x)
    return keras.Model(inputs, layers.Dense(3)(layers.Dense(width)(x)))


def test_channels_first():
    student, teacher = channels_first(4), channels_first(8)
    with pytest.raises(ValueError, match="'norm' of the teacher has its channels first"):
        Distiller(student=student, teacher=teacher, distillation_losses=AttentionTransfer("norm"))
    assert compared(RelationalDistance("pool"), student, teacher) == ("pool", "pool")
