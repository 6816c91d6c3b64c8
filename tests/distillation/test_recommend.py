"""Losses by what two models have in common."""

import keras
import numpy as np
import pytest
from distillation_oracles import mlp
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.recommend import recommend


def conv_net(width, classes=3, side=16, strides=(1, 2)):
    inputs = keras.Input((side, side, 1))
    x = inputs
    for place, step in enumerate(strides):
        x = layers.Conv2D(width * (place + 1), 3, step, padding="same", activation="relu", name=f"s{place}")(x)
    return keras.Model(
        inputs, layers.Dense(classes)(layers.GlobalAveragePooling2D(name="pool")(x)), name=f"net_{width}"
    )


def transformer(width, heads, length=6):
    inputs = keras.Input((length,), dtype="int32")
    x = layers.Embedding(9, width)(inputs)
    x = x + layers.MultiHeadAttention(heads, width // heads, name="mha")(x, x)
    return keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x)))


def kinds(found):
    return [type(proposal.loss).__name__ for proposal in found.proposals]


def test_convolutional_nets_get_hints_attention_and_relations():
    found = recommend(conv_net(8), conv_net(4))
    assert kinds(found) == ["SoftTargets", "Hint", "AttentionTransfer", "RelationalDistance"]
    hint, attention = found.proposals[1], found.proposals[2]
    assert (hint.loss.student_tap, hint.loss.teacher_tap) == ("s1", "s1")
    assert "8x8; 1x1 convolution 8 -> 16 channels" in hint.why
    assert attention.loss.student_tap == ["s0", "s1"]
    assert "1x1 convolution 8 -> 16" in str(found)
    assert len(str(found).splitlines()) == 5


def test_stages_of_other_resolutions_are_left_out_and_said():
    found = recommend(conv_net(8, strides=(4, 2)), conv_net(4, strides=(1, 2)))
    assert kinds(found) == ["SoftTargets", "RelationalDistance"]
    assert "left out: Hint, AttentionTransfer: no map of the student is as large" in str(found)


def test_outputs_whose_activation_is_not_known():
    def cut(width):
        model = mlp(width)
        return keras.Model(model.inputs, layers.Lambda(lambda y: 2 * y)(model.outputs[0]))

    teacher, student = cut(8), cut(4)
    with pytest.raises(ValueError, match="from_logits=True"):
        recommend(teacher, student)
    found = recommend(teacher, student, from_logits=True)
    assert found.losses[0].activation == "softmax"
    Distiller(student=student, teacher=teacher, distillation_losses=found.losses, from_logits=True)
    with pytest.raises(TypeError, match=r"`from_logits` must be True, False"):
        recommend(teacher, student, from_logits="yes")


def test_a_teacher_that_reads_larger_images():
    larger, student = conv_net(8, side=32, strides=(2, 2)), conv_net(4)
    with pytest.raises(ValueError, match="Give `teacher_preprocessing=`"):
        recommend(larger, student)
    resize = layers.Resizing(32, 32)
    found = recommend(larger, student, teacher_preprocessing=resize)
    assert kinds(found) == ["SoftTargets", "Hint", "AttentionTransfer", "RelationalDistance"]
    distiller = Distiller(
        student=student, teacher=larger, distillation_losses=found.losses, teacher_preprocessing=resize
    )
    distiller.compile("sgd", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(np.ones((2, 16, 16, 1)), np.zeros(2), verbose=0)


@pytest.mark.parametrize(("heads", "split"), [(2, None), (4, 2)])
def test_transformers_get_their_attention_regrouped_where_heads_differ(heads, split):
    found = recommend(transformer(16, heads), transformer(8, 2))
    assert kinds(found) == ["SoftTargets", "AttentionMapsKL", "RelationalDistance"]
    assert found.losses[1].relation_heads == split


@pytest.mark.parametrize(("groups", "split"), [(4, None), (2, 2)])
def test_grouped_queries_are_regrouped_where_only_values_differ(groups, split):
    def net(groups):
        inputs = keras.Input((6, 16))
        x = layers.GroupQueryAttention(4, 4, groups)(inputs, inputs)
        return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))

    teacher, student = net(groups), net(4)
    loss = recommend(teacher, student).losses[1]
    assert loss.relation_heads == split or (split and groups * 4 % loss.relation_heads == 0)
    Distiller(student=student, teacher=teacher, distillation_losses=loss).predict(np.ones((2, 6, 16)), verbose=0)


def test_the_deepest_resolution_of_a_u_net_is_its_bottom_not_its_head():
    def net(width):
        inputs = keras.Input((8, 8, 1))
        top = layers.Conv2D(width, 3, padding="same", name="top")(inputs)
        bottom = layers.Conv2D(width, 3, strides=2, padding="same", name="bottom")(top)
        up = layers.Concatenate(name="join")([top, layers.Conv2DTranspose(width, 2, strides=2)(bottom)])
        return keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax", name="head")(up))

    found = recommend(net(4), net(2))
    assert kinds(found) == ["SoftTargets", "ChannelWise", "Hint", "AttentionTransfer"]
    assert found.losses[2].student_tap == "bottom"
    assert found.losses[3].student_tap == ["bottom", "join"]


def test_outputs_decide_the_first_loss():
    assert recommend(mlp(1, "sigmoid", 4), mlp(2, "sigmoid", 4)).losses[0].activation == "sigmoid"
    assert kinds(recommend(mlp(1, None, 1), mlp(2, None, 1)))[0] == "Regression"
    inputs = keras.Input((8, 8, 3))
    maps = [keras.Model(inputs, layers.Conv2D(5, 3, padding="same")(inputs)) for _ in range(2)]
    assert kinds(recommend(*maps))[:2] == ["SoftTargets", "ChannelWise"]


@pytest.mark.parametrize("make", [lambda w: conv_net(w), lambda w: transformer(w, 2)])
def test_what_is_proposed_trains(make):
    teacher, student = make(8), make(4)
    found = recommend(teacher, student)
    distiller = Distiller(
        student=student, teacher=teacher, distillation_losses=found.losses, distillation_loss_weights=found.weights
    )
    distiller.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    generator = np.random.default_rng(0)
    shape = (32, *student.input_shape[1:])
    x = generator.integers(0, 9, shape) if len(shape) == 2 else generator.normal(size=shape)
    losses = distiller.fit(x, generator.integers(0, 3, 32), epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_models_that_do_not_fit_or_are_not_known():
    with pytest.raises(ValueError, match="differs in shape"):
        recommend(conv_net(8), conv_net(4, classes=5))
    unbuilt = keras.Sequential([layers.Dense(3)])
    with pytest.raises(ValueError, match="known inputs"):
        recommend(mlp(1), unbuilt)
