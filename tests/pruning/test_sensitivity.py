"""The table of sensitivities, against kernels pruned and nets evaluated by hand in NumPy."""

import json

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.pruning.allocation import PerLayer
from kdopt.pruning.prune import prune
from kdopt.pruning.robustness import robustness
from kdopt.pruning.sensitivity import Measurement, Sensitivity, from_sensitivity, highest_within, sensitivity

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 12)).astype("float32")
Y = np.argmax(X[:, :3] + 0.3 * RANDOM.normal(size=(200, 3)), axis=1)
LEVELS = (0.5, 0.8, 0.95)


def mlp(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((12,)), layers.Dense(16, activation="relu", name="a"), layers.Dense(3, name="b")]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"], jit_compile=False)
    model.fit(X, Y, epochs=4, verbose=0)
    return model


@pytest.fixture(scope="module")
def trained():
    return mlp()


def without_smallest(kernel, sparsity):
    """The kernel with its smallest weights zero, by a sort."""
    flat = kernel.reshape(-1).copy()
    flat[np.argsort(np.abs(flat), kind="stable")[: round(sparsity * flat.size)]] = 0
    return flat.reshape(kernel.shape)


def accuracy(weights):
    a, bias, b, offset = weights
    return np.mean(np.argmax(np.maximum(X @ a + bias, 0) @ b + offset, axis=1) == Y)


def by_hand(weights):
    """(kernel, sparsity) -> accuracy."""
    table = {}
    for name, place in (("a", 0), ("b", 2)):
        for level in LEVELS:
            pruned = [w.copy() for w in weights]
            pruned[place] = without_smallest(pruned[place], level)
            table[name, level] = accuracy(pruned)
    return table


def test_every_number_is_that_of_one_kernel_pruned_by_hand(trained):
    before = [w.copy() for w in trained.get_weights()]
    found = sensitivity(trained, (X, Y), sparsities=(0.95, 0.5, 0.8), progress=False)
    assert found.baseline == pytest.approx(accuracy(before), abs=1e-6)
    assert found.metric == "accuracy"
    assert {(r.layer, r.sparsity): r.value for r in found.rows} == pytest.approx(by_hand(before), abs=1e-6)
    assert len({r.value for r in found.rows}) >= 4  # the levels and kernels are told apart
    assert found.row("b", 0.8).reached == round(0.8 * 48) / 48
    assert found.drop("b", 0.95) == found.baseline - found.row("b", 0.95).value
    for now, then in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@keras.saving.register_keras_serializable("test_sensitivity")
