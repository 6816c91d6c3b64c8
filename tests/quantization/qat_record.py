"""What quantization-aware training makes of a net: shared by a test and the printed matrix."""

import time
from collections import Counter

import keras
import numpy as np
from qat_nets import inputs_of

import tflite_export
from kdopt.quantization import quantize_aware
from tflite_export.runtime.runner import dequantize, quantize
from tflite_export.sources.resolve import resolve
from tflite_export.tflite import records


def record(model, engine, plain=None, samples=8):
    """Build with calibration, one step of `fit`, export; the file beside the model and beside the plain converter's.

    Args:
        model: Float Keras model.
        engine: Of `quantize_aware`.
        plain: What `plain_operations(model)` gave, to compare with. Defaults to `None`.
        samples: Integer >= 1, inputs that are compared.

    Returns: dict, with `failed` where something was refused.
    """
    data, start = inputs_of(model, 1, 32), time.perf_counter()
    done = {"parameters": model.count_params()}
    try:
        qat = quantize_aware(model, engine=engine, calibration=data)
        done["build"] = time.perf_counter() - start
        done["modes"] = dict(Counter(entry.mode for entry in qat.report))
        done["loss"], done["untouched"] = train_step(qat, inputs_of(model, 2, samples))
        start = time.perf_counter()
        file = tflite_export.convert(qat, "int8")
        done["export"] = time.perf_counter() - start
    except (TypeError, ValueError, RuntimeError, tflite_export.ConversionError) as refusal:
        return {**done, "failed": f"{type(refusal).__name__}: {refusal}"}
    done["float"] = sum(op.is_float for op in records.ops(file.content))
    done["calibrated"] = file.calibrated
    done |= compared(qat, file.content, inputs_of(model, 3, samples))
    own = operations(file.content)
    done["operations"] = own.total()
    return done if plain is None else done | {"more": dict(own - plain), "less": dict(plain - own)}


def train_step(qat, x):
    """One update on random targets; returns the loss and the kernels that it left as they were."""
    random = np.random.default_rng(2)
    targets = keras.tree.map_structure(lambda y: random.normal(size=y.shape), qat(x))
    qat.compile(keras.optimizers.Adam(1e-4), "mse", jit_compile=False)
    before = [(weight, weight.numpy()) for weight in qat.trainable_weights if "kernel" in weight.name]
    loss = qat.fit(x, targets, batch_size=len(keras.tree.flatten(x)[0]), verbose=0).history["loss"][0]
    return loss, [weight.path for weight, value in before if np.array_equal(weight.numpy(), value)]


def compared(qat, content, x):
    """Differences in steps of the outputs: model to file, and XNNPACK to TFLite's reference kernels."""
    exact, flat = interpreter(content), keras.tree.flatten(x)
    details = exact.get_input_details()
    integers = [quantize(array, detail) for array, detail in zip(flat, details, strict=True)]
    seen = [dequantize(array, detail) for array, detail in zip(integers, details, strict=True)]
    model = keras.tree.flatten(qat.predict(keras.tree.pack_sequence_as(x, seen), verbose=0))
    file = run(exact, integers)
    steps = [detail["quantization"][0] or 1.0 for detail in exact.get_output_details()]
    gaps = [np.abs(a - b) / s for a, b, s in zip(model, file, steps, strict=True)]
    spreads = [np.mean(np.ptp(y, axis=0)) / s for y, s in zip(model, steps, strict=True)]
    try:
        reference = run(interpreter(content, xnnpack=False), integers)
        kernels = [np.abs(a - b) / s for a, b, s in zip(file, reference, steps, strict=True)]
    except ValueError:  # an operation of a version that only the other kernels have
        kernels = [np.array(np.nan)]
    return {
        "mean": max(float(gap.mean()) for gap in gaps),
        "max": max(float(gap.max()) for gap in gaps),
        "same": min(float(np.mean(a.argmax(-1) == b.argmax(-1))) for a, b in zip(model, file, strict=True)),
        "spread": min(map(float, spreads)),
        "kernels mean": max(float(gap.mean()) for gap in kernels),
        "kernels max": max(float(gap.max()) for gap in kernels),
    }


def plain_operations(model):
    """How many operations of each kind the plain converter's int8 file has, None where it refuses or does not load."""
    try:
        return operations(tflite_export.convert(model, "int8", dict_of(model, inputs_of(model, 1, 32))).content)
    except (ValueError, tflite_export.ConversionError):
        return None


def dict_of(model, x):
    """Arrays by the names that the exporter gives the inputs."""
    return dict(zip(resolve(model).inputs, keras.tree.flatten(x), strict=True))


def operations(content):
    return Counter(op.name for op in records.ops(content))


def interpreter(content, xnnpack=True):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_REF
    found = Interpreter(model_content=content, experimental_op_resolver_type=kind)
    found.allocate_tensors()
    return found


def run(found, integers):
    """Outputs of a file, one array (n, ...) each."""
    rows = []
    for number in range(len(integers[0])):
        for array, detail in zip(integers, found.get_input_details(), strict=True):
            found.set_tensor(detail["index"], array[number : number + 1])
        found.invoke()
        rows.append([dequantize(found.get_tensor(d["index"]), d)[0] for d in found.get_output_details()])
    return [np.stack(values) for values in zip(*rows, strict=True)]
