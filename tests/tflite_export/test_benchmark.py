"""What a file costs while it runs: time, memory, energy, operation by operation."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

import tflite_export
from tflite_export.cli import main
from tflite_export.proof.profile import summed
from tflite_export.proof.sustained import rates
from tflite_export.runtime import apart
from tflite_export.runtime.arena import covered
from tflite_export.tflite import records

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells the peak")


@pytest.fixture(scope="module")
def wide():
    """A file with one tensor of 12 MB, and weights of 12 kB."""
    stack = [keras.Input((1000,)), layers.Reshape((1000, 1)), layers.Dense(3000), layers.GlobalAveragePooling1D()]
    return tflite_export.convert(keras.Sequential([*stack, layers.Dense(1)]), "float32")


@pytest.fixture(scope="module")
def heavy():
    """A file with weights of 12 MB, and tensors of 16 kB: the first layer does all of the work."""
    stack = [keras.Input((1000,), name="x"), layers.Dense(3000, name="large"), layers.Dense(1, name="little")]
    return tflite_export.convert(keras.Sequential(stack), "float32")


def test_benchmark(int8_file):
    result = tflite_export.benchmark(int8_file, threads=2, seconds=0.05, sustained=0.05)
    assert 0 < result.min_ms <= result.median_ms <= result.p90_ms
    assert result.min_ms <= result.mean_ms
    assert result.runs >= 5
    assert result.warmup >= 3
    assert (result.threads, result.kernels, result.profile) == (2, "xnnpack", None)
    assert 0 <= result.spread <= (result.p90_ms - result.min_ms) / result.median_ms
    assert result.load_ms > 0
    assert result.first_ms > 0
    assert result.energy == tflite_export.energy_estimate(int8_file)
    assert result.sustained.seconds >= 0.05
    for told in ("ms median", "load ", "arena", "inferences/s over", "estimated and not measured"):
        assert told in str(result)


def test_what_was_not_asked_for_is_none(int8_file):
    result = tflite_export.benchmark(int8_file, seconds=0.01, cold=False)
    found = (result.load_ms, result.first_ms, result.peak_memory_bytes, result.arena_bytes, result.sustained)
    assert found == (None,) * 5
    assert "load" not in str(result)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threads": 0}, "`threads` must be an integer >= 1"),
        ({"threads": True}, "`threads` must be an integer >= 1"),
        ({"seconds": 0}, "`seconds` must be a number > 0"),
        ({"sustained": 0}, "`sustained` must be a number > 0"),
        ({"kernels": "fast"}, "`kernels` must be one of 'xnnpack', 'builtin', 'reference'"),
        ({"kernels": "reference", "profile": True}, "profiles kernels 'xnnpack' and 'builtin'"),
    ],
)
def test_refused(int8_file, wrong, message):
    with pytest.raises(ValueError, match=message):
        tflite_export.benchmark(int8_file, **wrong)


@linux
def test_memory_of_a_large_tensor_and_of_large_weights(wide, heavy):
    tensors = tflite_export.benchmark(wide, seconds=0.01)
    assert 12e6 < tensors.arena_bytes < 12.1e6  # 1,000 x 3,000 floats; input, reshaped, mean and output: 20 kB
    assert 12e6 < tensors.peak_memory_bytes < 22e6
    mapped = tflite_export.benchmark(heavy, seconds=0.01, kernels="builtin")
    assert 16e3 < mapped.arena_bytes < 40e3  # weights stay in the file
    assert 12e6 < mapped.peak_memory_bytes < 22e6
    packed = tflite_export.benchmark(heavy, seconds=0.01)
    assert 24e6 < packed.peak_memory_bytes < 34e6  # XNNPACK holds a copy of them


def test_tensors_of_an_arena_share_places():
    kinds = ("tanh", "sigmoid", "exponential", "tanh", "sigmoid", "relu")
    stack = [keras.Input((100_000,)), *(layers.Activation(kind) for kind in kinds)]
    file = tflite_export.convert(keras.Sequential(stack), "float32")
    one = 4 * 100_000
    # The input stays, what is read and what is written take turns: not 7.
    assert 2 * one <= tflite_export.benchmark(file, seconds=0.01).arena_bytes <= 3 * one + 1000


def test_covered_is_the_union():
    generator = np.random.default_rng(0)
    for _ in range(20):
        starts, lengths = 64 * generator.integers(0, 100, 12), 64 * generator.integers(1, 20, 12)
        places = [(int(start), int(start + length)) for start, length in zip(starts, lengths, strict=True)]
        taken = np.zeros(10_000, bool)
        for start, end in places:
            taken[start:end] = True
        assert covered(places) == taken.sum()
    assert covered([(0, 10), (5, 20), (64, 70), (1000, 1001)]) == 71
    assert covered([]) == 0


def test_a_crash_keeps_what_was_found(tmp_path, monkeypatch):
    (tmp_path / "child_tasks.py").write_text(
        "import os\n"
        "def crashes(path, size):\n"
        "    yield {'size': len(open(path, 'rb').read()) == size}\n"
        "    print('noise')\n"
        "    os.abort()\n"
        "def refuses(path):\n"
        "    raise ValueError('no')\n"
        "    yield\n"
        "def breaks(path):\n"
        "    raise KeyError('bug')\n"
        "    yield\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert apart.ask("child_tasks:crashes", b"12345", size=5) == ({"size": True}, "the runtime crashed (SIGABRT)")
    assert apart.ask("child_tasks:refuses", b"") == ({}, "no")
    with pytest.raises(RuntimeError, match="exit code 1"):
        apart.ask("child_tasks:breaks", b"")


def test_kernels_that_crash_are_told_and_end_nothing(int8_file, monkeypatch):
    monkeypatch.setattr(apart, "ask", lambda *_, **__: ({}, "the runtime crashed (SIGABRT)"))
    with pytest.raises(ValueError, match=r"does not run with kernels='reference': the runtime crashed \(SIGABRT\)"):
        tflite_export.benchmark(int8_file, kernels="reference", cold=False)
    with pytest.raises(ValueError, match="does not run with kernels='builtin'"):
        tflite_export.compare({"a": int8_file}, kernels="builtin")


def test_rates_by_hand():
    ends = np.cumsum([5.0, *[0.01] * 50, *[0.02] * 50])
    found = rates(ends)
    assert found.runs == 100
    assert found.seconds == pytest.approx(1.5)
    assert found.per_second == pytest.approx(100 / 1.5)
    assert (found.first_per_second, found.last_per_second) == pytest.approx((100, 50))


def test_a_profile_is_the_mean_of_the_faster_half():
    def run(whole, first, second):
        return [("Invoke", 1, 0, 0, whole), ("CONV_2D", 2, 0, 0, first), ("Add (ND)", 8, 1, 0, second)]

    runs = [run(100, 30, 10), run(9000, 8000, 10), run(104, 32, 12), run(120, 50, 12)]
    found = summed(runs, [("CONV_2D", "stem"), ("ADD", "sum")])
    assert [op.ms for op in found.ops] == pytest.approx([0.031, 0.011])
    assert [op.share for op in found.ops] == pytest.approx([31 / 42, 11 / 42])
    assert [(op.layer, op.inside_xnnpack) for op in found.ops] == [("stem", False), ("", True)]
    assert (found.inference_ms, found.runs) == (pytest.approx(0.102), 4)
    assert summed(runs, [("MUL", "other")]).ops[0].layer == ""  # not numbered as the file does


def test_the_runtime_tells_where_the_time_goes(int8_file, heavy):
    own = tflite_export.benchmark(int8_file, seconds=0.02, kernels="builtin", profile=True).profile
    assert [op.op for op in own.ops] == [op.name for op in records.ops(int8_file.content)]
    assert own.ops[0].layer.startswith("stem")
    assert {op.layer for op in own.ops} - {""} <= {part.layer for part in tflite_export.inspect(int8_file).layers}
    assert sum(op.ms for op in own.ops) <= own.inference_ms
    result = tflite_export.benchmark(heavy, seconds=0.02, cold=False, profile=True)
    fast = result.profile
    assert all(op.inside_xnnpack for op in fast.ops)
    large, little = (op for op in fast.ops if "Fully Connected" in op.op)
    assert large.share > 0.8  # 3,000,000 of 3,003,000 products
    assert fast.by_op[large.op] == large.ms + little.ms
    assert 0.05 < fast.inference_ms / result.min_ms < 50  # milliseconds, both
    assert "ms in operations" in str(fast)


def test_what_cannot_be_profiled_is_refused(dense):
    anything = tflite_export.convert(dense, "float32", batch=None)
    assert tflite_export.benchmark(anything, seconds=0.01).arena_bytes >= 4 * (12 + 5)
    with pytest.raises(ValueError, match="open sizes cannot be profiled; convert the model with batch=1"):
        tflite_export.benchmark(anything, profile=True)
    loop = keras.Sequential([keras.Input((5, 2)), layers.SimpleRNN(1)])
    with pytest.raises(ValueError, match="loops or several signatures"):
        tflite_export.benchmark(tflite_export.convert(loop, "float32"), profile=True)


def test_a_thousand_times_the_work_takes_longer(dense, heavy):
    little = tflite_export.benchmark(tflite_export.convert(dense, "float32"), seconds=0.05, cold=False)
    assert tflite_export.benchmark(heavy, seconds=0.05, cold=False).min_ms > 10 * little.min_ms


def test_threads_in_turns(dense, heavy):
    files = {"small": tflite_export.convert(dense, "float32"), "large": heavy}
    found = tflite_export.compare(files, threads=(1, 2), rounds=3, block_ms=1)
    names = ["small, 1 thread", "small, 2 threads", "large, 1 thread", "large, 2 threads"]
    assert [file.name for file in found.files] == names
    assert [file.threads for file in found.files] == [1, 2, 1, 2]
    assert found.files[0].ratio == 1
    assert found.files[3].ratio == found.files[3].min_ms / found.files[0].min_ms
    for wrong in ((), (1, 1), (1, 0)):
        with pytest.raises(ValueError, match="`threads` must be"):
            tflite_export.compare(files, threads=wrong)


def test_energy_by_hand(dense):
    x = np.random.default_rng(0).normal(size=(60, 12)).astype("float32")
    found = tflite_export.energy_estimate(tflite_export.convert(dense, "float32"))
    assert (found.macs, found.not_counted) == ({"float32": 60}, {})
    assert (found.weight_bytes, found.activation_bytes) == (4 * (60 + 5), 4 * (12 + 5))
    assert found.compute_joules == pytest.approx(60 * 4.6e-12)
    assert found.joules_low == pytest.approx(60 * 4.6e-12 + 328 * 12.5e-12)
    assert found.joules_high == pytest.approx(60 * 4.6e-12 + 328 * 325e-12)
    small = tflite_export.energy_estimate(tflite_export.convert(dense, "int8", x))
    assert (small.macs, small.weight_bytes, small.activation_bytes) == ({"int8": 60}, 60 + 4 * 5, 12 + 5)
    assert small.compute_joules == pytest.approx(60 * 0.3e-12)


@pytest.mark.parametrize(
    ("precision", "kind", "weight", "activation"),
    [("float16", "float32", 4, 4), ("dynamic", "int8", 1, 4), ("int16x8", "int16", 1, 2), ("int4", "int8", 0.5, 4)],
)
def test_the_arithmetic_of_each_precision(precision, kind, weight, activation):
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, use_bias=False)])
    x = np.random.default_rng(0).normal(size=(100, 64)).astype("float32")
    found = tflite_export.energy_estimate(tflite_export.convert(model, precision, x))
    assert found.macs == {kind: 64 * 32}
    assert found.weight_bytes == weight * 64 * 32  # half precision is unpacked once, at the load
    assert found.activation_bytes == activation * (64 + 32)


def test_command_line(int8_file, tmp_path, capfd):
    path = str(int8_file.save(tmp_path / "a.tflite"))
    short = ("--seconds", "0.02")
    assert main(["benchmark", path, *short, "--sustained", "0.02", "--profile", "--kernels", "builtin", "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    assert (err, found["kernels"], found["profile"]["ops"][0]["op"]) == ("", "builtin", "CONV_2D")
    assert found["energy"]["macs"]["int8"] == tflite_export.inspect(path).macs
    assert found["sustained"]["runs"] >= 20
    assert found["peak_memory_bytes"] is None or found["peak_memory_bytes"] > found["arena_bytes"]
    assert main(["benchmark", "--threads", "1,2", path, *short]) == 0
    assert f"{path}, 2 threads" in capfd.readouterr().out
    assert main(["benchmark", path, path, "--profile"]) == 2
    assert "for one file and one number of threads" in capfd.readouterr().err
    with pytest.raises(SystemExit):
        main(["benchmark", path, "--threads", "1,x"])
    assert "expected an integer >= 1, or several as 1,2,4" in capfd.readouterr().err


def test_no_tensorflow(int8_file, tmp_path):
    path = int8_file.save(tmp_path / "a.tflite")
    code = (
        "import sys\nfrom tflite_export.cli import main\n"
        f"main(['benchmark', {str(path)!r}, '--seconds', '0.02', '--profile'])\n"
        "print(sorted({'tensorflow', 'keras', 'kdopt'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")
