"""What one batch costs: the Distiller's loss and logs against NumPy."""

import keras
import numpy as np
import pytest
from distillation_oracles import CLASSES, cross_entropy, data, hard_loss, hinton, mlp, softmax
from keras import layers

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets


def evaluate(distiller, x, y=None, loss=hard_loss, **kwargs):
    distiller.compile("sgd", loss=loss() if callable(loss) else loss)
    return distiller.evaluate(x, y, batch_size=len(keras.tree.flatten(x)[0]), verbose=0, return_dict=True, **kwargs)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_total_and_parts_equal_hinton(alpha):
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    logs = evaluate(Distiller(student=student, teacher=teacher, student_loss_weight=alpha), x, y)
    soft = hinton(teacher(x), student(x), 4.0).mean()
    hard = cross_entropy(y, student(x)).mean()
    np.testing.assert_allclose(logs["loss"], alpha * hard + (1 - alpha) * soft, rtol=1e-5)
    expected = {"student_loss": hard} if alpha > 0 else {}
    expected |= {"soft_targets_loss": soft} if alpha < 1 else {}
    assert set(logs) == {"loss", *expected}
    for key, value in expected.items():
        np.testing.assert_allclose(logs[key], value, rtol=1e-5)


def test_several_losses_are_weighted_and_logged_apart():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    losses = [SoftTargets(2.0), SoftTargets(8.0), SoftTargets(1.0, name="plain")]
    distiller = Distiller(
        student=student, teacher=teacher, distillation_losses=losses, distillation_loss_weights=[1.0, 0.5, 0.0]
    )
    logs = evaluate(distiller, x, y)
    two, eight, one = (hinton(teacher(x), student(x), t).mean() for t in (2.0, 8.0, 1.0))
    hard = cross_entropy(y, student(x)).mean()
    np.testing.assert_allclose(logs["loss"], 0.5 * hard + 0.5 * (two + 0.5 * eight), rtol=1e-5)
    found = [logs[f"{name}_loss"] for name in ("soft_targets", "soft_targets_1", "plain")]
    np.testing.assert_allclose(found, [two, eight, one], rtol=1e-5)


@pytest.mark.parametrize("ends", [("softmax", None), (None, "softmax"), ("softmax", "softmax")])
def test_probabilities_and_logits_give_the_same_loss(ends):
    plain = evaluate(Distiller(student=mlp(1), teacher=mlp(2), student_loss_weight=0.0), data()[0], loss=None)
    models = {"student": mlp(1, ends[0]), "teacher": mlp(2, ends[1])}
    logs = evaluate(Distiller(**models, student_loss_weight=0.0), data()[0], loss=None)
    np.testing.assert_allclose(logs["loss"], plain["loss"], rtol=1e-5)


@pytest.mark.parametrize("units", [1, 4])
def test_sigmoid_outputs_are_binary_divergences(units):
    student, teacher = mlp(1, "sigmoid", units), mlp(2, None, units)
    x, _ = data()
    logs = evaluate(Distiller(student=student, teacher=teacher, student_loss_weight=0.0), x, loss=None)
    p = np.asarray(student(x), "float64")
    z = np.stack([np.log(p / (1 - p)), np.zeros_like(p)], -1)
    t = np.stack([np.asarray(teacher(x)), np.zeros_like(p)], -1)
    np.testing.assert_allclose(logs["loss"], hinton(t, z, 4.0).mean(), rtol=1e-4)


@pytest.mark.parametrize("how", ["from_logits", "activation"])
def test_a_binary_logit_needs_one_word(how):
    extra = {"from_logits": True} if how == "from_logits" else {}
    loss = SoftTargets(activation="sigmoid" if how == "activation" else None)
    student, teacher = mlp(1, units=1), mlp(2, units=1)
    x, _ = data()
    with pytest.raises(ValueError, match="a binary logit or a regression"):
        Distiller(student=student, teacher=teacher)
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=loss, student_loss_weight=0.0, **extra)
    both = [np.concatenate([np.asarray(model(x)), np.zeros((16, 1))], -1) for model in (teacher, student)]
    np.testing.assert_allclose(evaluate(distiller, x, loss=None)["loss"], hinton(*both, 4.0).mean(), rtol=1e-4)


def test_sample_weight_weighs_hard_and_soft_alike():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    weight = np.linspace(0, 3, 16).astype("float32")
    logs = evaluate(Distiller(student=student, teacher=teacher), x, y, sample_weight=weight)
    soft = (weight * hinton(teacher(x), student(x), 4.0)).mean()
    hard = (weight * cross_entropy(y, student(x))).mean()
    np.testing.assert_allclose([logs["soft_targets_loss"], logs["student_loss"]], [soft, hard], rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], (soft + hard) / 2, rtol=1e-5)


