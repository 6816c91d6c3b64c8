"""What it costs to remove channels, and what it saves.

    python benchmarks/shrinking_speed.py time       plan and apply: seconds by stage, and how they grow with depth
    python benchmarks/shrinking_speed.py memory     plan and apply: peak memory over the weights
    python benchmarks/shrinking_speed.py latency    a shrunk net beside one built with the same widths
    python benchmarks/shrinking_speed.py rounding   latency saved for each multiply-accumulate saved, by `round_to`

Goals: plan and apply in less than 10 s each for ResNet50 and EfficientNetB0, in linear time, with at most twice the
weights as extra memory; latency within 5 % of the net built with those widths. Latencies are of `.tflite` files on
ai_edge_litert, one thread, interleaved by `_interleave`. Weights are random: what is measured depends on widths alone.

Memory is the largest resident set, sampled every 2 ms in a process of its own for each net, less the resident set
before and the weights of the shrunk net; a small net was shrunk before, so that code and thread pools are there.
"""

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
from _interleave import interleaved, ratios

import tflite_export
from kdopt.core.measure import macs, size_bytes
from kdopt.graph.channels.groups import trace_channels
from kdopt.pruning.structural import ReachedError, apply_plan, plan_channels
from tflite_export.runtime.runner import Runner
from tflite_export.sources.protocol import InputSpec
from tflite_export.sources.samples import random_sample

layers = keras.layers
Widths = Mapping[str, int]
LARGE: dict[str, Callable[[], keras.Model]] = {
    "ResNet50": lambda: keras.applications.ResNet50(weights=None),
    "EfficientNetB0": lambda: keras.applications.EfficientNetB0(weights=None),
}
BLOCK, ROUNDS = 0.05, 30
PARTS = ("plan", "apply without check", "apply")


def unit(x: Any, layer: Any, activation: str | None = "relu6") -> Any:
    x = layers.BatchNormalization()(layer(x))
    return layers.Activation(activation)(x) if activation else x


