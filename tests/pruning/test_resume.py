"""A process is killed while it trains, and started again."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import keras
import numpy as np
import pytest

from kdopt.core.sidecar import Sidecar
from kdopt.pruning import GradualPruning
from kdopt.schedules import Polynomial

# Deterministic: no shuffling, one seed. Every batch appends a line to the log: step, zeros, whether the zeros
# are where the masks say. 6 updates an epoch.
SCRIPT = """
import json, sys, time
import keras, numpy as np
from kdopt.pruning import GradualPruning
from kdopt.schedules import Polynomial

folder, first, delay = sys.argv[1], sys.argv[2] == "first", float(sys.argv[3])
keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)
x = rng.normal(size=(48, 16)).astype("float32")
y = x @ rng.normal(size=(16, 4)).astype("float32")
model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64, name="a"), keras.layers.Dense(4, name="b")])
model.compile(keras.optimizers.Adam(0.01), "mse")

class Log(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.get_layer("a").kernel.numpy()
        with open(folder + "/log", "a") as file:
            step = int(self.model.optimizer.iterations.numpy())
            file.write(json.dumps([step, int((kernel == 0).sum())]) + "\\n")
        time.sleep(delay)

pruning = GradualPruning(Polynomial(0.8, begin_step=3, end_step=40, frequency=4))
backup = keras.callbacks.BackupAndRestore(folder + "/backup", double_checkpoint=True)
callbacks = [pruning, backup, Log()] if first else [backup, pruning, Log()]
print("begin", flush=True)
logs = model.fit(x, y, batch_size=8, epochs=9, shuffle=False, verbose=0, callbacks=callbacks)
np.save(folder + "/final.npy", model.get_layer("a").kernel.numpy())
print("sparsity", float((model.get_layer("a").kernel.numpy() == 0).mean()), flush=True)
"""
EPOCH = 6
UPDATES = 9 * EPOCH
SCHEDULE = Polynomial(0.8, begin_step=3, end_step=40, frequency=4)


def zeros_after(step):
    """Zeros in the (16, 64) kernel after `step` updates, by hand."""
    update = max((u for u in [*range(3, 40, 4), 40] if u <= step - 1), default=None)
    return 0 if update is None else round(SCHEDULE(update) * 16 * 64)


def start(folder, first, delay):
    arguments = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), "first" if first else "last", str(delay)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_with_kills(folder, first, kills, rng, delay=0.03):
    """Kills `kills` times at random moments of the training, then lets it finish."""
    for _ in range(kills):
        process = start(folder, first, delay)
        assert process.stdout.readline() == "begin\n"
        time.sleep(rng.uniform(0.3, 3.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    process = start(folder, first, 0)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-2000:]
    return out


def check_log(folder):
    """Zeros are right after every update, and no restart repeats more than the epochs since the last backup."""
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    for step, zeros in lines:
        assert zeros == zeros_after(step), (step, zeros)
    steps = [step for step, _ in lines]
    restarts = [(before, after) for before, after in itertools.pairwise(steps) if after != before + 1]
    for before, after in restarts:
        # A kill while the backup is written costs one more epoch: the one before it is used.
        assert after > before - 2 * EPOCH - 1, (before, after)
    return restarts


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
def test_killed_and_restarted(first, tmp_path):
    out = run_with_kills(tmp_path, first, kills=1, rng=np.random.default_rng(int(first)))
    check_log(tmp_path)
    assert float(out.split()[-1]) == pytest.approx(0.8, abs=1e-3)
    assert not (tmp_path / "backup").exists()


@pytest.mark.slow
def test_killed_at_twenty_random_points(tmp_path):
    restarts = 0
    for seed in range(4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        out = run_with_kills(folder, seed % 2, kills=5, rng=np.random.default_rng(seed), delay=0.1)
        restarts += len(check_log(folder))
        assert float(out.split()[-1]) == pytest.approx(0.8, abs=1e-3)
    assert restarts > 0


def make_run(folder, schedule=SCHEDULE, epochs=4, stop_at=None, layers=None):
    """One `fit` in this process; `stop_at` interrupts it like a kill, after that epoch's backup."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == stop_at:
                raise KeyboardInterrupt

    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(48, 16)).astype("float32")
    model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(64, name="a"), keras.layers.Dense(4, name="b")])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    backup = keras.callbacks.BackupAndRestore(str(folder), double_checkpoint=True)
    pruning = GradualPruning(schedule, layers=layers)
    try:
        model.fit(
            x, x[:, :4], batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[Stop(), pruning, backup]
        )
    except KeyboardInterrupt:
        pruning.release()
    return model


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """epoch -> folder of a run that was stopped there; made once."""
    made = {}

    def folder_of(epoch, to):
        if epoch not in made:
            made[epoch] = tmp_path_factory.mktemp("stopped") / "run"
            make_run(made[epoch], stop_at=epoch)
        shutil.copytree(made[epoch], to, dirs_exist_ok=True)

    return folder_of