def test_class_weight_reaches_the_soft_loss():
    student, teacher = mlp(1), mlp(2)
    x, y = data()
    soft, hard = hinton(teacher(x), student(x), 4.0), cross_entropy(y, student(x))
    # In training mode BatchNormalization would use the batch; freeze it so that the oracle is the inference output.
    student.layers[2].trainable = False
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile(keras.optimizers.SGD(0.0), loss=hard_loss())
    history = distiller.fit(x, y, batch_size=16, class_weight={0: 0.0, 1: 1.0, 2: 5.0}, verbose=0).history
    weight = np.array([0.0, 1.0, 5.0])[y]
    np.testing.assert_allclose(history["soft_targets_loss"], [(weight * soft).mean()], rtol=1e-5)
    np.testing.assert_allclose(history["student_loss"], [(weight * hard).mean()], rtol=1e-5)


def sequence_model(seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(7, 4, mask_zero=True, embeddings_initializer=keras.initializers.RandomNormal(stddev=3.0))(
        inputs
    )
    return keras.Model(inputs, layers.TimeDistributed(layers.Dense(CLASSES))(x))


def test_masked_positions_count_in_neither_loss():
    student, teacher = sequence_model(1), sequence_model(2)
    x = np.array([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0], [6, 1, 2, 3, 4]])
    y = np.random.default_rng(0).integers(0, CLASSES, x.shape)
    logs = evaluate(Distiller(student=student, teacher=teacher), x, y)
    keep = x > 0
    soft, hard = hinton(teacher(x), student(x), 4.0), cross_entropy(y, student(x))
    assert abs(soft[keep].mean() - soft.mean()) > 1e-3 * soft.mean()
    np.testing.assert_allclose(logs["soft_targets_loss"], soft[keep].mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["student_loss"], hard[keep].mean(), rtol=1e-5)


def test_one_weight_a_sequence_and_one_a_position():
    student, teacher = sequence_model(1), sequence_model(2)
    x = np.array([[1, 2, 3, 4, 5], [4, 5, 6, 1, 2]])
    soft = hinton(teacher(x), student(x), 4.0)
    by_position = np.arange(10, dtype="float32").reshape(2, 5)
    for weight in (by_position, by_position[:, 0]):
        distiller = Distiller(student=student, teacher=teacher, student_loss_weight=0.0)
        distiller.compile("sgd")
        logs = distiller.evaluate(x, np.zeros((2, 5)), sample_weight=weight, verbose=0, return_dict=True)
        expected = (soft * weight.reshape(2, -1)).mean()
        np.testing.assert_allclose(logs["soft_targets_loss"], expected, rtol=1e-5)


def two_heads(seed, kind):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    a, b = layers.Dense(3, name="a")(x), layers.Dense(4, activation="softmax", name="b")(x)
    return keras.Model(inputs, {"a": a, "b": b} if kind == "dict" else [a, b])


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("weighted", [False, True])
def test_several_outputs_each_with_its_hard_and_soft_loss(kind, weighted):
    student, teacher = two_heads(1, kind), two_heads(2, kind)
    x, y_a = data()
    y_b = np.random.default_rng(5).integers(0, 4, 16)
    w_a, w_b = np.linspace(0, 2, 16).astype("float32"), np.linspace(3, 1, 16).astype("float32")
    if not weighted:
        w_a = w_b = np.ones(16, "float32")

    def pack(a, b):
        return {"a": a, "b": b} if kind == "dict" else [a, b]

    losses = [SoftTargets(), SoftTargets(2.0, output="a", name="only_a"), SoftTargets(3.0, output=1, name="only_b")]
    distiller = Distiller(
        student=student, teacher=teacher, distillation_losses=losses, distillation_loss_weights=[1.0, 2.0, 3.0]
    )
    distiller.compile(
        "sgd",
        loss={"a": hard_loss(), "b": "sparse_categorical_crossentropy"},
        loss_weights={"a": 1.0, "b": 10.0},
        metrics={"a": ["accuracy"]},
    )
    extra = {"sample_weight": pack(w_a, w_b)} if weighted else {}
    logs = distiller.evaluate(x, pack(y_a, y_b), batch_size=16, verbose=0, return_dict=True, **extra)

    s, t = student(x), teacher(x)
    (s_a, s_b), (t_a, t_b) = ((o["a"], o["b"]) if kind == "dict" else o for o in (s, t))
    z_b, u_b = np.log(np.asarray(s_b, "float64")), np.log(np.asarray(t_b, "float64"))
    only_a, only_b = (w_a * hinton(t_a, s_a, 2.0)).mean(), (w_b * hinton(u_b, z_b, 3.0)).mean()
    both = (w_a * hinton(t_a, s_a, 4.0)).mean() + (w_b * hinton(u_b, z_b, 4.0)).mean()
    hard_a, hard_b = (w_a * cross_entropy(y_a, s_a)).mean(), (w_b * cross_entropy(y_b, z_b)).mean()
    got = [logs[key] for key in ("soft_targets_loss", "only_a_loss", "only_b_loss", "a_loss", "b_loss", "student_loss")]
    np.testing.assert_allclose(got, [both, only_a, only_b, hard_a, hard_b, hard_a + 10 * hard_b], rtol=1e-4)
    total = 0.5 * (hard_a + 10 * hard_b) + 0.5 * (both + 2 * only_a + 3 * only_b)
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)
    assert logs["a_accuracy"] == pytest.approx(np.mean(np.argmax(s_a, -1) == y_a))


