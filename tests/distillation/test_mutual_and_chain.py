"""Students that teach each other, chains of assistants, generations."""

import itertools

import keras
import numpy as np
import pytest
from distillation_oracles import cross_entropy, data, hard_loss, hinton, mlp
from keras import layers

from kdopt.distillation.chain import born_again, distill_chain
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.hint import Hint
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.mutual import MutualLearning


def linear(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((6,)), layers.Dense(3, use_bias=False, name="f")])


def test_the_loss_of_each_student_is_its_own_and_the_mean_over_its_peers():
    students = [mlp(seed) for seed in (1, 2, 3)]
    cohort = MutualLearning(students=students, student_loss_weight=0.3)
    cohort.compile("sgd", loss=hard_loss(), metrics=["accuracy"], run_eagerly=True)  # one batch
    x, y = data()
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    z = [np.asarray(student(x)) for student in students]
    total = 0.0
    for k in range(3):
        soft = np.mean([hinton(z[j], z[k], 1.0).mean() for j in range(3) if j != k])
        own = 0.3 * cross_entropy(y, z[k]).mean() + 0.7 * soft
        np.testing.assert_allclose(logs[f"student_{k}/loss"], own, rtol=1e-4)
        assert logs[f"student_{k}/accuracy"] == pytest.approx(np.mean(z[k].argmax(-1) == y))
        total += own
    np.testing.assert_allclose(logs["loss"], total, rtol=1e-4)


def test_no_gradient_flows_from_a_student_to_those_that_teach_it():
    students = [linear(1), linear(2)]
    x, _ = data()
    w, z = (
        [np.array(v, "float64") for v in values]
        for values in ([s.layers[0].kernel for s in students], [s(x) for s in students])
    )
    cohort = MutualLearning(students=students, student_loss_weight=0.0)
    cohort.compile(keras.optimizers.SGD(1.0))
    cohort.fit(x, batch_size=16, verbose=0)
    softmax = [np.exp(v) / np.exp(v).sum(-1, keepdims=True) for v in z]
    for k in range(2):
        expected = w[k] - x.T @ (softmax[k] - softmax[1 - k]) / 16
        np.testing.assert_allclose(students[k].layers[0].kernel, expected, rtol=1e-4, atol=1e-5)