def test_a_resumed_run_ends_like_an_undisturbed_one(tmp_path):
    short = Polynomial(0.8, begin_step=3, end_step=20, frequency=4)
    undisturbed = make_run(tmp_path / "a", short)
    make_run(tmp_path / "b", short, stop_at=2)
    resumed = make_run(tmp_path / "b", short)
    for one, other in zip(undisturbed.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    assert np.mean(resumed.get_layer("a").kernel.numpy() == 0) == pytest.approx(0.8, abs=1e-3)


def test_masks_are_on_disk_before_the_weights_have_their_zeros(tmp_path, monkeypatch):
    """Killed between the two, a backup has masks without zeros (an older entry fits), never zeros without masks."""

    class Killed(Exception):
        pass

    def die(self, entry):
        if not all(mask.all() for mask in entry.masks):
            raise Killed

    monkeypatch.setattr(Sidecar, "write", die)
    seen = []
    keep = GradualPruning.on_train_batch_begin

    def watch(self, batch, logs=None):
        seen.append(self.model)
        keep(self, batch, logs)

    monkeypatch.setattr(GradualPruning, "on_train_batch_begin", watch)
    with pytest.raises(Killed):
        make_run(tmp_path)
    assert np.all(seen[-1].get_layer("a").kernel.numpy() != 0)


def test_missing_masks_are_refused(stopped, tmp_path):
    stopped(2, tmp_path)
    for file in tmp_path.glob("kdopt-*"):
        file.unlink()
    with pytest.raises(RuntimeError, match=r"weights restored from .* \(at update 12\) have no masks there.*Delete"):
        make_run(tmp_path)


def test_another_schedule_is_refused(stopped, tmp_path):
    stopped(2, tmp_path)
    with pytest.raises(RuntimeError, match=r"the backup was made with schedule=.*'final_sparsity': 0.8.*0.5.*Delete"):
        make_run(tmp_path, Polynomial(0.5, begin_step=3, end_step=40, frequency=4))


def test_other_kernels_are_refused(stopped, tmp_path):
    stopped(2, tmp_path)
    with pytest.raises(RuntimeError, match="have no masks there: they come from a run with other kernels"):
        make_run(tmp_path, layers=["a"])


def test_masks_of_other_weights_are_refused(stopped, tmp_path):
    stopped(2, tmp_path)
    (name,) = {path.name.rsplit("-", 1)[0].removeprefix("kdopt-") for path in tmp_path.glob("kdopt-*")}
    sidecar = Sidecar(tmp_path, name)
    for step in sidecar.steps():
        entry = sidecar.read(step)
        sidecar.write(entry._replace(masks=[np.roll(mask, 1, axis=0) & False for mask in entry.masks]))
    with pytest.raises(
        RuntimeError, match="do not fit the restored weights .at update 12.: weights that should be zero"
    ):
        make_run(tmp_path)


def test_masks_without_weights_are_of_a_dead_run_and_go(stopped, tmp_path):
    stopped(2, tmp_path)
    for file in [*tmp_path.glob("latest*"), *tmp_path.glob("training_metadata*")]:
        os.remove(file)
    model = make_run(tmp_path, Polynomial(0.5, end_step=20, frequency=4))
    assert np.mean(model.get_layer("a").kernel.numpy() == 0) == 0.5


def test_old_masks_are_deleted(tmp_path):
    class Count(keras.callbacks.Callback):
        steps = []

        def on_epoch_end(self, epoch, logs=None):
            self.steps.append(sorted(int(p.stem.rsplit("-", 1)[1]) for p in tmp_path.glob("kdopt-*")))

    count = Count()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    x = np.ones((16, 4), "float32")
    backup = keras.callbacks.BackupAndRestore(str(tmp_path), double_checkpoint=True)
    callbacks = [GradualPruning(Polynomial(0.5, end_step=9, frequency=1)), backup, count]
    model.fit(x, x, batch_size=8, epochs=6, verbose=0, callbacks=callbacks)  # 2 updates an epoch
    # After epoch n the masks of the last three epoch ends, and all since, are there.
    assert count.steps == [[0, 1, 2], [0, 1, 2, 3, 4], [2, 3, 4, 5, 6], [4, 5, 6, 7, 8], [6, 7, 8, 9], [8, 9]]


def damage(path):
    path.write_bytes(path.read_bytes()[:700])


def test_a_first_backup_cut_off_by_a_kill_is_no_backup(stopped, tmp_path):
    stopped(1, tmp_path)
    damage(tmp_path / "latest.weights.h5")
    os.remove(tmp_path / "training_metadata.json")
    model = make_run(tmp_path, Polynomial(0.8, begin_step=3, end_step=20, frequency=4))
    assert np.mean(model.get_layer("a").kernel.numpy() == 0) == pytest.approx(0.8, abs=1e-3)
    assert int(model.optimizer.iterations) == 24


def test_a_damaged_backup_falls_back_on_the_one_before_or_is_refused(stopped, tmp_path):
    stopped(2, tmp_path / "two")
    damage(tmp_path / "two" / "latest.weights.h5")
    model = make_run(tmp_path / "two", epochs=9)
    assert int(model.optimizer.iterations) == 54
    stopped(1, tmp_path / "one")
    damage(tmp_path / "one" / "latest.weights.h5")
    with pytest.raises(RuntimeError, match="is damaged and there is none before it.*Delete.*double_checkpoint=True"):
        make_run(tmp_path / "one")
