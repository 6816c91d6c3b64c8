"""Runs an int8 file on its own integers: what a phone computes."""

import numpy as np


def interpreter(content, delegates=True):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    kind = OpResolverType.AUTO if delegates else OpResolverType.BUILTIN_REF
    found = Interpreter(model_content=content, experimental_op_resolver_type=kind)
    found.allocate_tensors()
    return found


def on_grid(content, x):
    """(integers of the file's input, what they stand for)."""
    (given,) = interpreter(content).get_input_details()
    scale, zero = given["quantization"]
    integers = np.clip(np.round(x / scale) + zero, -128, 127).astype("int8")
    return integers, (integers.astype("float32") - zero) * np.float32(scale)


def outputs_of(content, x, delegates=True):
    """[(values (n, ...), step)], one an output; `x` is rounded to the scale of the file's input."""
    found = interpreter(content, delegates)
    (given,), taken = found.get_input_details(), found.get_output_details()
    rows = []
    for row in on_grid(content, x)[0]:
        found.set_tensor(given["index"], row[None])
        found.invoke()
        rows.append([found.get_tensor(entry["index"])[0].astype("float32") for entry in taken])
    steps = [entry["quantization"] for entry in taken]
    return [
        ((np.array(values) - zero) * scale, scale)
        for values, (scale, zero) in zip(zip(*rows, strict=True), steps, strict=True)
    ]


def kernels_of(content, kind):
    """(integers, scales) of the kernels of the operations of one kind, in order."""
    found = interpreter(content)
    details = {entry["index"]: entry for entry in found.get_tensor_details()}
    numbers = [op["inputs"][1] for op in found._get_ops_details() if op["op_name"] == kind]
    return [(found.get_tensor(number), details[number]["quantization_parameters"]["scales"]) for number in numbers]
