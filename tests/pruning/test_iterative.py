"""The loop of compressing and training: against a hand-made loop, stopped, rewound, recalibrated."""

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.core.copying import copy_model
from kdopt.pruning.iterative import iterative, rewind_weights
from kdopt.pruning.prune import prune
from kdopt.pruning.robustness import robustness
from kdopt.pruning.zeros import keep_zeros

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6, 6, 2)).astype("float32")
Y = (X[:, :3].mean(axis=(1, 2, 3)) > 0).astype("int32")


def net(seed=0):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", name="depth")(x)])
    head = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="out")], name="head")
    model = keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=False)
    return model


def halve(model, number):
    return prune(model, 1 - 0.5**number)[0]


def fit(model, number):
    keras.utils.set_random_seed(number)
    with keep_zeros(model):
        model.fit(X, Y, epochs=1, verbose=0)


def minus_loss(model):
    logits = model(X).numpy().astype("float64")
    return float(np.mean(logits[np.arange(len(Y)), Y] - np.log(np.exp(logits).sum(axis=1))))


def assert_same(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def kernels(model):
    owners = (model.get_layer("stem"), model.get_layer("depth"), model.get_layer("head").get_layer("out"))
    return [layer.kernel.numpy() for layer in owners]


def disturb(model, number=0):
    """A training that costs nothing: moves every weight that is not zero."""
    random = np.random.default_rng(number)
    model.set_weights([w + (w != 0) * random.uniform(0.1, 0.2, w.shape) for w in model.get_weights()])


def test_equals_the_loop_written_out():
    start = net()
    before = [w.copy() for w in start.get_weights()]
    report = iterative(start, halve, fit, 2, evaluate=minus_loss, progress=False)
    for now, then in zip(start.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    current = copy_model(start)
    for number in (1, 2):
        current = halve(current, number)
        fit(current, number)
        one = report.rounds[number - 1]
        values = np.concatenate([k.reshape(-1) for k in kernels(current)])
        assert (one.number, one.sparsity) == (number, np.mean(values == 0))
        assert one.value == pytest.approx(minus_loss(current), rel=1e-6)
        assert one.nonzero == sum(np.count_nonzero(w) for w in current.get_weights())
        assert one.parameters == start.count_params()
    assert_same(report.model, current)
    assert report.start.number == 0
    assert report.start.value == pytest.approx(minus_loss(start), rel=1e-6)
    assert report.stopped == "all 2 rounds done"


def test_prints_a_line_a_round_and_the_report_says_the_same(capsys):
    report = iterative(net(), halve, None, 2, evaluate=lambda m: 0.5, robustness_metric=lambda m: 0.25)
    printed = capsys.readouterr().out.splitlines()
    assert printed == str(report).splitlines()[:3]
    assert printed[0].startswith("round  0  sparsity 0.0000")
    assert "  metric 0.5000  under corruptions 0.2500  " in printed[2]
    assert str(report).endswith("all 2 rounds done; best: round 2")
    assert "metric" not in str(iterative(net(), halve, None, 1, progress=False))


def scripted(values):
    """`evaluate` that gives the start and each round its value."""
    left = list(values)
    return lambda model: left.pop(0)


def test_stops_when_the_metric_falls_behind_and_returns_the_best():
    values = [0.90, 0.93, 0.91, 0.80, 0.70, 0.95]
    report = iterative(net(), halve, None, 5, evaluate=scripted(values), patience=2, min_delta=0.03, progress=False)
    assert [r.value for r in report.rounds] == values[1:5]  # 0.80 and 0.70 are below 0.93 - 0.03
    assert report.stopped == "stopped: the metric fell behind in the last 2 rounds"
    assert report.best == report.rounds[1]  # the smallest that is within 0.03 of 0.93
    assert np.mean(kernels(report.best_model)[0] == 0) == pytest.approx(0.75, abs=0.01)
    assert np.mean(kernels(report.model)[0] == 0) > 0.9


def test_a_target_decides_what_is_good_enough():
    values = [0.99, 0.95, 0.89, 0.91, 0.5]
    report = iterative(net(), halve, None, 4, evaluate=scripted(values), target=0.9, progress=False)
    assert report.best.number == 3
    assert np.mean(kernels(report.best_model)[0] == 0) == pytest.approx(0.875, abs=0.01)
    report = iterative(net(), halve, None, 4, evaluate=scripted(values), target=0.9, patience=1, progress=False)
    assert (len(report.rounds), report.best.number) == (2, 1)
    none = iterative(net(), halve, None, 2, evaluate=scripted(values), target=0.97, progress=False)
    assert none.best is none.best_model is None
    assert str(none).endswith("no round holds the metric")
    assert none.model is not None


@pytest.mark.parametrize("pattern", ["unstructured", "channel"])
def test_rewound_weights_are_the_early_ones_where_they_survived(pattern):
    early = net(1)
    disturb(early)
    start = copy_model(early)
    disturb(start, 7)
    start.get_layer("head").get_layer("out").bias.assign([0.0, 0.3])  # a zero that was not pruned
    pruned, rewound = [], []

    def compress(model, number):
        made = prune(model, 0.25 * number, pattern=pattern, layers=["stem", "depth"])[0]
        pruned.append(made.get_weights())
        return made

    def train(model, number):
        rewound.append(model.get_weights())
        disturb(model, number)

    rewind_to = early if pattern == "channel" else early.get_weights()
    iterative(start, compress, train, 2, rewind="weights", rewind_to=rewind_to, progress=False)
    stay = {"unstructured": ["kernel"], "channel": ["kernel", "bias", "gamma", "beta"]}[pattern]
    kept = dict.fromkeys(stay, 0)
    for now, then in zip(rewound, pruned, strict=True):
        for variable, own, cut, old in zip(start.weights, now, then, early.get_weights(), strict=True):
            in_pruned = variable.path.split("/")[-2] in ("stem", "depth", "norm")
            gone = (cut == 0) & (variable.name in stay) & in_pruned
            np.testing.assert_array_equal(own, np.where(gone, 0, old), err_msg=variable.path)
            if variable.name in stay:
                kept[variable.name] += int(gone.sum())
    assert all(kept.values())


def test_only_the_zeros_of_dead_channels_stay_in_a_bias():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="a")])
    layer = model.get_layer("a")
    layer.set_weights([np.array([[0.0, 0, 5], [0, 0, 0]]), np.array([0.0, 7, 0])])
    rewind_weights(model, [np.arange(1.0, 7).reshape(2, 3), np.array([10.0, 20, 30])])
    np.testing.assert_array_equal(layer.kernel.numpy(), [[0, 0, 3], [0, 0, 0]])
    np.testing.assert_array_equal(layer.bias.numpy(), [0, 20, 30])


