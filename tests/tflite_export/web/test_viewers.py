"""Netron draws, and Model Explorer reads, what is in the file: operations, constants, graphs, texts of the metadata.

`make web-setup` installs both. Netron runs in a real browser; of Model Explorer, what reads files for its pages.
"""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import chromium
import keras
import numpy as np
import pytest

import tflite_export
from tflite_export import Metadata, Normalization, TensorText
from tflite_export.tflite import flatbuffer, records

pytestmark = pytest.mark.slow
layers = keras.layers
PYTHON = Path(__file__).parents[3] / ".venv-viewers/bin/python"
PRECISIONS = ("float32", "float16", "dynamic", "int8", "int8_float_io", "int4", "int8_int4", "int16x8")
TEXTS = ("Colors of things", "Says which of 40 colors it is", "1.2", "me", "MIT")
FILES = (*PRECISIONS, "metadata", "metadata int8", "signatures", "training")

# Serves one file after the other: every server of Netron in a process serves the file that came last.
NETRON = """
import sys, netron
for path in sys.stdin:
    print(*netron.start(path.strip(), address=("localhost", 0), browse=False), flush=True)
"""

# Reads every graph that the page offers: operation and constants of each box, and the texts of the model's sidebar.
DRAWN = """(async () => {
  const body = document.body, nodes = () => document.querySelector('#nodes');
  if (['alert', 'notification'].some(name => body.classList.contains(name))) {
    return {message: document.querySelector('#message-text').innerText};
  }
  if (!body.classList.contains('default')) return null;
  const select = document.querySelector('#toolbar-target-selector'), graphs = {};
  for (let i = 0; i < select.options.length; i++) {
    if (select.selectedIndex !== i) {
      nodes().id = 'read';
      select.selectedIndex = i;
      select.dispatchEvent(new Event('change'));
      while (!nodes() || !body.classList.contains('default')) await new Promise(done => setTimeout(done, 20));
    }
    graphs[select.options[i].innerText] = [...document.querySelectorAll('#nodes > .graph-node')].map(node => ({
      op: node.querySelector('.node-item-type > text').textContent,
      constants: [...node.querySelectorAll('.node-argument title')].map(title => title.textContent),
      placed: node.hasAttribute('transform'),
    }));
  }
  document.querySelector('#sidebar-model-button').click();
  return {graphs, sidebar: document.querySelector('#sidebar-content').innerText};
})()"""

# Prints a line of JSON: what Model Explorer's pages get to draw, or why the file cannot be read.
EXPLORER = """
import json, sys
import ai_edge_model_explorer_adapter as adapter
try:
    said = {"read": json.loads(adapter.ConvertFlatbufferDirectlyToJson(adapter.VisualizeConfig(), sys.argv[1]))}
except RuntimeError as error:
    said = {"error": str(error)}
print(json.dumps(said))
"""


def net():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(32, 3, padding="same")(image)))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same")(x)])
    x = layers.Conv2D(32, 1, activation="relu")(x)
    return keras.Model(image, layers.Dense(40, name="logits")(layers.GlobalAveragePooling2D()(x)))


@pytest.fixture(scope="module")
def files():
    """Name -> file."""
    keras.utils.set_random_seed(0)
    model, generator = net(), np.random.default_rng(0)
    model.set_weights([w + generator.uniform(0.01, 0.1, w.shape) for w in model.get_weights()])
    pixels = generator.random((50, 8, 8, 3), np.float32)
    made = {name: tflite_export.convert(model, name, pixels) for name in PRECISIONS}
    labels = [f"color {i}" for i in range(40)]
    texts = {"inputs": [TensorText("pixels", "A photo")], "outputs": [TensorText("colors", "How likely")]}
    said = Metadata(*TEXTS, labels=labels, normalization=Normalization(), image=True, **texts)
    made["metadata"] = tflite_export.set_metadata(made["float32"], said)
    made["metadata int8"] = tflite_export.set_metadata(made["int8"], Metadata(*TEXTS, labels=labels, image=True))
    embed = keras.Model(model.input, model.layers[-2].output)
    made["signatures"] = tflite_export.convert(
        {"embed": embed, "classify": model}, "int8", {"embed": pixels, "classify": pixels}
    )
    made["training"] = tflite_export.convert(tflite_export.trainable_head(model, batch=4), "float32")
    return made


def plain(op):
    """BATCH_MATMUL, BatchMatMul, batch_matmul: `batchmatmul`."""
    return op.replace("_", "").lower()


def kind(tensor):
    return tensor.dtype + (f"[{','.join(map(str, tensor.shape))}]" if tensor.shape else "")


