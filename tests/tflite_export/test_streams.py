"""Representative data that come a batch at a time: what memory holds, how often they are read, what goes wrong."""

import weakref

import numpy as np
import pytest

import tflite_export
from tflite_export.sources import quality, samples
from tflite_export.sources.protocol import InputSpec

ONE = {"x": InputSpec((None, 12), "float32")}


class Watched:
    """Batches of 4, of which it knows how many are alive."""

    def __init__(self, count):
        self.count, self.passes, self.most = count, 0, 0
        self.alive = weakref.WeakSet()

    def __iter__(self):
        self.passes += 1
        generator = np.random.default_rng(0)
        for _ in range(self.count):
            batch = np.asarray(generator.normal(size=(4, 12)), "float32").view(Tracked)
            self.alive.add(batch)
            self.most = max(self.most, len(self.alive))
            yield batch
            del batch


class Tracked(np.ndarray):
    """An array that can be counted."""

    __hash__ = object.__hash__


@pytest.mark.parametrize("precision", ["int8", "int16x8"])
def test_memory_holds_a_few_batches_however_many_there_are(dense, precision):
    data = Watched(60)
    file = tflite_export.convert(dense, precision, data, max_samples=240)
    assert data.most <= 4
    assert data.passes == 2  # the first samples, then all of them once
    whole = np.concatenate([np.asarray(batch) for batch in Watched(60)])
    assert file.content == tflite_export.convert(dense, precision, whole).content


def test_a_generator_is_read_once(dense):
    whole = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
    file = tflite_export.convert(dense, "int8", (whole[start : start + 8] for start in range(0, 40, 8)))
    assert file.content == tflite_export.convert(dense, "int8", whole).content
    stream = samples.Stream(ONE, iter([whole[:10], whole[10:]]))
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in stream.batches()]), whole)
    with pytest.raises(ValueError, match=r"generator, which can be read only once(.|\n)*without calling it"):
        stream.batches()


def test_other_forms_are_read_again(dense):
    whole = np.random.default_rng(0).normal(size=(40, 12)).astype("float32")
    for form in (whole, lambda: iter([whole]), [whole], {"x": whole}):
        stream = samples.Stream(ONE, form, limit=20)
        first, second = ([batch["x"] for batch in stream.batches()] for _ in range(2))
        np.testing.assert_array_equal(np.concatenate(first), np.concatenate(second))
        assert len(np.concatenate(first)) == 20
        np.testing.assert_array_equal(stream.head["x"], np.concatenate(first)[:8])


@pytest.mark.parametrize("signatures", [False, True])
def test_what_goes_wrong_while_reading_comes_out_as_it_is(dense, signatures):
    good = np.zeros((8, 12), "float32")

    def broken():
        yield good
        raise KeyError("file 7 is missing")

    def nan():
        yield good
        yield good * np.nan

    source, wrap = ({"f": dense}, lambda data: {"f": data}) if signatures else (dense, lambda data: data)
    with pytest.raises(KeyError, match="file 7 is missing"):
        tflite_export.convert(source, "int8", wrap(broken()))
    with pytest.raises(ValueError, match=r"batch 1 of representative_data.*96 of 96 values are NaN"):
        tflite_export.convert(source, "int8", wrap(nan))
    with pytest.raises(ValueError, match="values are NaN"):  # arrays are looked at before anything is converted
        samples.Stream(ONE, np.concatenate([*[good] * 9, good * np.nan]))


def test_the_number_of_samples_is_known_of_arrays():
    whole = np.zeros((100, 12), "float32")
    assert samples.Stream(ONE, whole).count == 100
    assert samples.Stream(ONE, {"x": whole}, limit=70).count == 70
    assert samples.Stream(ONE, iter([whole])).count is None


def test_regrouped():
    parts = [np.arange(start, stop)[:, None] for start, stop in ((0, 3), (3, 4), (4, 9), (9, 11))]
    groups = [group["x"].ravel().tolist() for group in samples.regrouped(iter({"x": part} for part in parts), 4)]
    assert groups == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 0]]
    few = [group["x"].ravel().tolist() for group in samples.regrouped(iter([{"x": np.arange(3)[:, None]}]), 5)]
    assert few == [[0, 1, 2, 0, 1]]


def test_statistics_of_batches_are_those_of_the_whole():
    generator = np.random.default_rng(1)
    cases = {
        "outliers": np.where(np.arange(40_000).reshape(40, 1000) == 7, 500.0, generator.normal(size=(40, 1000))),
        "constant": np.full((40, 1000), 3.0),
        "alike": np.repeat(generator.normal(size=(1, 1000)), 40, axis=0),
        "few": generator.normal(size=(20, 1000)),
    }
    for kind, values in cases.items():
        seen = quality.Statistics()
        for start in range(0, len(values), 7):
            seen.add({"x": values[start : start + 7].astype("float32")})
        found = seen.findings()
        assert kind in {one.kind for one in found}
        assert [one.problem for one in found] == [
            one.problem for one in quality.findings({"x": values.astype("float32")})
        ]


def test_statistics_keep_a_bounded_number_of_numbers():
    seen = quality.Statistics()
    for _ in range(30):
        seen.add({"x": np.ones((1, 100_000), "float32")})
    assert sum(part.size for part in seen._ranges["x"]._kept) <= 2**20


def test_early_and_late_numbers_weigh_the_same():
    seen = quality.Statistics()
    for number in range(40):
        seen.add({"x": np.full((1, 100_000), 1 + number // 20, "float32")})
    kept = np.concatenate(seen._ranges["x"]._kept)
    assert np.mean(kept == 2) == pytest.approx(0.5, abs=0.02)


def test_what_is_found_depends_on_all_batches_and_both_signs():
    generator = np.random.default_rng(2)
    mixed = generator.normal(size=(42, 300)).astype("float32")
    mixed[35:] = mixed[0]  # the last batch is like the first sample, those between are not
    mixed[20, 5] = -900
    words = np.zeros((42, 9), "int32")  # of integers only whether they are alike is told
    seen = quality.Statistics()
    for start in range(0, 42, 7):
        seen.add({"x": mixed[start : start + 7], "words": words[start : start + 7]})
    assert [(one.kind, one.where) for one in seen.findings()] == [("outliers", "x")]


def test_outliers_in_one_sample_and_in_all():
    values = np.random.default_rng(0).normal(size=(64, 5000)).astype("float32")
    assert quality.findings({"x": values}) == []
    values[:, 7] = 500.0
    (found,) = quality.findings({"x": values})
    assert "times the 99.9th percentile" in found.problem
    values[:, 7] = 0.0
    values[40, 9] = -500.0
    (found,) = quality.findings({"x": values})
    assert found.problem.startswith("sample 40 reaches 500")
