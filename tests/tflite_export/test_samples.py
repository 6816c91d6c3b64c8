"""Representative data: every accepted form gives the same arrays, every bad one a clear error. No TensorFlow runs."""

import numpy as np
import pytest

import tflite_export
from tflite_export.sources import samples
from tflite_export.sources.protocol import InputSpec

ONE = {"x": InputSpec((None, 3), "float32")}
TWO = {"a": InputSpec((None, 3), "float32"), "b": InputSpec((None, 2), "int32")}
X = np.arange(12, dtype="float32").reshape(4, 3)
B = np.arange(8, dtype="int32").reshape(4, 2)


class _PyDataset:
    def __len__(self):
        return 2

    def __getitem__(self, index):  # never raises IndexError, as keras.utils.PyDataset
        return X[2 * index : 2 * index + 2], np.zeros(2)


@pytest.mark.parametrize(
    "form",
    [
        X,
        X.astype("float64"),
        X.astype("uint8"),
        [X],
        (X,),
        {"x": X},
        _PyDataset(),
        lambda: iter([X[:1], X[1:]]),
    ],
)
def test_forms_of_one_input(form):
    np.testing.assert_array_equal(samples.read(ONE, form)["x"], X)
    assert samples.read(ONE, form)["x"].dtype == np.float32


@pytest.mark.parametrize("batch", [X[:2], (X[:2],), (X[:2], "y"), (X[:2], "y", "w"), [X[:2]], {"x": X[:2]}])
def test_forms_of_a_batch(batch):
    np.testing.assert_array_equal(samples.read(ONE, iter([batch, batch]))["x"], np.concatenate([X[:2]] * 2))


@pytest.mark.parametrize("form", [[X, B], (X, B), {"b": B, "a": X}, iter([([X, B], 0)]), iter([((X, B), 0)])])
def test_forms_of_two_inputs(form):
    found = samples.read(TWO, form)
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], X)
    np.testing.assert_array_equal(found["b"], B)


def test_tf_data():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices((X, np.zeros(4))).batch(3)
    np.testing.assert_array_equal(samples.read(ONE, data)["x"], X)
    unbatched = tf.data.Dataset.from_tensor_slices(X)
    with pytest.raises(ValueError, match=r"expected shape \(n, 3\); got \(3,\). The batch dimension is missing"):
        samples.read(ONE, unbatched)


def test_limit_spreads_over_arrays_and_stops_generators():
    many = np.arange(300, dtype="float32").reshape(100, 3)
    chosen = samples.read(ONE, many, limit=5)["x"][:, 0] / 3
    np.testing.assert_array_equal(chosen, [0, 24, 49, 74, 99])
    drawn = []

    def endless():
        while True:
            drawn.append(1)
            yield X[:2]

    assert samples.read(ONE, endless(), limit=5)["x"].shape == (5, 3)
    assert len(drawn) == 3
    assert samples.read(ONE, endless(), limit=4)["x"].shape == (4, 3)
    assert len(drawn) == 5  # no batch more than needed


def test_groups_fill_the_last_batch():
    batches = [batch["x"][:, 0].tolist() for batch in samples.groups({"x": X}, 3)]
    assert batches == [[0, 3, 6], [9, 0, 3]]


@pytest.mark.parametrize(
    ("inputs", "data", "message"),
    [
        (ONE, X[0], r"expected shape \(n, 3\); got \(3,\). The batch dimension is missing"),
        (ONE, X[:, :2], r"input 'x': expected shape \(n, 3\); got \(4, 2\)"),
        (ONE, X[:0], r"input 'x': empty, shape \(0, 3\)"),
        (ONE, np.where(X == 5, np.nan, X), r"input 'x': 1 of 12 values are NaN or infinite"),
        (ONE, X.astype("float64") * 1e300, r"11 of 12 values are NaN or infinite in float32"),
        (ONE, X.astype(str), r"input 'x': expected dtype float32; got <U"),
        (ONE, X.astype(bool), r"expected dtype float32; got bool"),
        (ONE, X + 1j, r"expected dtype float32; got complex"),
        (ONE, list(X), r"list of 4: it must hold one array .*np.stack\(samples\)"),
        (ONE, {"y": X}, r"must name the inputs 'x'; got \['y'\] \(unknown \['y'\]\)"),
        (ONE, iter([]), r"is empty: it gave no batch"),
        (ONE, iter([X, np.where(X == 5, np.inf, X)]), r"batch 1 of representative_data, input 'x': 1 of 12 values"),
        (ONE, iter([(X, 1, 2, 3)]), r"a tuple of 4; a tuple means \(x, y\)"),
        (TWO, X, r"one array, but the model has the inputs 'a', 'b'"),
        (TWO, [B, X], r"input 'a': expected shape \(n, 3\); got \(4, 2\)"),
        (TWO, [X], r"list of 1: it must hold one array for each of the inputs 'a', 'b'"),
        (TWO, {"a": X}, r"missing \['b'\]"),
        (TWO, {"a": X, "b": B, "c": B}, r"unknown \['c'\]"),
        (TWO, [X, B[:3]], r"as many samples as the others; got \{'a': 4, 'b': 3\}"),
        (TWO, [X, B.astype("float32")], r"input 'b': expected dtype int32; got float32"),
        (TWO, [X, B.astype("int64") + 2**40], r"do not fit int32"),
        ({"u": InputSpec((None, 2), "uint8")}, B.astype("int64") + 250, r"values from 250 to 257 do not fit uint8"),
        (TWO, iter([(X, B)]), r"one array, but the model has the inputs"),
    ],
)
def test_bad_data(inputs, data, message):
    with pytest.raises(ValueError, match=message):
        samples.read(inputs, data)


@pytest.mark.parametrize("data", [3, "data.npz", b"x", iter(["x"]), iter([None])])
def test_not_data_at_all(data):
    with pytest.raises(TypeError, match="an array"):
        samples.read(ONE, data)


def test_bad_data_is_refused_before_conversion(dense, monkeypatch):
    def never(*_):
        raise AssertionError("converted")

    monkeypatch.setattr("tflite_export.conversion.convert.traced", never)
    with pytest.raises(ValueError, match="NaN"):
        tflite_export.convert(dense, "int8", np.full((5, 12), np.nan))
    with pytest.raises(ValueError, match="NaN"):  # also where it would only check the file
        tflite_export.convert(dense, "float32", np.full((5, 12), np.nan))
    with pytest.raises(ValueError, match="`max_samples` must be an integer >= 1; got 0"):
        tflite_export.convert(dense, "int8", np.ones((5, 12)), max_samples=0)


def test_int8_of_a_float_model_needs_data(dense):
    with pytest.raises(ValueError, match="'int8' needs `representative_data`"):
        tflite_export.convert(dense, "int8")


def test_only_max_samples_set_the_range(dense):
    x = np.ones((100, 12), "float32")
    x[50] = 80.0  # not among 0, 33, 66, 99
    file = tflite_export.convert(dense, "int8", x, max_samples=4)
    assert file.inputs[0].scale == pytest.approx(1 / 255, rel=1e-4)
    assert tflite_export.convert(dense, "int8", x).inputs[0].scale == pytest.approx(80 / 255, rel=1e-4)
