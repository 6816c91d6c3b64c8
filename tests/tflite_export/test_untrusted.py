"""Bytes from elsewhere: damaged, hostile, never able to end the caller."""

import copy
import random
import subprocess
import sys
from collections import Counter

import flatbuffers
import keras
import numpy as np
import pytest
import tensorflow as tf

import tflite_export
from tflite_export.runtime.model import TFLiteModel
from tflite_export.runtime.sandbox import Sandbox, admit
from tflite_export.tflite import soundness
from tflite_export.tflite.objects import FileObjects

layers = keras.layers


@pytest.fixture(scope="module")
def files(convnet, images):
    tokens = keras.Input((6,), dtype="int32")
    x = layers.Embedding(7, 8)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    loop = keras.Model(tokens, layers.Dense(3)(layers.LSTM(4)(x)))
    made = [tflite_export.convert(loop, precision).content for precision in ("float32", "float16", "weight_int8")]
    return [*made, tflite_export.convert(convnet, "int8", images).content]


@pytest.fixture(scope="module")
def recursive(files):
    """The body of its loop is the loop itself."""
    file = FileObjects(files[0])
    loop = next(operator for operator in file.operators if file.kind(operator) == "WHILE")
    body = file.model.subgraphs[loop.builtinOptions.bodySubgraphIndex]
    inner = copy.deepcopy(loop)
    inner.inputs, inner.outputs = list(body.inputs), list(body.outputs)
    for place, number in enumerate(inner.outputs):
        if number in inner.inputs:
            body.tensors.append(copy.deepcopy(body.tensors[number]))
            inner.outputs[place] = len(body.tensors) - 1
    body.outputs, body.operators = list(inner.outputs), [inner]
    return file.content()


def test_good_files_pass(files):
    for content in files:
        soundness.check(content)
        admit(content)


def test_a_file_that_crashes_the_runtime(recursive, tmp_path):
    soundness.check(recursive)
    code = "import sys\nfrom tflite_export.runtime.runner import Runner\nRunner(open(sys.argv[1], 'rb').read())"
    path = tmp_path / "recursive.tflite"
    path.write_bytes(recursive)
    assert subprocess.run([sys.executable, "-c", code, path], capture_output=True).returncode < 0
    with pytest.raises(ValueError, match=r"recursive.tflite'.*it crashes ai_edge_litert \(SIG"):
        TFLiteModel.load(path)


def test_a_file_that_never_ends(files):
    @tf.function(input_signature=[tf.TensorSpec([1, 1])])
    def waits(x):
        return tf.while_loop(lambda y: tf.reduce_all(y < 1.0), lambda y: (y * 1.1,), [x])

    content = tflite_export.convert(waits, "float32", np.full((4, 1), 0.9, "float32")).content
    with Sandbox(timeout=3) as sandbox:
        with pytest.raises(ValueError, match="running it once took more than 3 s"):
            sandbox.admit(content)
        sandbox.admit(files[0])  # in a new child


def _with(content, change):
    """As it is: `FileObjects.content` looks at operations and their tensors."""
    file = FileObjects(content)
    change(file)
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _set(place, name, value):
    def change(file):
        setattr(place(file), name, value)

    return change


DAMAGE = {
    "a tensor's buffer is number 999": _set(lambda file: file.graph.tensors[0], "buffer", 999),
    r"a tensor has the shape \[-2, 3\]": _set(lambda file: file.graph.tensors[0], "shape", [-2, 3]),
    "an operation's kind is number 77": _set(lambda file: file.operators[0], "opcodeIndex", 77),
    "an operation's input is number 500": _set(lambda file: file.operators[0], "inputs", [500]),
    "an operation's output is number -1": _set(lambda file: file.operators[0], "outputs", [-1]),
    "a graph's input is number 400": _set(lambda file: file.graph, "inputs", [400]),
    "a graph's output is number 400": _set(lambda file: file.graph, "outputs", [400]),
    "a signature's graph is number 9": _set(lambda file: file.model.signatureDefs[0], "subgraphIndex", 9),
    "a signature's tensor is number 888": _set(lambda file: file.model.signatureDefs[0].inputs[0], "tensorIndex", 888),
    "a buffer of metadata is number 555": _set(lambda file: file.model.metadata[0], "buffer", 555),
    "it has no tensors": _set(lambda file: file.model, "subgraphs", []),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_numbers_of_what_does_not_exist(files, message):
    with pytest.raises(ValueError, match=rf"is a damaged .tflite file: {message}"):
        soundness.check(_with(files[0], DAMAGE[message]))


def test_a_constant_of_another_size(files):
    file = FileObjects(files[0])
    for tensor in file.graph.tensors:
        buffer = file.model.buffers[tensor.buffer]
        if tensor.type == 0 and buffer.data is not None and len(buffer.data) > 8:
            buffer.data = buffer.data[:-4]
            break
    with pytest.raises(ValueError, match=r"a constant of shape .* and 4 bytes a number has \d+ bytes"):
        soundness.check(file.content())


def test_no_file_at_all(files):
    for content in (b"", b"TFL3", b"\0\0\0\0TFL", b"PK\3\4 a zip"):
        with pytest.raises(ValueError, match=rf"is not a .tflite file: {len(content)} bytes without the mark"):
            TFLiteModel.from_content(content)
    for length in (8, 40, 300, len(files[0]) // 2, len(files[0]) - 4):
        with pytest.raises(ValueError, match="damaged"):
            soundness.check(files[0][:length])


def _mutated(generator, content):
    changed = bytearray(content)
    for _ in range(generator.choice([1, 1, 2, 8])):
        place = generator.randrange(len(changed))
        changed[place] = generator.choice([0, 255, generator.randrange(256), changed[place] ^ 1])
    return bytes(changed if generator.random() < 0.9 else changed[: generator.randrange(len(changed))])


def _survives(files, count, seed):
    """Whatever is done to a file, it is admitted or refused."""
    generator, said = random.Random(seed), Counter()
    with Sandbox(timeout=30) as sandbox:
        for number in range(count):
            content = _mutated(generator, files[number % len(files)])
            try:
                sandbox.admit(content)
                said["admitted"] += 1
            except ValueError as error:
                said["crashes" if "it crashes" in str(error) else "refused"] += 1
        sandbox.admit(files[0])
    return said


def test_mutated_files(files):
    said = _survives(files, 100, 0)
    assert said["admitted"] > 10
    assert said["refused"] > 30


@pytest.mark.slow
def test_ten_thousand_mutated_files(files):
    said = _survives(files, 10_000, 1)
    print(said)
    assert sum(said.values()) == 10_000
    assert min(said["admitted"], said["refused"]) > 1000