def test_learning_rate_rewinding_begins_the_schedule_anew_and_keeps_the_weights():
    start = net()
    rate = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 1e-9])
    start.compile(keras.optimizers.SGD(rate, momentum=0.9), start.loss, jit_compile=False)
    start.fit(X, Y, batch_size=32, epochs=2, verbose=0)
    steps, rates = [], []

    def compress(model, number):  # keeps the optimizer of the model it gets, with its momentum
        other = prune(model, 0.2 * number)[0]
        if model.optimizer.built:
            other.optimizer.build(other.trainable_variables)
            for own, old in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
                own.assign(old)
        return other

    def train(model, number):
        steps.append(int(model.optimizer.iterations))
        assert not any(np.any(v.numpy()) for v in model.optimizer.variables if "momentum" in v.path)
        before = [w.copy() for w in model.get_weights()]
        rates.append(float(model.optimizer.learning_rate))
        model.fit(X, Y, batch_size=32, epochs=2, verbose=0)
        assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(before, model.get_weights(), strict=True))

    report = iterative(start, compress, train, 2, rewind="learning_rate", progress=False)
    assert steps == [0, 0]
    assert rates == pytest.approx([0.1, 0.1])
    assert int(report.model.optimizer.iterations) == 4


def test_recalibrated_statistics_are_those_of_the_pruned_net():
    report = iterative(net(), halve, None, 1, recalibrate=X, progress=False)
    before_norm = report.model.get_layer("stem")(X).numpy()
    norm = report.model.get_layer("norm")
    np.testing.assert_allclose(norm.moving_mean.numpy(), before_norm.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(norm.moving_variance.numpy(), before_norm.var((0, 1, 2)), rtol=1e-5)
    plain = iterative(net(), halve, None, 1, progress=False).model.get_layer("norm")
    assert np.abs(plain.moving_mean.numpy() - norm.moving_mean.numpy()).max() > 1e-3


def test_robustness_is_measured_before_and_after():
    def robust(model):
        return robustness(lambda x: np.mean(model(x).numpy().argmax(-1) == Y), X, severities=(2,))

    report = iterative(net(), halve, None, 1, robustness_metric=robust, progress=False)
    assert report.start.robustness == pytest.approx(robust(net()).mean)
    assert report.rounds[0].robustness == pytest.approx(robust(report.model).mean)


def early_of_another_shape():
    return {"rewind": "weights", "rewind_to": [np.zeros(3)]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "`rounds` must be an integer >= 1; got 0"),
        ({"patience": 0}, "`patience` must be an integer >= 1"),
        ({"patience": 1, "evaluate": None}, "need a metric: pass `evaluate=`"),
        ({"target": 0.9, "evaluate": None}, "need a metric"),
        ({"target": float("nan")}, "`target` must be a finite number"),
        ({"min_delta": -1}, "`min_delta` must be a number >= 0"),
        ({"rewind": "weight"}, "Did you mean 'weights'"),
        ({"rewind": "weights"}, "go together; got rewind='weights' and no `rewind_to`"),
        ({"rewind_to": net}, "go together; got rewind=None and a `rewind_to`"),
        (early_of_another_shape(), "Weights to rewind to must have the shapes of"),
        ({"train": 3}, "must be functions .*; got 3"),
        ({"compress": lambda m, r: m}, "`compress` returned the model of the round before"),
        ({"compress": lambda m, r: None}, "`compress` must return a keras.Model; got None"),
        ({"train": lambda m, r: 3.0}, "`train` must return a keras.Model; got 3.0"),
        ({"evaluate": lambda m: np.inf}, "The metric of the model before the first round is inf"),
    ],
)
def test_bad_arguments(arguments, message):
    given = {"compress": halve, "train": None, "rounds": 1, "evaluate": lambda m: 1.0, "progress": False}
    with pytest.raises((ValueError, TypeError), match=message):
        iterative(net(), **{**given, **arguments})


def test_nothing_to_recalibrate_is_said():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="has no BatchNormalization"):
        iterative(model, halve, None, 1, recalibrate=np.ones((4, 2)), progress=False)
    with pytest.raises(TypeError, match="`recalibrate` must be data, or None; got True"):
        iterative(model, halve, None, 1, recalibrate=True, progress=False)


def test_a_first_round_that_falls_behind_the_start_counts():
    values = iter([0.9, 0.5])
    report = iterative(net(), halve, None, 3, evaluate=lambda model: next(values), patience=1, progress=False)
    assert len(report.rounds) == 1
