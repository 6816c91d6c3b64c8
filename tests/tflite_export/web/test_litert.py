"""LiteRT.js in a real browser, on its CPU and its GPU kernels, and in Node answers as ai_edge_litert does.

`make web-setup` installs what it needs. The GPU is one that Chromium computes on the CPU.
"""

import functools
import http.server
import json
import shutil
import subprocess
import threading
from pathlib import Path

import chromium
import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import Metadata, Normalization
from tflite_export.tflite import records

pytestmark = pytest.mark.slow
layers = keras.layers
HERE = Path(__file__).parent
PACKAGE = HERE / "node_modules/@litertjs/core/package.json"
PRECISIONS = ("float32", "float16", "int8_float_io", "dynamic", "int4")
# A page with options of LiteRT.js, or Node.
CLIENTS = ("page", "page?threads", "page?jspi", "page?webgpu&jspi", "node")
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
REFUSED = {
    "open": "does not match expected ranked tensor type Float32[-1, 16, 16, 3]",
    "int8": "Element type INT8 is not supported",
}


def residual():
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(32, 3, padding="same", use_bias=False)(image)
    x = shortcut = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(32, 1, use_bias=False)(x))
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))
    return keras.Model(image, layers.Dense(40, name="logits")(x))


def dense():
    x = keras.Input((48,), name="x")
    h = layers.Dense(64, activation="tanh")(layers.Dense(96, activation="relu")(x))
    return keras.Model(x, layers.Dense(10, activation="softmax", name="probability")(h))


def two_by_two():
    """Inputs and outputs that are not in alphabetical order."""
    zeta, alpha = keras.Input((32,), name="zeta"), keras.Input((8, 8, 3), name="alpha")
    seen = layers.Flatten()(layers.Conv2D(8, 3, strides=2, activation="relu")(alpha))
    h = layers.Concatenate()([layers.Dense(40, activation="relu")(zeta), seen])
    outputs = {"yak": layers.Dense(12, name="yak")(h), "bee": layers.Dense(5, activation="sigmoid", name="bee")(h)}
    return keras.Model([zeta, alpha], outputs)


NETS = {"residual": residual, "dense": dense, "two_by_two": two_by_two}
ANSWERED = (*(f"{net} {precision}" for net in NETS for precision in PRECISIONS), "other weights", "uint8", "metadata")
ANSWERED += ("signatures", "training")


def unsettled(make, seed):
    """A model with weights and statistics as after training: no bias, mean or gamma is where it began."""
    keras.utils.set_random_seed(seed)
    model, generator = make(), np.random.default_rng(seed)
    model.set_weights([w + generator.normal(0, 0.1, w.shape) * (np.abs(w).mean() + 0.1) for w in model.get_weights()])
    return model