class Own(keras.Model):
    """Subclassed, with a branch and a nested model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stem = layers.Conv2D(4, 3, padding="same", name="stem")
        self.depth = layers.DepthwiseConv2D(3, padding="same", name="depth")
        self.head = keras.Sequential([layers.GlobalAveragePooling2D(), layers.Dense(2, name="out")], name="head")

    def call(self, x):
        x = self.stem(x)
        return self.head(x + self.depth(x))


def functional():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    x = layers.Concatenate()([layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", name="depth")(x)]), x])
    head = keras.Sequential(
        [keras.Input((8,)), layers.BatchNormalization(), layers.Dense(2, use_bias=False, name="out")], name="head"
    )
    return keras.Model(inputs, head(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("make", [functional, Own])
def test_functions_of_the_model_on_branched_nested_and_subclassed_nets(make):
    images = RANDOM.normal(size=(8, 6, 6, 2)).astype("float32")
    model = make()
    whole = model(images).numpy()

    def metric(other):
        return -float(np.square(other(images).numpy() - whole).mean())

    found = sensitivity(model, metric=metric, sparsities=(0.5,), progress=False)
    assert found.baseline == 0
    assert found.layers == ("stem", "depth", "out")
    owners = {"stem": model.get_layer("stem"), "depth": model.get_layer("depth")}
    owners["out"] = model.get_layer("head").get_layer("out")
    for row in found.rows:
        kernel = owners[row.layer].kernel
        stored = kernel.numpy()
        kernel.assign(without_smallest(stored, 0.5))
        expected = -np.square(model(images).numpy() - whole).mean()
        kernel.assign(stored)
        assert row.value == pytest.approx(expected, rel=1e-5)
        assert row.value < 0


def test_coupled_kernels_are_pruned_together():
    inputs = keras.Input((4, 6))
    outputs = layers.MultiHeadAttention(2, 3, name="mha")(inputs, inputs)
    model = keras.Model(inputs, outputs)
    x = RANDOM.normal(size=(3, 4, 6)).astype("float32")
    found = sensitivity(
        model, metric=lambda m: float(m(x).numpy().std()), sparsities=(0.5,), pattern="head", progress=False
    )
    assert len(found.rows) == 4
    assert len({row.value for row in found.rows}) == 1
    assert {row.reached for row in found.rows} == {0.5}
    assert found.rows[0].value != pytest.approx(found.baseline, rel=1e-3)


def test_a_metric_that_trains_the_copy_does_not_disturb_the_next(trained):
    def metric(model):
        value = accuracy(model.get_weights())
        model.set_weights([w * 0 for w in model.get_weights()])
        return value

    found = sensitivity(trained, metric=metric, sparsities=LEVELS, progress=False)
    expected = by_hand(trained.get_weights())
    assert {(r.layer, r.sparsity): r.value for r in found.rows[1:]} == pytest.approx(
        {k: v for k, v in expected.items() if k != ("a", 0.5)}, abs=1e-6
    )


class Killed(Exception):
    pass


def counting(calls, last=None):
    def metric(model):
        calls.append(1)
        if len(calls) == last:
            raise Killed
        return accuracy(model.get_weights())

    return metric


def test_a_killed_call_is_continued(trained, tmp_path):
    file, calls = tmp_path / "folder" / "sensitivity.json", []
    undisturbed = sensitivity(trained, metric=counting([]), sparsities=LEVELS, progress=False)
    with pytest.raises(Killed):
        sensitivity(trained, metric=counting(calls, last=5), sparsities=LEVELS, progress=False, resume=file)
    assert len(json.loads(file.read_text())["entries"]) == 4  # the whole model and three measurements
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    calls.clear()
    resumed = sensitivity(trained, metric=counting(calls), sparsities=LEVELS, progress=False, resume=file)
    assert resumed == undisturbed
    assert len(calls) == 1 + 3  # the whole model again, and what was missing
    calls.clear()
    more = sensitivity(trained, metric=counting(calls), sparsities=(0.5, 0.7), progress=False, resume=file)
    assert len(calls) == 1 + 2
    assert more.row("a", 0.5) == undisturbed.row("a", 0.5)


def test_a_file_of_something_else_is_refused(trained, tmp_path):
    file = tmp_path / "s.json"
    settings = {"sparsities": (0.5,), "progress": False, "resume": file}
    sensitivity(trained, (X, Y), **settings)
    stored = file.read_bytes()
    with pytest.raises(ValueError, match=r"made with something else: weights was .*Delete it"):
        sensitivity(mlp(1), (X, Y), **settings)
    with pytest.raises(ValueError, match=r"pattern was \['Unstructured', {}\], now \['Channel', {'groups': 'layer'}\]"):
        sensitivity(trained, (X, Y), pattern="channel", **settings)
    with pytest.raises(ValueError, match="criterion was .*L1.* now .*L2"):
        sensitivity(trained, (X, Y), criterion="l2", **settings)
    with pytest.raises(ValueError, match="something else: data was"):
        sensitivity(trained, (X[:-1], Y[:-1]), **settings)
    assert file.read_bytes() == stored
    file.write_text("{")
    with pytest.raises(ValueError, match="is no file to continue from"):
        sensitivity(trained, (X, Y), **settings)


def test_other_data_inside_a_function_is_noticed_by_the_whole_model(trained, tmp_path):
    def metric(model):
        return scale * accuracy(model.get_weights())

    settings = {"metric": metric, "sparsities": (0.5,), "progress": False, "resume": tmp_path / "s.json"}
    scale = 1
    sensitivity(trained, **settings)
    scale = 0.9
    with pytest.raises(ValueError, match="metric of the whole model is .* but .* in .*: the data or the metric"):
        sensitivity(trained, **settings)


def test_robustness_is_that_of_the_pruned_net():
    images = RANDOM.random((20, 6, 6, 2)).astype("float32")
    labels = RANDOM.integers(0, 2, 20)
    model = functional()
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    found = sensitivity(
        model, (images, labels), sparsities=(0.9,), layers=["stem"], robustness_metric=True, progress=False
    )

    def of(net):
        return robustness(lambda x: np.mean(net.predict(x, verbose=0).argmax(-1) == labels), images).mean

    assert found.robustness == pytest.approx(of(model), abs=1e-6)
    kernel = model.get_layer("stem").kernel
    kernel.assign(without_smallest(kernel.numpy(), 0.9))
    assert found.rows[0].robustness == pytest.approx(of(model), abs=1e-6)
    own = sensitivity(
        model,
        metric=lambda m: 1.0,
        sparsities=(0.9,),
        layers=["stem"],
        progress=False,
        robustness_metric=lambda m: robustness(lambda x: float(x.mean()), images, severities=(1,)),
    )
    assert own.robustness == own.rows[0].robustness == pytest.approx(images.mean(), abs=0.02)
    assert "mean under corruptions" in str(own)


def table(drops, levels=(0.5, 0.8, 0.9)):
    rows = [Measurement(name, s, s, 0.9 - d) for name, own in drops.items() for s, d in zip(levels, own, strict=True)]
    return Sensitivity("accuracy", 0.9, tuple(rows))


def test_the_table_and_its_figure():
    result = table({"stem": (0.0, 0.02, 0.3), "a/very_long/name": (-0.01, 0.0, 0.01)})
    lines = str(result).splitlines()
    assert lines[0] == "accuracy with one kernel pruned; 0.9000 as it was"
    assert lines[2].split() == ["stem", "0.9000", "0.8800", "0.6000"]
    assert len({len(line) for line in lines[1:]}) == 1
    figure = result.figure()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.000", "0.020", "0.300", "-0.010", "0.000", "0.010"]
    assert figure.axes[0].images[0].get_array().max() == pytest.approx(0.3)
    with pytest.raises(KeyError, match="was not measured. Kernels: stem, a/very_long/name; sparsities: 0.5, 0.8, 0.9"):
        result.row("stem", 0.7)


def test_from_sensitivity():
    result = table({"a": (0.0, 0.02, 0.3), "b": (-0.01, 0.0, 0.01), "c": (0.04, 0.2, 0.5), "d": (0.03, 0.01, 0.2)})
    allocation = from_sensitivity(result, max_drop=0.01)
    assert isinstance(allocation, PerLayer)
    assert allocation.sparsities == {"a": 0.5, "b": 0.9, "c": 0.0, "d": 0.8}
    # On the line from (0.5, 0) to (0.8, 0.02): half of it. From (0, 0) to (0.5, 0.04): a quarter. d is at 0.8 exactly.
    between = from_sensitivity(result, max_drop=0.01, interpolate=True).sparsities
    assert between == pytest.approx({"a": 0.65, "b": 0.9, "c": 0.125, "d": 0.8}, abs=1e-4)
    with pytest.raises(ValueError, match=r"drop of 0.001 at most; the least that was measured is 0.02.*below 0.5"):
        from_sensitivity(table({"a": (0.02, 0.03, 0.3)}), max_drop=0.001)
    with pytest.raises(ValueError, match="`max_drop` must be a number >= 0; got -1"):
        from_sensitivity(result, -1)
    with pytest.raises(TypeError, match="what `sensitivity` returns"):
        from_sensitivity({"a": 0.5})


def test_interpolation_never_passes_the_next_level():
    levels = np.array([0, 0.5, 0.9])
    for drop in RANDOM.random((50, 2)):
        found = highest_within(levels, np.array([0, *drop]), 0.4, interpolate=True)
        expected = 0.9 if drop[1] <= 0.4 else np.interp(0.4, [0.0, drop[0]], [0, 0.5])
        if drop[0] <= 0.4 < drop[1]:
            expected = np.interp(0.4, drop, [0.5, 0.9])
        assert found == pytest.approx(expected, abs=1e-4)


def test_the_allocation_prunes_each_kernel_so_far(trained):
    found = sensitivity(trained, (X, Y), sparsities=LEVELS, progress=False)
    allocation = from_sensitivity(found, max_drop=0.05)
    report = prune(trained, allocation=allocation)[1]
    assert {r.layer: r.reached for r in report.layers} == pytest.approx(allocation.sparsities, abs=0.011)


def test_the_progress_bar_counts_measurements(trained, capsys):
    sensitivity(trained, (X, Y), sparsities=(0.5,))
    assert "2/2" in capsys.readouterr().out
    sensitivity(trained, (X, Y), sparsities=(0.5,), progress=False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": None}, "'accuracy' needs data, e.g. .*; none was given"),
        ({"data": iter([(X, Y)])}, "can be read only once"),
        ({"metric": "acc"}, "compiled with: accuracy, loss; got 'acc'"),
        ({"metric": "loss"}, "Of 'loss' lower is better"),
        ({"metric": lambda model: 1.0}, "`data` would not be used"),
        ({"metric": 3}, "name of a compiled metric or a function"),
        ({"data": None, "metric": lambda model: np.nan}, "metric of the whole model is nan"),
        ({"sparsities": (0.5, 1)}, r"`sparsities` must be a fraction in \[0, 1\); got 1"),
        ({"sparsities": ()}, "different fractions"),
        ({"sparsities": (0.5, 0.5)}, "different fractions"),
        ({"sparsities": (0, 0.5)}, r"fractions in \(0, 1\)"),
        ({"pattern": "n_m"}, "reaches a sparsity of 0.5 at most; got 0.95"),
        ({"criterion": "taylor"}, "Taylor needs samples: pass `criterion_data=`"),
        ({"layers": ["c"]}, "There is no layer 'c'"),
        ({"robustness_metric": 1.5}, "must be True or a function"),
        ({"data": None, "metric": lambda m: 1.0, "robustness_metric": True}, "needs the name of a metric"),
    ],
)
def test_bad_arguments(trained, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sensitivity(trained, **{"data": (X, Y), "progress": False, **arguments})


def test_a_metric_where_lower_is_better_and_a_model_that_is_not_compiled(trained):
    copy = keras.Sequential.from_config(trained.get_config())
    with pytest.raises(ValueError, match="is not compiled"):
        sensitivity(copy, (X, Y), progress=False)
    copy.compile("sgd", "mse", metrics=["mae"])
    with pytest.raises(ValueError, match="Of 'mae' lower is better"):
        sensitivity(copy, (X, X[:, :3]), "mae", progress=False)