def graphs(content):
    """Graph -> how many operations there are of a name and types of constants."""
    model, found = flatbuffer.read(content), {}
    for number in range(model.SubgraphsLength()):
        graph, tensors = model.Subgraphs(number), records.tensors(content, number)
        boxes = found[graph.Name().decode()] = Counter()
        for index in range(graph.OperatorsLength()):
            operator = graph.Operators(index)
            inputs = [tensors[i] for i in records.numbers(operator.InputsAsNumpy()) if i >= 0]
            name, _ = flatbuffer.operator_name(model, operator)
            boxes[plain(name), *(kind(one) for one in inputs if one.data is not None)] += 1
    return found


def has(module):
    return PYTHON.is_file() and not subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode


@pytest.fixture(scope="module")
def netron():
    """A function: path -> what Netron draws."""
    if chromium.PROGRAM is None or not has("netron"):
        pytest.skip("no chromium or netron: `make web-setup` installs them")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([PYTHON, "-c", NETRON], **pipes) as server, chromium.Chromium() as browser:

        def drawn(path):
            print(path, file=server.stdin, flush=True)
            host, port = server.stdout.readline().split()
            address = f"http://{host}:{port}/"
            # Where it cannot ask in which country it is, it asks the user for consent to cookies.
            browser.call("Storage.setCookies", cookies=[{"name": "consent", "value": "1", "url": address}])
            said = browser.value(address, DRAWN)
            if "update to the newest version" in said.get("message", ""):
                pytest.skip("this Netron stopped half a year after its release: `make web-setup` installs the newest")
            return said

        yield drawn


@pytest.mark.parametrize("name", FILES)
def test_netron_draws_the_file(netron, files, name, tmp_path):
    said = netron(files[name].save(tmp_path / "net.tflite"))
    assert "message" not in said, said
    expected = graphs(files[name].content)
    shown = {graph.partition(".")[0] for graph in said["graphs"]}
    assert shown == set(expected)
    for graph, nodes in said["graphs"].items():  # a graph by itself, and as the signature of its name
        boxes = Counter((plain(node["op"]), *node["constants"]) for node in nodes)
        assert boxes == expected[graph.partition(".")[0]], graph
        assert all(node["placed"] for node in nodes)
    assert all(text in said["sidebar"] for text in TEXTS) == name.startswith("metadata")


def explored(path):
    done = subprocess.run([PYTHON, "-c", EXPLORER, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def explorer():
    if not has("ai_edge_model_explorer_adapter"):
        pytest.skip("no ai-edge-model-explorer-adapter: `make web-setup` installs it")
    return explored


def attributes(entries):
    return {entry["key"]: entry["value"] for entry in entries}


@pytest.mark.parametrize("name", FILES)
def test_model_explorer_reads_the_file(explorer, files, name, tmp_path):
    content = files[name].content
    said = explorer(files[name].save(tmp_path / "net.tflite"))
    assert "error" not in said, said
    (collection,) = said["read"]
    expected = graphs(content)
    assert [graph["id"] for graph in collection["subgraphs"]] == list(expected)
    for number, graph in enumerate(collection["subgraphs"]):
        tensors, ops, constants = records.tensors(content, number), Counter(), 0
        for node in graph["nodes"]:
            values = attributes(node.get("attrs", [])).get("__value")
            if node["label"] == "pseudo_const":
                constants += 1
                assert values is not None
            elif node["label"] not in ("GraphInputs", "GraphOutputs"):
                ops[plain(node["label"])] += 1
            for output in node.get("outputsMetadata", []):
                same_tensor(tensors, attributes(output["attrs"]), values)
        assert ops == sum((Counter({box[0]: count}) for box, count in expected[graph["id"]].items()), Counter())
        assert constants == sum(tensor.data is not None for tensor in tensors)


def same_tensor(tensors, said, values):
    """Type, shape, and of a constant its first 16 values."""
    tensor = tensors[int(said["tensor_index"])]
    assert said.get("tensor_shape", "").startswith("resource") or said["tensor_shape"] == kind(tensor)
    if values is not None:
        first = tensor.data.ravel()[:16].astype(float)
        found = [float(value) for value in re.findall(r"-?\d[\d.]*(?:[eE][+-]?\d+)?", values)]
        np.testing.assert_allclose(found * (len(first) // len(found)), first, rtol=1e-5)  # equal ones are said once


@pytest.mark.parametrize("viewer", ["netron", "explorer"])
def test_a_broken_file_is_seen(viewer, request, files, tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(files["float32"].content[:300])
    said = request.getfixturevalue(viewer)(path)
    assert "message" in said or "error" in said