def test_features_of_peers_and_a_saved_cohort(tmp_path):
    cohort = MutualLearning(
        students=[mlp(1, width=4), mlp(2, width=8)], distillation_losses=[SoftTargets(1.0), Hint(1)]
    )
    cohort.compile("adam", loss=hard_loss(), metrics=["accuracy"], run_eagerly=True)
    x, y = data(32)
    history = cohort.fit(x, y, epochs=3, verbose=0).history
    assert history["student_0/hint_loss"][-1] < history["student_0/hint_loss"][0]
    logs = cohort.evaluate(x, y, verbose=0, return_dict=True)
    cohort.save(tmp_path / "c.keras")
    loaded = keras.saving.load_model(tmp_path / "c.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(logs, rel=1e-4)
    assert [np.shape(said) for said in cohort.predict(x, verbose=0)] == [(32, 3), (32, 3)]


def test_each_peer_shows_the_layers_that_the_others_learn_from():
    def student(seed):
        keras.utils.set_random_seed(seed)
        return keras.Sequential(
            [keras.Input((6,)), *(layers.Dense(4, name=name) for name in ("low", "high")), layers.Dense(3)]
        )

    students = [student(seed) for seed in (1, 2, 3)]
    cohort = MutualLearning(students=students, distillation_losses=Hint("low", "high"), student_loss_weight=0.0)
    cohort.compile("sgd", run_eagerly=True)
    x, _ = data()
    logs = cohort.evaluate(x, verbose=0, return_dict=True)
    lows = [np.asarray(one.layers[0](x)) for one in students]
    highs = [np.asarray(one.layers[1](one.layers[0](x))) for one in students]
    for k in range(3):
        expected = np.mean([np.mean((lows[k] - highs[j]) ** 2) for j in range(3) if j != k])
        np.testing.assert_allclose(logs[f"student_{k}/hint_loss"], expected, rtol=1e-4)


def test_weights_of_losses_and_weighted_metrics_reach_the_students():
    def student(seed):
        keras.utils.set_random_seed(seed)
        inputs = keras.Input((6,))
        return keras.Model(inputs, [layers.Dense(3, name=name)(inputs) for name in ("a", "b")])

    students = [student(1), student(2)]
    cohort = MutualLearning(students=students, student_loss_weight=1.0)
    weighted = {"loss_weights": [3.0, 0.5], "weighted_metrics": [["accuracy"], []]}
    cohort.compile("sgd", [hard_loss(), hard_loss()], **weighted, run_eagerly=True)
    x, y = data()
    weights = np.linspace(0, 1, 16)
    found = cohort.evaluate(x, [y, y], sample_weight=[weights, weights], verbose=0, return_dict=True)
    means = [[np.mean(weights * cross_entropy(y, z)) for z in one(x)] for one in students]
    np.testing.assert_allclose(found["loss"], sum(3.0 * a + 0.5 * b for a, b in means), rtol=1e-4)
    right = [np.average(np.asarray(one(x)[0]).argmax(-1) == y, weights=weights) for one in students]
    np.testing.assert_allclose([found[f"student_{k}/a_accuracy"] for k in range(2)], right, rtol=1e-5)
    listed = cohort.evaluate(x, [y, y], sample_weight=[weights, weights], verbose=0)
    np.testing.assert_allclose(listed, [found[name] for name in cohort.metrics_names], rtol=1e-6)


def test_a_student_that_gives_nan_spoils_no_other():
    whole, broken = mlp(1, name="whole"), mlp(2, name="broken")
    broken.layers[-1].bias.assign(np.full(3, np.nan))
    before = whole.get_weights()
    cohort = MutualLearning(students=[whole, broken])
    cohort.compile("adam", hard_loss())
    with pytest.raises(ValueError, match="'broken' gives NaN"):
        cohort.fit(*data(), verbose=0)
    for now, then in zip(whole.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_newborns_keep_what_was_adapted_and_frozen():
    keras.utils.set_random_seed(0)
    adapted = layers.Normalization()
    adapted.adapt(np.random.default_rng(0).normal(50, 5, (99, 6)))
    model = keras.Sequential([keras.Input((6,)), adapted, layers.Dense(4, trainable=False), layers.Dense(3)])
    _, new = born_again(model, fit, generations=1, verbose=False)
    np.testing.assert_array_equal(new.layers[0].mean, adapted.mean)
    np.testing.assert_array_equal(new.layers[1].kernel, model.layers[1].kernel)
    assert (new.layers[1].trainable, new.layers[2].trainable) == (False, True)
    assert not np.allclose(new.layers[2].kernel, model.layers[2].kernel)
    model.layers[2].enable_lora(1)
    with pytest.raises(ValueError, match="has a LoRA adapter"):
        born_again(model, fit, verbose=False)


def test_a_chain_says_what_does_not_fit_before_it_trains():
    trained = []
    with pytest.raises(ValueError, match=r"student \(None, 5\), teacher \(None, 3\)"):
        distill_chain([mlp(3), mlp(2), mlp(1, units=5)], trained.append, verbose=False)
    with pytest.raises(TypeError, match="`student` must be a keras.Model"):
        distill_chain([mlp(3), mlp(2), "small"], trained.append, verbose=False)
    with pytest.raises(TypeError, match="`fit` must be a function"):
        distill_chain([mlp(3), mlp(2)], None)
    with pytest.raises(ValueError, match="two models or more; got 1"):
        distill_chain(mlp(3), trained.append)
    assert trained == []


def test_one_student_is_no_cohort():
    with pytest.raises(TypeError, match="`students` must be keras.Models; got str"):
        MutualLearning(students=["a", mlp(1)])
    with pytest.raises(ValueError, match="'unbuilt' is not built"):
        MutualLearning(students=[keras.Sequential([layers.Dense(3)], name="unbuilt"), mlp(1)])
    with pytest.raises(ValueError, match="two students or more; got 1"):
        MutualLearning(students=[mlp(1)])
    model = mlp(1)
    with pytest.raises(ValueError, match="same model"):
        MutualLearning(students=[model, model])


def fit(distiller):
    distiller.compile(keras.optimizers.SGD(0.1), loss=hard_loss(), run_eagerly=True)
    distiller.fit(*data(), batch_size=16, shuffle=False, verbose=0)


def test_a_chain_is_one_distillation_after_the_other(capsys):
    chain = [mlp(3, name="big"), mlp(2, name="middle"), mlp(1, name="small")]
    assert distill_chain(chain, fit) == chain
    assert "Link 1 of 2: big -> middle\nLink 2 of 2: middle -> small" in capsys.readouterr().out
    big, middle, small = mlp(3), mlp(2), mlp(1)
    fit(Distiller(student=middle, teacher=big))
    fit(Distiller(student=small, teacher=middle))
    for ours, expected in zip(chain[2].weights, small.weights, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_chain_that_was_stopped_goes_on(tmp_path):
    trained = []

    def once(distiller):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(distiller.student)
        fit(distiller)

    with pytest.raises(KeyboardInterrupt):
        distill_chain([mlp(3), mlp(2), mlp(1)], once, folder=tmp_path, verbose=False)
    assert {path.name for path in tmp_path.iterdir()} == {"link_1.weights.h5", "link_1.weights.teacher"}
    calls = []
    again = distill_chain([mlp(3), mlp(5), mlp(1)], lambda d: (calls.append(d), fit(d)), folder=tmp_path, verbose=False)
    assert [d.student for d in calls] == [again[2]]
    np.testing.assert_array_equal(again[1].layers[1].kernel, trained[0].layers[1].kernel)


def test_a_folder_of_other_models_and_a_fit_that_does_nothing(tmp_path):
    distill_chain([mlp(3), mlp(1)], fit, folder=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="what another teacher than 'other' as it is now has taught"):
        distill_chain([mlp(4, name="other"), mlp(1)], fit, folder=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="weights of another net than 'wide'"):
        distill_chain([mlp(3), mlp(1, width=9, name="wide")], fit, folder=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="left the weights of 'idle' as they were"):
        distill_chain([mlp(3), mlp(1, name="idle")], lambda distiller: None, verbose=False)


def test_generations_start_from_weights_of_their_own():
    made = []
    model = mlp(7)

    def distill(student, teacher):
        made.append((student, teacher, np.array(student.layers[1].kernel)))
        return Distiller(student=student, teacher=teacher)

    found = born_again(model, fit, generations=2, distill=distill, verbose=False)
    assert found[0] is model
    assert [(s, t) for s, t, _ in made] == [(found[1], found[0]), (found[2], found[1])]
    starts = [np.array(model.layers[1].kernel), *(start for _, _, start in made)]
    assert not any(np.allclose(a, b) for a, b in itertools.pairwise(starts))


def test_what_is_no_chain():
    with pytest.raises(ValueError, match="two models or more; got 1"):
        distill_chain([mlp(1)], fit)
    with pytest.raises(TypeError, match="`distill` must return a Distiller of the student"):
        distill_chain([mlp(1), mlp(2)], fit, distill=lambda student, teacher: None, verbose=False)
