"""How far a student follows its teacher, against the formulas in NumPy."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from distillation_oracles import data, mlp, softmax
from keras import layers as L

from kdopt.distillation import Agreement, agreement
from kdopt.distillation.comparing.calibration import reliability


def ece(p, labels, bins):
    """Guo et al. 2017, equation 3, bin by bin."""
    confidence, right = p.max(-1), p.argmax(-1) == labels
    total = 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def expected(teacher, student, labels, bins=15):
    """(agreement, KL, accuracies, calibration errors) of float64 logits."""
    p, q = softmax(np.asarray(teacher, "float64")), softmax(np.asarray(student, "float64"))
    kl = np.mean(np.sum(p * np.log(p / q), -1))
    right = [np.mean(one.argmax(-1) == labels) for one in (p, q)]
    return np.mean(p.argmax(-1) == q.argmax(-1)), kl, *right, ece(p, labels, bins), ece(q, labels, bins)


def numbers(found):
    accuracies = found.teacher_accuracy, found.student_accuracy
    return found.top1_agreement, found.kl_nats, *accuracies, found.teacher_ece, found.student_ece


def pair(activation=None, units=3, **output):
    teacher, student = mlp(1, activation, units, **output), mlp(2, activation, units, **output)
    for model in (teacher, student):  # sure of what they say
        model.layers[-1].kernel.assign(4 * model.layers[-1].kernel)
    return teacher, student


@pytest.mark.parametrize(("activation", "bins"), [(None, 1), (None, 15), ("softmax", 4)])
def test_the_formulas(activation, bins):
    teacher, student = pair(activation)
    x, y = data(203)
    logits = [keras.Model(m.inputs, L.Dense(3)(m.layers[-2].output)) for m in (teacher, student)]
    for model, one in zip((teacher, student), logits, strict=True):
        one.layers[-1].set_weights(model.layers[-1].get_weights())
    wanted = expected(*(one.predict(x, verbose=0) for one in logits), y, bins)
    found = agreement(teacher, student, (x, y), bins=bins, batch_size=50, corruptions=None)
    np.testing.assert_allclose(numbers(found), wanted, rtol=1e-4, atol=1e-7)
    assert found.samples == 203
    assert sum(found.student_reliability.counts) == 203
    assert len(found.student_reliability.edges) == bins + 1
    assert found.corruptions == ()
    assert 0.2 < found.top1_agreement < 0.9  # the test would see a swap of the nets
    assert abs(found.teacher_ece - found.student_ece) > 1e-3
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.samples = 1


def test_a_bin_holds_its_upper_edge():
    """Guo et al. 2017: the interval ((m - 1) / M, m / M]."""
    found = reliability(np.array([0.5, 0.5, 0.75, 1.0]), np.array([True, False, True, True]), bins=2)
    assert found.counts == (2, 2)
    assert found.confidence == (0.5, 0.875)
    assert found.accuracy == (0.5, 1.0)
    assert found.ece == pytest.approx(0.5 * 0 + 0.5 * 0.125)
    assert reliability(np.arange(1, 16) / 15, np.ones(15, bool)).counts == (1,) * 15
    empty = reliability(np.array([0.9]), np.array([False]), bins=3)
    assert (empty.counts, empty.accuracy) == ((0, 0, 1), (0.0, 0.0, 0.0))
    assert empty.ece == pytest.approx(0.9)


def test_a_net_agrees_with_itself():
    teacher = mlp(1, "softmax")
    found = agreement(teacher, teacher, data(50), corruptions=["noise"], severities=[2])
    assert found.top1_agreement == found.corruptions[0].top1_agreement == 1
    assert found.kl_nats == 0
    assert found.teacher_accuracy == found.student_accuracy


def test_labels_one_hot_sparse_or_none():
    teacher, student = pair()
    x, y = data(60)
    sparse = agreement(teacher, student, (x, y))
    assert sparse == agreement(teacher, student, (x, y[:, None]))
    assert sparse == agreement(teacher, student, (x, np.eye(3)[y]))
    blind = agreement(teacher, student, x)
    assert numbers(blind) == (sparse.top1_agreement, sparse.kl_nats, None, None, None, None)
    assert [row.top1_agreement for row in blind.corruptions] == [row.top1_agreement for row in sparse.corruptions]
    assert all(row.teacher_accuracy is None for row in blind.corruptions)


def test_data_sets():
    teacher, student = pair()
    x, y = data(60)
    wanted = agreement(teacher, student, (x, y), batch_size=16)
    assert agreement(teacher, student, tf.data.Dataset.from_tensor_slices((x, y)).batch(7)) == wanted

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return x[16 * i : 16 * i + 16], y[16 * i : 16 * i + 16]

    assert agreement(teacher, student, Batches()) == wanted
    only = agreement(teacher, student, tf.data.Dataset.from_tensor_slices(x).batch(7))
    assert only.top1_agreement == wanted.top1_agreement
    assert only.teacher_accuracy is None


@pytest.mark.parametrize("logits", [False, True])
def test_one_binary_unit(logits):
    teacher, student = pair(None if logits else "sigmoid", units=1)
    x, _ = data(80)
    y = np.random.default_rng(1).integers(0, 2, 80)
    arguments = {"activation": "sigmoid"} if logits else {}
    found = agreement(teacher, student, (x, y), corruptions=None, **arguments)
    p, q = (model.predict(x, verbose=0).astype("float64")[:, 0] for model in (teacher, student))
    z = [p, q] if logits else [np.log(one / (1 - one)) for one in (p, q)]
    two = [np.stack([np.zeros(80), one], axis=-1) for one in z]  # a softmax over (0, z) is the sigmoid of z
    np.testing.assert_allclose(numbers(found), expected(*two, y), rtol=1e-4, atol=1e-6)
    assert agreement(teacher, student, (x, y[:, None]), corruptions=None, **arguments) == found
    if logits:
        assert agreement(teacher, student, (x, y), corruptions=None, from_logits=True) == found


def test_several_sigmoid_units_each_answer_for_themselves():
    teacher, student = pair("sigmoid", units=4)
    x, _ = data(50)
    y = np.random.default_rng(1).integers(0, 2, (50, 4))
    found = agreement(teacher, student, (x, y), corruptions=None)
    p, q = (model.predict(x, verbose=0).astype("float64") for model in (teacher, student))
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found.kl_nats == pytest.approx(kl.mean(), rel=1e-4)
    assert found.top1_agreement == np.mean((p > 0.5) == (q > 0.5))
    assert found.student_accuracy == np.mean((q > 0.5) == y)
    assert found.samples == 50
    assert sum(found.teacher_reliability.counts) == 200


def test_positions_are_answers():
    x = keras.Input((5, 6))
    teacher, student = (keras.Model(x, L.Dense(3, activation="softmax")(L.Dense(4)(x))) for _ in range(2))
    rng = np.random.default_rng(0)
    values, y = rng.normal(size=(20, 5, 6)).astype("float32"), rng.integers(0, 3, (20, 5))
    found = agreement(teacher, student, (values, y), corruptions=None)
    p, q = (model.predict(values, verbose=0).argmax(-1) for model in (teacher, student))
    assert found.top1_agreement == np.mean(p == q)
    assert found.teacher_accuracy == np.mean(p == y)
    assert found.samples == 20


def two_outputs(seed):
    keras.utils.set_random_seed(seed)
    x = keras.Input((6,))
    return keras.Model(x, {"b": L.Dense(2, name="b")(x), "a": L.Dense(3, name="a", activation="softmax")(x)})


def test_one_of_several_outputs():
    teacher, student = two_outputs(1), two_outputs(2)
    x, y = data(40)
    labels = {"a": y, "b": y % 2}
    found = agreement(teacher, student, (x, labels), output="b", corruptions=None)
    t, s = (model.predict(x, verbose=0)["b"] for model in (teacher, student))
    np.testing.assert_allclose(numbers(found), expected(t, s, y % 2), rtol=1e-4)
    assert agreement(teacher, student, (x, labels), output=1, corruptions=None) == found
    assert agreement(teacher, student, (x, y % 2), output=1, corruptions=None) == found
    for output in (None, "c", 2):
        with pytest.raises(ValueError, match="`output` must be one of the outputs 0 = 'a', 1 = 'b'; got"):
            agreement(teacher, student, (x, labels), output=output)
    with pytest.raises(ValueError, match=r"`data` has no labels for output 'b'; it has them for \['a'\]"):
        agreement(teacher, student, (x, {"a": y}), output="b")


def test_a_teacher_that_reads_something_else():
    teacher, (x, y) = mlp(2), data(8)
    inputs = keras.Input((3,))
    student = keras.Model(inputs, mlp(1)(keras.ops.concatenate([inputs, inputs], axis=-1)))
    found = agreement(teacher, student, (x[:, :3], y), teacher_preprocessing=lambda z: 2.0 * keras.ops.tile(z, (1, 2)))
    doubled = np.tile(x[:, :3], (1, 2))
    theirs, ours = np.asarray(teacher(2.0 * doubled)), np.asarray(student(x[:, :3]))
    p, q = softmax(theirs), softmax(ours)
    np.testing.assert_allclose(found.kl_nats, np.mean(np.sum(p * np.log(p / q), axis=-1)), rtol=1e-4)
    assert found.teacher_accuracy == np.mean(theirs.argmax(-1) == y)
    with pytest.raises(ValueError, match=r"takes \(None, 6\). Give `teacher_preprocessing=`"):
        agreement(teacher, student, (x[:, :3], y))


def test_dicts_of_inputs_and_tokens():
    def net(seed):
        keras.utils.set_random_seed(seed)
        inputs = {"words": keras.Input((4,), dtype="int32", name="words"), "size": keras.Input((2,), name="size")}
        h = L.Concatenate()([L.Flatten()(L.Embedding(9, 3)(inputs["words"])), inputs["size"]])
        return keras.Model(inputs, L.Dense(3)(h))

    rng = np.random.default_rng(0)
    x = {"words": rng.integers(0, 9, (30, 4)), "size": rng.normal(size=(30, 2)).astype("float32")}
    found = agreement(net(1), net(2), x, severities=[5])
    assert [row.name for row in found.corruptions] == ["noise"]  # on "size" alone
    with pytest.raises(ValueError, match=r"'blur' needs images .*; the data is float32 \(30, 2\), int64 \(30, 4\)"):
        agreement(net(1), net(2), x, corruptions=["blur"])


def test_the_nets_are_left_alone():
    teacher, student = pair()
    student.compile("sgd", "mse")
    before = [model.get_weights() for model in (teacher, student)]
    agreement(teacher, student, data(30))
    for weights, model in zip(before, (teacher, student), strict=True):
        for one, other in zip(weights, model.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)


def nan_for(model):
    model.layers[-1].bias.assign([np.nan, 0, 0])
    return model


class Opaque(L.Layer):
    def call(self, x):
        return x


REFUSED = [
    (lambda: (mlp(1), mlp(2, units=4)), "differs in shape: student (2, 4), teacher (2, 3)"),
    (lambda: (mlp(1), nan_for(mlp(2))), "The student answers 16 of 16 samples (unchanged) with NaN or infinite"),
    (lambda: (nan_for(mlp(1, "softmax")), mlp(2)), "The teacher answers 16 of 16 samples (unchanged) with NaN"),
    (lambda: (mlp(1, "softmax"), mlp(2, "sigmoid")), "the teacher ends in 'softmax', the student in 'sigmoid'"),
    (lambda: (mlp(1, units=1), mlp(2, units=1)), "one linear unit: a binary logit or a regression?"),
    (lambda: (mlp(1, "softmax", 1), mlp(2, "softmax", 1)), "a softmax over one unit is always 1"),
    (lambda: (mlp(1), keras.Sequential([mlp(2), Opaque()])), 'Pass `from_logits={"student": True}`'),
]


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")
@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_models_that_cannot_be_compared(make, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")):
        agreement(*make(), data())


def test_from_logits_tells_what_cannot_be_read():
    teacher, student = mlp(1), mlp(2)
    hidden = keras.Sequential([student, Opaque()])
    x, y = data(40)
    wanted = agreement(teacher, student, (x, y), corruptions=None)
    assert agreement(teacher, hidden, (x, y), corruptions=None, from_logits={"student": True}) == wanted


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": (np.ones((0, 6)), np.ones(0))}, ValueError, "one at least; got arrays of [0] rows"),
        (
            {"data": (np.ones((4, 6)), np.ones(5))},
            ValueError,
            "as many labels as inputs, one at least; got arrays of [4, 5] rows",
        ),
        ({"data": (np.ones((4, 6)), np.ones(4), np.ones(4))}, ValueError, "got a tuple of 3. Sample weights are not"),
        ({"data": (np.ones((4, 6)), np.full(4, 3))}, ValueError, "must be classes from 0 to 2; got values from 3 to 3"),
        ({"data": (np.ones((4, 6)), np.ones((4, 2)))}, ValueError, "must have the shape (4,) or (4, 3); got (4, 2)"),
        ({"bins": 0}, ValueError, "`bins` must be an integer >= 1"),
        ({"batch_size": 0.5}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"severities": (0,)}, ValueError, "`severities` must be a number > 0"),
        ({"seed": -1}, ValueError, "`seed` must be an integer >= 0"),
        ({"corruptions": ["nois"]}, ValueError, "Did you mean 'noise'?"),
        ({"corruptions": "noise"}, TypeError, '`corruptions` must be "auto", a list of names, a mapping or None'),
        ({"corruptions": ["contrast"]}, ValueError, "The corruption 'contrast' needs images"),
        ({"activation": "tanh"}, ValueError, "`activation` must be one of 'softmax', 'sigmoid'"),
        ({"from_logits": "yes"}, TypeError, "`from_logits` must be True, False, None"),
        ({"student": "student.keras"}, TypeError, "`student` must be a keras.Model; got str"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    given = {"teacher": mlp(1), "student": mlp(2), "data": data(), **arguments}
    with pytest.raises(error) as raised:
        agreement(**given)
    assert message in str(raised.value)


def test_endless_and_empty_data_sets():
    rows = tf.data.Dataset.from_tensor_slices(data()).batch(4)
    with pytest.raises(ValueError, match="`data` has no end: give a part of it, e.g. `dataset.take"):
        agreement(mlp(1), mlp(2), rows.repeat())
    with pytest.raises(ValueError, match="holds no batch"):
        agreement(mlp(1), mlp(2), rows.take(0))


def test_the_table():
    found = agreement(mlp(1), mlp(2), data(8), severities=[1, 2.5])
    assert isinstance(found, Agreement)
    lines = str(found).splitlines()
    assert lines[0].split() == ["top-1", "agreement,", "accuracy", "agreement", "teacher", "student"]
    scores = [f"{value:.4f}" for value in (numbers(found)[0], *numbers(found)[2:4])]
    assert lines[1].split() == ["unchanged", "data", *scores]
    assert lines[2].split() == ["calibration", "error", f"{found.teacher_ece:.4f}", f"{found.student_ece:.4f}"]
    assert lines[4].startswith("noise, severity 2.5")
    assert lines[4].split()[-3:] == [f"{value:.4f}" for value in dataclasses.astuple(found.corruptions[1])[2:]]
    assert lines[5] == f"KL(teacher || student): {found.kl_nats:.4f} nats; 8 samples"
    blind = str(agreement(mlp(1), mlp(2), data(8)[0], corruptions=None)).splitlines()
    assert [line.split()[:-1] for line in blind[:2]] == [["top-1"], ["unchanged", "data"]]