def resnet8(widths: Widths = {}) -> keras.Model:  # noqa: B006  it is only read
    """ResNet8 of MLPerf Tiny; `widths` are filters by layer name."""

    def conv(name: str, filters: int, size: int = 3, stride: int = 1) -> Any:
        return layers.Conv2D(widths.get(name, filters), size, stride, padding="same", name=name)

    inputs = keras.Input((32, 32, 3))
    x = unit(inputs, conv("stem", 16), "relu")
    for i, (filters, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
        h = unit(x, conv(f"first{i}", filters, 3, stride), "relu")
        h = unit(h, conv(f"second{i}", filters), None)
        x = x if stride == 1 else conv(f"shortcut{i}", filters, 1, stride)(x)
        x = layers.ReLU()(layers.Add()([x, h]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def mobilenet_v2(widths: Widths = {}) -> keras.Model:  # noqa: B006
    """MobileNetV2 1.0 on 96x96; `widths` are filters by layer name."""

    def conv(name: str, filters: int, size: int = 1, stride: int = 1) -> Any:
        return layers.Conv2D(widths.get(name, filters), size, stride, padding="same", use_bias=False, name=name)

    x = inputs = keras.Input((96, 96, 3))
    x = unit(x, conv("stem", 32, 3, 2))
    filters, number = 32, 0
    for expansion, wide, count, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)
    ):  # fmt: skip
        for i in range(count):
            h = x if expansion == 1 else unit(x, conv(f"expand{number}", expansion * filters))
            h = unit(h, layers.DepthwiseConv2D(3, stride if i == 0 else 1, padding="same", use_bias=False))
            h = unit(h, conv(f"project{number}", wide), None)
            x = h if i == 0 else layers.Add()([x, h])
            filters, number = wide, number + 1
    x = unit(x, conv("head", 1280))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


SMALL: dict[str, Callable[..., keras.Model]] = {"ResNet8": resnet8, "MobileNetV2 96": mobilenet_v2}


def stack(blocks: int) -> keras.Model:
    """Residual blocks of two convolutions, 32 channels."""
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(32, 3, padding="same")(x)
    for _ in range(blocks):
        h = unit(x, layers.Conv2D(32, 3, padding="same"))
        x = layers.Add()([x, unit(h, layers.Conv2D(32, 3, padding="same"))])
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def fastest(function: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest run."""
    found = []
    for _ in range(times):
        gc.collect()
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


def stages(model: keras.Model) -> tuple[float, float, float, float]:
    """Seconds to trace, to plan, to make the smaller model, and to compare it; plan and apply each trace once."""
    plan = plan_channels(model, macs=0.5)
    trace = fastest(lambda: trace_channels(model))
    planning = fastest(lambda: plan_channels(model, macs=0.5))
    unchecked = fastest(lambda: apply_plan(model, plan, check=False))
    checked = fastest(lambda: apply_plan(model, plan))
    return trace, planning - trace, unchecked - trace, checked - unchecked


def times() -> None:
    stacks: dict[str, Callable[[], keras.Model]] = {
        f"{blocks} residual blocks": partial(stack, blocks) for blocks in (10, 20, 40, 80)
    }
    print("| net | layers | plan, s | apply, s | trace | plan | rebuild | check | ms a layer |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in {**LARGE, **stacks}.items():
        model = make()
        trace, plan, rebuild, check = stages(model)
        whole, count = 2 * trace + plan + rebuild + check, len(model.layers)
        shares = " | ".join(f"{100 * part / whole:.0f} %" for part in (2 * trace, plan, rebuild, check))
        planning, applying = trace + plan, trace + rebuild + check
        print(f"| {name} | {count} | {planning:.2f} | {applying:.2f} | {shares} | {1000 * whole / count:.2f} |")


def memory() -> None:
    print("| net | weights, MB | plan | apply without check | apply |")
    print("|---|---|---|---|---|")
    for name in LARGE:
        cells = []
        for part in PARTS:
            command = [sys.executable, "-W", "ignore", __file__, "memory", "--net", name, "--part", part]
            cells.append(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        print(f"| {name} | {size_bytes(LARGE[name]()) / 1e6:.1f} | {' | '.join(cells)} |", flush=True)


def memory_of(name: str, part: str) -> None:
    """Extra memory over the weights."""
    warm = stack(2)
    apply_plan(warm, plan_channels(warm, macs=0.5))
    model = LARGE[name]()
    plan, extra = peak(lambda: plan_channels(model, macs=0.5))
    if part != "plan":
        small, extra = peak(partial(apply_plan, model, plan, part == "apply"))
        extra -= size_bytes(small)
    print(f"{extra / size_bytes(model):.2f}")


def peak(function: Callable[[], Any]) -> tuple[Any, int]:
    """(what it returns, most bytes it held at once)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else it would use what earlier work has freed
    before, most, over = resident(), 0, threading.Event()

    def sample() -> None:
        nonlocal most
        while not over.wait(0.002):
            most = max(most, resident())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        made = function()
    finally:
        over.set()
        thread.join()
    return made, max(most, resident()) - before


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def block_of(model: keras.Model, precision: str) -> tuple[Callable[[], None], int]:
    """(inferences of a file for about a twentieth of a second, how many they are)."""
    spec = {"x": InputSpec((None, *model.input_shape[1:]), "float32")}
    file = tflite_export.convert(model, precision, random_sample(spec, 32)["x"] if precision == "int8" else None)
    runner = Runner(file.content)
    count = max(1, round(BLOCK / fastest(runner.invoke, 20)))

    def block() -> None:
        for _ in range(count):
            runner.invoke()

    return block, count


def inferences(models: dict[str, keras.Model], precision: str) -> dict[str, list[float]]:
    """Seconds of an inference of each model, in each round."""
    made = {name: block_of(model, precision) for name, model in models.items()}
    seconds = interleaved({name: block for name, (block, _) in made.items()}, ROUNDS)
    return {name: [s / count for s in seconds[name]] for name, (_, count) in made.items()}


def latency() -> None:
    print(
        "| shrunk / built with its widths | precision | MACs left | of the minima | median of pairs | 95 % interval |"
    )
    print("|---|---|---|---|---|---|")
    for name, make in SMALL.items():
        model = make()
        plan = plan_channels(model, macs=0.5)
        models = {"built": make({layer.layer: layer.after for layer in plan.layers}), "shrunk": apply_plan(model, plan)}
        assert macs(models["built"]) == macs(models["shrunk"])
        for precision in ("float32", "int8"):
            found = inferences(models, precision)
            row = ratios(found["shrunk"], found["built"])
            left = macs(models["shrunk"]) / macs(model)
            print(f"| {name} | {precision} | {left:.3f} | {told(row)} |", flush=True)


def rounding() -> None:
    print("| net | precision | round_to | MACs left | latency left | median of pairs | 95 % interval | saved |")
    print("|---|---|---|---|---|---|---|---|")
    for name, make in SMALL.items():
        model = make()
        models = {0: model}
        for to in (1, 8, 16, 32):
            try:
                models[to] = apply_plan(model, plan_channels(model, macs=0.5, round_to=to))
            except ReachedError:
                print(f"| {name} | | {to} | out of reach |||||")
        for precision in ("float32", "int8"):
            found = inferences({str(to): one for to, one in models.items()}, precision)
            for to, small in list(models.items())[1:]:
                row, left = ratios(found[str(to)], found["0"]), macs(small) / macs(model)
                saved = (1 - row[0]) / (1 - left)
                print(f"| {name} | {precision} | {to} | {left:.3f} | {told(row)} | {saved:.2f} |", flush=True)


def told(row: tuple[float, float, float, float]) -> str:
    minima, median, low, high = row
    return f"{minima:.3f} | {median:.3f} | {low:.3f} - {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"time": times, "memory": memory, "latency": latency, "rounding": rounding}
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--net", choices=LARGE, help="of memory: this one, in this process")
    parser.add_argument("--part", choices=PARTS, default="apply", help="of that")
    options = parser.parse_args()
    if options.what == "memory" and options.net:
        memory_of(options.net, options.part)
    else:
        kinds[options.what]()


if __name__ == "__main__":
    main()