def samples(model):
    generator = np.random.default_rng(1)
    shapes = {tensor.name: (100, *tensor.shape[1:]) for tensor in model.inputs}
    return {name: generator.normal(0.3, 1, shape).astype("float32") for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files():
    """Name -> file. LiteRT.js does not give the threads of a refused file back: these come last."""
    made = {}
    for seed, (name, make) in enumerate(NETS.items()):
        model = unsettled(make, seed)
        for precision in PRECISIONS:
            made[f"{name} {precision}"] = tflite_export.convert(model, precision, samples(model))
    net = unsettled(residual, 8)
    made["other weights"] = tflite_export.convert(net, "float32")
    made["uint8"] = tflite_export.convert(net, "uint8", samples(net))
    said = Metadata(labels=[str(i) for i in range(40)], normalization=Normalization(), image=True)
    made["metadata"] = tflite_export.set_metadata(made["other weights"], said)
    embed = keras.Model(net.input, net.layers[-2].output)
    made["signatures"] = tflite_export.convert({"embed": embed, "classify": net}, "float32")
    made["training"] = tflite_export.convert(tflite_export.trainable_head(net, batch=4, learning_rate=0.1), "float32")
    made["open"] = tflite_export.convert(net, "float32", batch=None)
    made["int8"] = tflite_export.convert(net, "int8", samples(net))
    return made


def calls(file):
    """Three calls of every signature, in turns: (signature, what the file takes, the same in float space)."""
    generator, session, made = np.random.default_rng(5), file.session(), []
    for _ in range(3):
        for signature in session.signatures:
            given, reals = {}, {}
            for name, detail in session.details(signature)[0].items():
                (scale, zero_point), dtype = detail["quantization"], np.dtype(detail["dtype"])
                values = generator.normal(0.3, 1, detail["shape"])
                if dtype.kind != "f":
                    values = generator.integers(0, 256 if scale else 40, detail["shape"])  # pixels or labels
                given[name] = reals[name] = values.astype(dtype)
                if scale:
                    reals[name] = ((values - zero_point) * scale).astype("float32")
            made.append((signature, given, reals))
    return made


@pytest.fixture(scope="module")
def folder(files, tmp_path_factory):
    """The files, and what clients shall run."""
    place, jobs = tmp_path_factory.mktemp("litert"), []
    for name, file in files.items():
        asked = []
        for signature, given, _ in calls(file):
            inputs = {key: {"shape": value.shape, "values": value.ravel().tolist()} for key, value in given.items()}
            asked.append({"signature": signature, "inputs": inputs})
        jobs.append({"name": name, "file": file.save(place / f"{name}.tflite").name, "calls": asked})
    (place / "jobs.json").write_text(json.dumps(jobs))
    return place


class Served(http.server.SimpleHTTPRequestHandler):
    """This folder, and the files under /files/, isolated as threads of WebAssembly need it."""

    def __init__(self, *arguments, files):
        self.files = files
        super().__init__(*arguments, directory=HERE)

    def translate_path(self, path):
        here = super().translate_path(path)
        start = str(HERE / "files")
        return str(self.files) + here[len(start) :] if here.startswith(start) else here

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(folder):
    server = http.server.ThreadingHTTPServer(("localhost", 0), functools.partial(Served, files=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=CLIENTS)
def client(request):
    """One of them, if it is there."""
    program = shutil.which("node") if request.param == "node" else chromium.PROGRAM
    if program is None or not PACKAGE.is_file():
        pytest.skip("no chromium, node or @litertjs/core: `make web-setup` installs them")
    return request.param


@pytest.fixture(scope="module")
def said(client, folder, address):
    """What the client says to all jobs: name -> `outputs` of the calls and `accelerated`, or `error`."""
    if client == "node":
        command = ["node", HERE / "litert_node.mjs", folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])
    with chromium.Chromium(*(GPU if "webgpu" in client else ())) as browser:
        answers = browser.value(f"{address}/litert.html?{client.partition('?')[2]}", "window.said", seconds=120)
    if all("no WebGPU device" in answer.get("error", "") for answer in answers.values()):
        pytest.skip("this Chromium has no software for WebGPU")
    return answers


def distance(answer, file):
    """Largest error, as a share of the peak of float outputs and in steps of integer ones."""
    session, errors = file.session(), []
    steps = dict(zip((info.name for info in file.outputs), records.output_steps(file.content), strict=True))
    assert "error" not in answer, answer
    for (signature, _, reals), found in zip(calls(file), answer["outputs"], strict=True):
        expected, (_, details) = session.call(signature, reals), session.details(signature)
        assert set(found) == set(expected)
        for name, values in expected.items():
            got = np.reshape(found[name]["values"], found[name]["shape"])
            assert got.shape == values.shape
            scale, zero_point = details[name]["quantization"]
            if scale:
                got = (got - zero_point) * scale
            errors.append(float(np.abs(got - values).max() / (steps.get(name) or np.abs(values).max())))
    return max(errors)


@pytest.mark.parametrize("name", ANSWERED)
def test_the_same_answers(client, said, files, name):
    file = files[name]
    error = distance(said[name], file)
    print(f"{client}, {name}: {error:.2g}")
    if file.precision in ("dynamic", "int4"):
        # Activations are rounded at run time, where one of two equal neighbors may be taken, and by GPUs not at all.
        assert error <= (2e-2 if "webgpu" in client else 5e-3)
    elif "int8" in file.precision:
        assert error <= 1.001
    else:
        assert error <= 1e-5


@pytest.mark.parametrize("name", ANSWERED)
def test_xnnpack_takes_all_that_partitions_tells(client, said, files, name):
    if "webgpu" in client:
        pytest.skip("not XNNPACK")
    assert said[name]["accelerated"] == (not files[name].partitions.outside)


def test_the_gpu_takes_whole_files(client, said):
    if "webgpu" not in client:
        pytest.skip("no GPU")
    assert [name for name in ANSWERED if not said[name]["accelerated"]] == ["training"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_take(said, name):
    """Even one sample is refused by a file for any number of them."""
    assert REFUSED[name] in said[name]["error"]


def test_a_wrong_file_and_wrong_pixels_are_seen(said, files):
    answer = said["residual float32"]
    assert distance(answer, files["other weights"]) > 0.1
    first, second, _ = (call["logits"]["values"] for call in answer["outputs"])
    swapped = {**answer, "outputs": [answer["outputs"][i] for i in (1, 0, 2)]}
    assert distance(swapped, files["residual float32"]) > 0.01
    assert np.abs(np.subtract(first, second)).max() > 0.01