def test_regularization_counts_once_and_in_full():
    x, y = data()
    plain = evaluate(Distiller(student=mlp(1), teacher=mlp(2)), x, y)
    student = mlp(1, kernel_regularizer=keras.regularizers.L2(0.1))
    teacher = mlp(2, kernel_regularizer=keras.regularizers.L2(100.0))
    logs = evaluate(Distiller(student=student, teacher=teacher), x, y)
    penalty = 0.1 * float(np.sum(np.square(student.layers[-1].kernel)))
    np.testing.assert_allclose(logs["loss"], plain["loss"] + penalty, rtol=1e-5)
    np.testing.assert_allclose(logs["student_loss"], plain["student_loss"], rtol=1e-5)


def test_logs_are_means_over_all_samples_of_the_epoch():
    student, teacher = mlp(1), mlp(2)
    x, y = data(10)
    distiller = Distiller(student=student, teacher=teacher)
    distiller.compile("sgd", loss=hard_loss())
    logs = distiller.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)  # batches of 4, 4, 2
    np.testing.assert_allclose(logs["soft_targets_loss"], hinton(teacher(x), student(x), 4.0).mean(), rtol=1e-5)
    np.testing.assert_allclose(logs["student_loss"], cross_entropy(y, student(x)).mean(), rtol=1e-5)


def test_one_sgd_step_follows_the_paper_gradient():
    """With a linear student the gradient is known: x^T [a (q - onehot) + (1 - a) T (q_T - p_T)] / n."""
    keras.utils.set_random_seed(0)
    student = keras.Sequential([keras.Input((6,)), layers.Dense(CLASSES, use_bias=False)])
    teacher = mlp(2)
    x, y = data()
    kernel, z, t = student.layers[0].kernel.numpy(), np.asarray(student(x)), np.asarray(teacher(x))
    distiller = Distiller(student=student, teacher=teacher, student_loss_weight=0.3)
    distiller.compile(keras.optimizers.SGD(1.0), loss=hard_loss())
    distiller.fit(x, y, batch_size=16, verbose=0)
    hard = softmax(z) - np.eye(CLASSES)[y]
    soft = 4.0 * (softmax(z / 4.0) - softmax(t / 4.0))
    expected = kernel - x.T @ (0.3 * hard + 0.7 * soft) / 16
    np.testing.assert_allclose(student.layers[0].kernel, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_of_ones_own_gets_weights_and_a_line_in_the_log():
    class LogitsL1(DistillationLoss):
        def compute_loss(self, teacher, student, activation="softmax"):
            return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)

    student, teacher = mlp(1), mlp(2)
    x, y = data()
    weight = np.linspace(0, 3, 16).astype("float32")
    distiller = Distiller(student=student, teacher=teacher, distillation_losses=[LogitsL1(), "soft_targets"])
    logs = evaluate(distiller, x, y, sample_weight=weight)
    expected = (weight * np.abs(np.asarray(teacher(x)) - np.asarray(student(x))).mean(-1)).mean()
    np.testing.assert_allclose(logs["logits_l1_loss"], expected, rtol=1e-5)


def test_a_loss_that_returns_a_scalar_is_refused():
    class Scalar(DistillationLoss):
        def compute_loss(self, teacher, student, activation="softmax"):
            return keras.ops.mean(teacher - student)

    distiller = Distiller(student=mlp(1), teacher=mlp(2), distillation_losses=Scalar())
    with pytest.raises(ValueError, match="one value per sample"):
        evaluate(distiller, *data())
