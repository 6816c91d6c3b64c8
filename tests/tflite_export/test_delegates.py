"""Which delegate runs which operation: by hand, by the runtime itself, and on files that are broken on purpose."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

import tflite_export
from tflite_export.hardware.nodes import graph_of
from tflite_export.hardware.pieces import pieces
from tflite_export.hardware.registry import known
from tflite_export.hardware.report import DelegateReport
from tflite_export.runtime.partitions import inside, partitions
from tflite_export.runtime.runner import Runner
from tflite_export.tflite.objects import FileObjects

layers = keras.layers
TABLES = sorted(known())


@pytest.fixture(scope="module")
def data():
    return np.random.default_rng(0).random((20, 16, 16, 3)).astype("float32")


@pytest.fixture(scope="module")
def cnn():
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    x = layers.MaxPooling2D(name="pool")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="deep")(x)
    x = layers.Dense(5, name="head")(layers.Flatten(name="flat")(x))
    return keras.Model(image, layers.Softmax(name="soft")(x), name="cnn")


@pytest.fixture(scope="module")
def int8(cnn, data):
    return tflite_export.convert(cnn, "int8", data)


@pytest.fixture(scope="module")
def float32(cnn):
    return tflite_export.convert(cnn, "float32")


class RunningSum(layers.Layer):
    def call(self, x):
        return keras.ops.cumsum(x, axis=1)


def split_net():
    """A convolution, a turn in 5 dimensions that the GPU does not have, and three operations more."""
    image = keras.Input((8, 8, 4), name="image")
    x = layers.Conv2D(4, 3, padding="same", name="before")(image)
    x = layers.Reshape((8, 8, 2, 2), name="apart")(x)
    x = layers.Permute((1, 2, 4, 3), name="swap")(x)
    x = layers.Reshape((8, 8, 4), name="together")(x)
    x = layers.Conv2D(4, 3, padding="same", name="after")(x)
    x = layers.Conv2D(2, 1, name="again")(layers.MaxPooling2D(name="pool")(x))
    return keras.Model(image, x, name="split")


@pytest.fixture(scope="module")
def split():
    return tflite_export.convert(split_net(), "float32")


def reasons(verdict):
    return {left.op: left.reason for left in verdict.falls_back}


def named(verdict, op):
    return next(left for left in verdict.falls_back if left.op == op)


def changed(file, change, *names):
    """The report on a file after `change(objects)`."""
    objects = FileObjects(file.content)
    change(objects)
    return tflite_export.delegates(objects.content(), names or TABLES)


def operator(objects, kind):
    return next(one for one in objects.operators if objects.kind(one) == kind)


def test_a_plain_cnn_in_int8_runs_whole(int8):
    report = tflite_export.delegates(int8)
    assert report.operations == 6
    assert report.macs == 16 * 16 * 8 * 27 + 4 * 4 * 8 * 72 + 128 * 5 == tflite_export.inspect(int8).macs
    for name in ("edgetpu", "micro", "cmsis_nn", "gpu", "nnapi", "qualcomm"):
        verdict = report[name]
        assert (verdict.verdict, verdict.runs, verdict.partitions, verdict.macs_share) == ("runs whole", 6, 1, 1), name
        assert verdict.falls_back == (), name
        assert not verdict.measured
    assert "Android 15" in report["nnapi"].advice
    assert "Deprecated" in report["hexagon"].advice


def test_dense_weights_by_channel_stay_off_the_old_dsp(int8):
    verdict = tflite_export.delegates(int8, "hexagon")["hexagon"]
    assert (verdict.verdict, verdict.runs, verdict.partitions) == ("runs in part", 4, 2)
    assert reasons(verdict) == {
        "FULLY_CONNECTED": "weights with a step for each channel",
        "SOFTMAX": "in a piece of 1; it takes pieces of 2 operations and more",
    }
    convolutions = 16 * 16 * 8 * 27 + 4 * 4 * 8 * 72
    assert verdict.macs_share == pytest.approx(convolutions / (convolutions + 128 * 5))


def test_a_float_file_is_nothing_for_the_edge_tpu(float32):
    report = tflite_export.delegates(float32, ["edgetpu", "micro", "cmsis_nn", "hexagon"])
    verdict = report["edgetpu"]
    assert (verdict.verdict, verdict.runs, verdict.partitions, verdict.macs_share) == ("does not run", 0, 0, 0)
    assert {left.reason for left in verdict.falls_back} == {"float32; it computes in int8 and uint8 only"}
    assert sum(left.count for left in verdict.falls_back) == 6
    assert "precision='int8'" in verdict.advice
    assert report["micro"].verdict == "runs whole"
    assert reasons(report["cmsis_nn"])["CONV_2D"] == "float32; it takes int8 or int16"
    assert report["cmsis_nn"].runs == 1  # RESHAPE, a copy
    assert report["hexagon"].verdict == "does not run"


def test_floats_at_the_border_of_an_int8_file_stay_on_the_cpu(cnn, data):
    file = tflite_export.convert(cnn, "int8_float_io", data)
    verdict = tflite_export.delegates(file, "edgetpu")["edgetpu"]
    assert (verdict.verdict, verdict.runs, verdict.macs_share) == ("runs in part", 6, 1)
    assert set(reasons(verdict)) == {"QUANTIZE", "DEQUANTIZE"}


def test_xnnpack_is_measured_and_the_estimate_equals_it():
    image = keras.Input((8, 8, 3), name="image")
    left = RunningSum(name="sums")(layers.Conv2D(4, 3, padding="same", name="before")(image))
    right = layers.Conv2D(4, 1, name="beside")(image)
    model = keras.Model(image, layers.Conv2D(2, 1, name="after")(layers.Add(name="join")([left, right])), name="net")
    file = tflite_export.convert(model, "float32")
    verdict = tflite_export.delegates(file, "xnnpack")["xnnpack"]
    found = partitions(file.content)
    assert verdict.measured
    assert (verdict.partitions, verdict.runs) == (found.count, found.inside) == (2, 4)
    fallback = named(verdict, "CUMSUM")
    assert (fallback.count, fallback.layer) == (1, "sums_1")
    assert fallback.reason == "left to the built-in kernels (float32)"
    taken = {number for piece in inside(Runner(file.content)) for number in piece}
    assert len(pieces(graph_of(file.content).nodes, taken)) == found.count
    assert "CUMSUM" in reasons(tflite_export.delegates(file, "nnapi")["nnapi"])


def test_an_embedding_on_the_gpu():
    tokens = keras.Input((6,), dtype="int32", name="tokens")
    model = keras.Model(tokens, layers.Dense(3, name="head")(layers.Embedding(7, 8, name="words")(tokens)), name="net")
    report = tflite_export.delegates(tflite_export.convert(model, "float32"), ["gpu", "micro"])
    fallback = named(report["gpu"], "GATHER")
    assert fallback.layer.startswith("words")
    assert fallback.reason == "indices of 2 dimensions, not 1"
    assert reasons(report["micro"]) == {"SELECT": "not among its operations"}  # Keras wraps negative indices


def test_the_gpu_takes_the_largest_piece(split):
    report = tflite_export.delegates(split, ["gpu", "qualcomm"])
    verdict = report["gpu"]
    turned = named(verdict, "TRANSPOSE")
    assert turned.layer.startswith("swap")
    assert turned.reason == "a tensor of 5 dimensions, more than 4"
    assert (verdict.verdict, verdict.partitions, verdict.runs) == ("runs in part", 2, 3)
    first = named(verdict, "CONV_2D")
    assert first.layer.startswith("before")
    assert first.reason == "in a piece with fewer operations; it takes one piece, with the most"
    assert verdict.macs_share == pytest.approx((64 * 4 * 36 + 16 * 2 * 4) / report.macs)
    assert report["qualcomm"].verdict == "runs whole"


def test_the_edge_tpu_takes_the_first_piece():
    data = np.random.default_rng(0).random((8, 8, 8, 4)).astype("float32")
    verdict = tflite_export.delegates(tflite_export.convert(split_net(), "int8", data), "edgetpu")["edgetpu"]
    assert (verdict.runs, verdict.partitions) == (1, 2)
    assert "only the 3 innermost sizes may be above 1" in named(verdict, "TRANSPOSE").reason
    assert named(verdict, "MAX_POOL_2D").reason == "after the first operation that it does not have"


def test_float16_weights_need_no_operation_of_their_own(cnn):
    report = tflite_export.delegates(tflite_export.convert(cnn, "float16"), ["gpu", "nnapi", "micro", "xnnpack"])
    for name in ("gpu", "nnapi", "xnnpack"):
        assert (report[name].verdict, report[name].runs) == ("runs whole", report.operations), name
    assert reasons(report["micro"]) == {"DEQUANTIZE": "float16; it takes int8, int16 or uint8"}
    verdict = tflite_export.delegates(tflite_export.convert(split_net(), "float16"), "gpu")["gpu"]
    assert verdict.partitions == 2
    assert named(verdict, "DEQUANTIZE").reason == "unpacks float16 weights for an operation that stays on the CPU"


def test_micro_runs_a_file_whole_or_not_at_all():
    x = keras.Input((64,), name="x")
    model = keras.Model(x, layers.Dense(32, activation="gelu", name="wide")(x), name="net")
    report = tflite_export.delegates(tflite_export.convert(model, "float32"), ["micro", "cmsis_nn"])
    for name in ("micro", "cmsis_nn"):
        assert (report[name].verdict, report[name].runs) == ("does not run", 0)
        assert reasons(report[name]) == {"GELU": "not among its operations"}
    plain = keras.Model(x, layers.Dense(32, name="wide")(x), name="plain")
    verdict = tflite_export.delegates(tflite_export.convert(plain, "dynamic"), "micro")["micro"]
    assert reasons(verdict) == {"FULLY_CONNECTED": "int8 weights with float32 inputs"}


def test_a_loop_counts_with_its_body():
    steps = keras.Input((4, 3), name="steps")
    model = keras.Model(steps, layers.GRU(5, name="memory")(steps), name="net")
    file = tflite_export.convert(model, "float32")
    report = tflite_export.delegates(file, ["gpu", "micro"])
    assert report.macs == tflite_export.inspect(file).macs > 0
    assert named(report["gpu"], "WHILE").reason == "not among its operations"
    assert report["gpu"].macs_share < 1


def set_option(kind, **options):
    def change(objects):
        for name, value in options.items():
            assert hasattr(operator(objects, kind).builtinOptions, name)
            setattr(operator(objects, kind).builtinOptions, name, value)

    return change


def set_version(kind, number):
    def change(objects):
        objects.model.operatorCodes[operator(objects, kind).opcodeIndex].version = number

    return change


@pytest.mark.parametrize(
    ("name", "change", "op", "reason"),
    [
        ("hexagon", set_option("CONV_2D", strideH=4), "CONV_2D", "stride 4, more than 3"),
        ("hexagon", set_option("CONV_2D", dilationWFactor=2), "CONV_2D", "dilated: 1 x 2"),
        ("edgetpu", set_option("CONV_2D", dilationWFactor=2), "CONV_2D", "dilated differently in height and width"),
        ("edgetpu", set_option("MAX_POOL_2D", fusedActivationFunction=3), "MAX_POOL_2D", "RELU6 fused into it"),
        ("edgetpu", set_option("FULLY_CONNECTED", weightsFormat=1), "FULLY_CONNECTED", "shuffled weights"),
        ("gpu", set_option("SOFTMAX", beta=2.0), "SOFTMAX", "beta is not 1"),
        ("gpu", set_version("CONV_2D", 7), "CONV_2D", "version 7, newer than 6"),
        ("nnapi", set_version("CONV_2D", 6), "CONV_2D", "version 6, newer than 5"),
        ("hexagon", set_version("MAX_POOL_2D", 3), "MAX_POOL_2D", "version 3, newer than 2"),
    ],
)
def test_a_changed_file_is_refused(int8, name, change, op, reason):
    before, after = tflite_export.delegates(int8, name)[name], changed(int8, change, name)[name]
    assert reasons(before).get(op) != reason
    assert reasons(after)[op] == reason


def test_open_sizes_and_weights_that_are_computed(int8):
    def opened(objects):
        for tensor in objects.graph.tensors:
            if len(tensor.shape) == 4 and tensor.shape[0] == 1:
                tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)

    report = changed(int8, opened)
    for name in sorted({*TABLES} - {"micro", "cmsis_nn"}):
        assert reasons(report[name])["CONV_2D"] == "a size is left open", name
    assert report["micro"].verdict == report["cmsis_nn"].verdict == "does not run"

    def computed(objects):
        dense = operator(objects, "FULLY_CONNECTED")
        objects.set_input(dense, 1, objects.like(dense.inputs[1]))

    found = reasons(changed(int8, computed, "edgetpu")["edgetpu"])
    assert found["FULLY_CONNECTED"] == "weights are computed, not constant"


def test_an_operation_that_nobody_knows(float32):
    objects = FileObjects(float32.content)
    code = objects.model.operatorCodes[operator(objects, "SOFTMAX").opcodeIndex]
    code.builtinCode = code.deprecatedBuiltinCode = 32
    code.customCode = b"Mine"
    report = tflite_export.delegates(objects.content())
    for name in ("gpu", "nnapi", "qualcomm"):
        assert reasons(report[name]) == {"Mine": "not among its operations"}, name
    assert report["micro"].verdict == report["xnnpack"].verdict == "does not run"
    assert named(report["xnnpack"], "Mine").reason.startswith("the runtime refuses the file: ")
    assert report["xnnpack"].measured


def test_sizes_that_the_app_sets():
    image = keras.Input((None, None, 3), name="image")
    model = keras.Model(image, layers.Conv2D(4, 3, name="conv")(image), name="net")
    verdict = tflite_export.delegates(tflite_export.convert(model, "float32", shapes="open"), "xnnpack")["xnnpack"]
    assert named(verdict, "CONV_2D").reason == "sizes are open: no piece is taken before the app sets them"


def test_names_and_bad_input(int8, tmp_path):
    assert [one.name for one in tflite_export.delegates(int8, ("gpu", "edgetpu", "gpu")).verdicts] == ["gpu", "edgetpu"]
    every = "xnnpack, cmsis_nn, edgetpu, gpu, hexagon, micro, nnapi, qualcomm"
    with pytest.raises(ValueError, match=f"No delegate 'tpu'; there are {every}"):
        tflite_export.delegates(int8, "tpu")
    with pytest.raises(KeyError, match="No verdict on 'nnapi'; there are gpu"):
        tflite_export.delegates(int8, "gpu")["nnapi"]
    with pytest.raises(FileNotFoundError, match="none.tflite"):
        tflite_export.delegates(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="not a .tflite file"):
        tflite_export.delegates(b"nothing at all")


def test_text_and_json(int8, float32):
    report = tflite_export.delegates(int8)
    assert DelegateReport.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["verdicts"][0]["name"] == "xnnpack"
    text = str(report)
    assert text.startswith(f"6 operations, {report.macs:,} multiply-accumulates")
    rows = {line.split()[0]: line for line in text.splitlines()[2:11] if line.strip()}
    assert rows["xnnpack"].endswith("measured here")
    assert rows["gpu"].split()[1:8] == ["runs", "whole", "6", "of", "6", "1", "100%"]
    assert rows["gpu"].endswith("from documentation, not run here")
    assert "FULLY_CONNECTED (head_1): weights with a step for each channel" in text
    assert "  CONV_2D x2 (stem_1, deep_1): float32; " in str(tflite_export.delegates(float32, "edgetpu"))


def test_tables_need_neither_tensorflow_nor_the_runtime(int8, tmp_path):
    path = int8.save(tmp_path / "net.tflite")
    code = (
        "import sys, tflite_export\nprint(tflite_export.delegates(sys.argv[1], 'edgetpu')['edgetpu'].verdict)\n"
        "print({'tensorflow', 'keras', 'ai_edge_litert.interpreter'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["runs whole", "set()"]
