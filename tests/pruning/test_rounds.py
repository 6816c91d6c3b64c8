"""What is kept of rounds: which is the best, the files, and a process killed and gone on with."""

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from kdopt.pruning.iterative import iterative
from kdopt.pruning.metrics import digest
from kdopt.pruning.prune import prune
from kdopt.pruning.rounds import Round, Rule

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")


def net(seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu", name="a"), layers.Dense(2, name="b")]
    )
    model.compile("adam", "mse", jit_compile=False)
    return model


def halve(model, number):
    return prune(model, 1 - 0.5**number)[0]


def disturb(model, number=0):
    """A training that costs nothing: moves every weight that is not zero."""
    random = np.random.default_rng(number)
    model.set_weights([w + (w != 0) * random.uniform(0.1, 0.2, w.shape) for w in model.get_weights()])


def spread(model):
    return float(model(X).numpy().std())


def assert_same(model, other):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def rounds_of(*pairs):
    return [Round(n, 0.5, 100, size, value, None, 1.0) for n, (size, value) in enumerate(pairs, 1)]


def test_no_round_that_may_be_the_best_is_let_go():
    rule = Rule(None, None, 0.05)
    for _ in range(200):
        done = rounds_of(*zip(RANDOM.integers(1, 9, 6), RANDOM.integers(0, 9, 6) / 50, strict=True))
        gone = set()
        for n in range(1, 7):
            gone |= set(rule.needless(done[:n]))
        assert rule.best(done).number not in gone
        assert 6 not in gone  # the last one is the model to go on with


def test_standing_still_with_fewer_weights_is_progress():
    flat = rounds_of((9, 0.9), (8, 0.9), (7, 0.9))
    assert Rule(None, 1, 0.0).behind(flat) == 0
    assert Rule(None, 1, 0.0).behind(rounds_of((9, 0.9), (8, 0.89), (7, 0.9), (6, 0.8), (5, 0.89))) == 2
    assert Rule(None, 1, 0.0).best(rounds_of((7, 0.8), (7, 0.9), (9, 0.9))).number == 2


SCRIPT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from test_rounds import *

def slow(model, number):
    print("round", number, flush=True)
    time.sleep(0 if number == 1 else 60)
    disturb(model, number)

iterative(net(), halve, slow, 3, evaluate=spread, folder=sys.argv[1], progress=False)
"""


def test_a_killed_process_goes_on_after_the_last_finished_round(tmp_path):
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert [process.stdout.readline(), process.stdout.readline()] == ["round 1\n", "round 2\n"]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(json.loads((tmp_path / "rounds.json").read_text())["entries"]) == ["0", "1"]
    calls = []

    def train(model, number):
        calls.append(number)
        disturb(model, number)

    resumed = iterative(net(), halve, train, 3, evaluate=spread, folder=tmp_path, progress=False)
    assert calls == [2, 3]
    undisturbed = iterative(net(), halve, disturb, 3, evaluate=spread, progress=False)
    for one, other in zip(undisturbed.model.get_weights(), resumed.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["round_001.keras", "round_002.keras", "round_003.keras", "rounds.json"]


def test_a_finished_folder_is_read_and_more_rounds_go_on(tmp_path, capsys):
    first = iterative(net(), halve, disturb, 2, evaluate=spread, folder=tmp_path, progress=False)
    calls = []

    def train(model, number):
        calls.append(number)
        disturb(model, number)

    again = iterative(net(), halve, train, 2, evaluate=spread, folder=tmp_path)
    assert calls == []
    assert capsys.readouterr().out.splitlines()[-1].endswith("(on file)")
    assert (again.start, again.rounds, again.best) == (first.start, first.rounds, first.best)
    assert_same(again.model, first.model)
    assert_same(again.best_model, first.best_model)
    more = iterative(net(), halve, train, 3, evaluate=spread, folder=tmp_path, progress=False)
    assert calls == [3]
    assert more.rounds[:2] == first.rounds


def test_what_a_kill_left_half_written_is_made_again(tmp_path):
    iterative(net(), halve, None, 1, folder=tmp_path, progress=False)
    whole = iterative(net(), halve, None, 2, progress=False)
    (tmp_path / "round_002.keras").write_bytes(b"not yet in the journal")
    (tmp_path / ".writing_002.keras").write_bytes(b"cut off")
    report = iterative(net(), halve, None, 2, folder=tmp_path, progress=False)
    assert_same(report.model, whole.model)
    assert not (tmp_path / ".writing_002.keras").exists()
    (tmp_path / "round_002.keras").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"round_002.keras, which rounds.json .* is missing or damaged .*Delete"):
        iterative(net(), halve, None, 3, folder=tmp_path, progress=False)


def test_a_folder_of_another_loop_is_refused(tmp_path):
    iterative(net(), halve, None, 1, folder=tmp_path, settings={"rate": 0.1}, progress=False)
    with pytest.raises(ValueError, match="made with something else: model was"):
        iterative(net(5), halve, None, 2, folder=tmp_path, settings={"rate": 0.1}, progress=False)
    with pytest.raises(ValueError, match=r"made with something else: rate was 0.1, now 0.2"):
        iterative(net(), halve, None, 2, folder=tmp_path, settings={"rate": 0.2}, progress=False)
    with pytest.raises(ValueError, match="rewind was None, now 'learning_rate'"):
        iterative(net(), halve, None, 2, folder=tmp_path, settings={"rate": 0.1}, rewind="learning_rate")


class Unregistered(layers.Layer):
    def call(self, x):
        return x


def test_a_model_that_cannot_be_loaded_again_is_refused_before_any_work(tmp_path):
    model = keras.Sequential([keras.Input((2,)), layers.Dense(2), Unregistered()])

    def compress(model, number):
        raise AssertionError

    with pytest.raises(ValueError, match=r"cannot be kept in .*Register its classes.*or leave `folder` out"):
        iterative(model, compress, None, 1, folder=tmp_path / "a", progress=False)
    assert not list((tmp_path / "a").glob("*.keras"))
    report = iterative(
        model, halve, None, 1, folder=tmp_path / "b", custom_objects={"Unregistered": Unregistered}, progress=False
    )
    assert report.rounds[0].sparsity == 0.5


def test_digest_tells_values_shapes_and_places_apart():
    a, b = np.zeros((2, 3), "float32"), np.ones(6, "float32")
    different = [
        [a, b],
        [b, a],
        [a.reshape(3, 2), b],
        [a.astype("float64"), b],
        [a],
        {"x": a},
        {"y": a},
        (a, None),
        None,
    ]
    assert len({digest(d) for d in different}) == len(different)
    assert digest([a, b]) == digest([a.copy(), b.copy()])


def test_a_round_is_named_only_when_its_model_is_on_disk(tmp_path, monkeypatch):
    def fail(self, path, *args, **kwargs):
        assert Path(path).name.startswith(".writing_")  # never the final name
        if "check" not in str(path):
            Path(path).write_bytes(b"half a mod")
            raise OSError("disk full")
        return save(self, path, *args, **kwargs)

    save = keras.Model.save
    monkeypatch.setattr(keras.Model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        iterative(net(), halve, None, 2, folder=tmp_path, progress=False)
    monkeypatch.undo()
    assert list(json.loads((tmp_path / "rounds.json").read_text())["entries"]) == ["0"]
    assert [path.name for path in tmp_path.glob(".writing_*")] == [".writing_001.keras"]
    iterative(net(), halve, None, 2, folder=tmp_path, progress=False)
    assert not list(tmp_path.glob(".writing_*"))
