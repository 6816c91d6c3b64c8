"""The tables of delegates: sources, names, the documented limits on operations by hand, and the pieces of a graph."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tflite_export.hardware import registry
from tflite_export.hardware.judging import judged
from tflite_export.hardware.nodes import Graph, Node
from tflite_export.hardware.pieces import largest, pieces
from tflite_export.hardware.registry import Delegate, known, register
from tflite_export.tflite.records import TensorRecord

TABLES = sorted(known())


def tensor(shape, dtype="int8", values=None):
    data = None if values is None else np.broadcast_to(np.array(values, dtype), shape)
    return TensorRecord("t", dtype, tuple(shape), (0.5,), (0,), 0, data)


def ints(*values):
    return tensor((len(values),), "int32", values)


def node(op, inputs, outputs, **options):
    return Node(
        number=0,
        op=op,
        custom=False,
        version=1,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        reads=tuple(range(len(inputs))),
        makes=(99,),
        readers=(),
        open=False,
        layer="",
        macs=1,
        options=SimpleNamespace(**options),
    )


def asked(name, dtype="int8"):
    """Asks a table why it does not run an operation that reads and makes this dtype, besides constants."""

    def ask(op, shapes, made, *constants, **options):
        computed = [tensor(shape, dtype) for shape in shapes]
        return known()[name].rule(node(op, [*computed, *constants], [tensor(made, dtype)], **options))

    return ask


IMAGE = (1, 8, 8, 6)


def paddings(*pairs):
    return tensor((len(pairs), 2), "int32", pairs)


def test_limits_of_the_edge_tpu():
    ask = asked("edgetpu")
    assert ask("MEAN", [IMAGE], (1, 6), ints(1, 2)) is None
    assert ask("MEAN", [IMAGE], (1, 8, 8), ints(-1)) == "over 6 channels, no multiple of 4"
    assert ask("MEAN", [IMAGE], (8, 8, 6), ints(0)) == "over the batch"
    assert ask("REDUCE_MAX", [IMAGE], (8, 8, 6), ints(-4)) == "over the batch"
    assert ask("SOFTMAX", [(1, 16_000)], (1, 16_000)) is None
    assert ask("SOFTMAX", [(1, 16_001)], (1, 16_001)) == "over 16001 numbers, more than 16000"
    assert ask("SOFTMAX", [(1, 4, 5)], (1, 4, 5)) == "over shape (1, 4, 5), not 1 dimension"
    assert "only the 3 innermost sizes" in ask("RELU", [(2, 8, 8, 6)], (2, 8, 8, 6))
    assert ask("CONCATENATION", [IMAGE], IMAGE, tensor(IMAGE, values=0)) is None
    assert "no padding with zeros" in ask("CONCATENATION", [IMAGE], IMAGE, tensor(IMAGE, values=1))
    assert ask("PAD", [IMAGE], IMAGE, paddings((0, 0), (1, 1), (1, 1), (0, 0))) is None
    assert ask("PAD", [IMAGE], IMAGE, paddings((1, 0), (0, 0), (0, 0), (0, 0))) == "of the batch"
    assert ask("STRIDED_SLICE", [IMAGE], IMAGE, ints(0), ints(9), ints(2)) == "strides other than 1"
    assert ask("PACK", [(8, 6), (8, 6)], (2, 8, 6), axis=0) == "along the batch"
    assert ask("PRELU", [IMAGE], IMAGE, tensor((8, 8, 6), values=1)) == "a slope for more than each channel"
    assert "more than 1 dimension" in ask("FULLY_CONNECTED", [(4, 6)], (4, 5), tensor((5, 6), values=1))
    assert ask("CONV_2D", [IMAGE], IMAGE, tensor((6, 1, 1, 6), "int4", 1)).startswith("weights in int4")


def test_limits_of_the_gpu():
    ask = asked("gpu", "float32")
    assert ask("ADD", [IMAGE, (8, 8, 6)], IMAGE) is None
    assert ask("ADD", [(1, 4, 6), (4, 6)], (1, 4, 6)) == "shapes (1, 4, 6) and (4, 6) of different ranks"
    assert ask("PAD", [(1, 6)], (1, 8), paddings((0, 0), (1, 1))) == "a tensor of 2 dimensions, not 3 or 4"
    assert ask("SQUEEZE", [IMAGE], IMAGE) == "not among its operations"
    assert ask("BATCH_MATMUL", [(1, 4, 6)], (1, 4, 5), tensor((6, 5), "float32", 1)) is None
    assert "not of 2 dimensions" in ask("BATCH_MATMUL", [(2, 4, 6)], (2, 4, 5), tensor((2, 6, 5), "float32", 1))
    assert "shrink_axis_mask" in ask("STRIDED_SLICE", [(1, 4, 6)], (4, 6), shrinkAxisMask=1)
    assert "one CAST or SELECT alone" in ask("LESS", [IMAGE, IMAGE], IMAGE)
    assert ask("MEAN", [IMAGE], (1, 6), tensor((1,), "int64", 1)) == "int64; it takes int32"
    assert ask("CONV_2D", [IMAGE], IMAGE, tensor((6, 1, 1, 6), "int8", 1)) is None
    kernel = tensor((1, 3, 3, 6), "float32", 1)
    assert ask("DEPTHWISE_CONV_2D", [IMAGE], IMAGE, kernel, depthMultiplier=1) is None
    assert "do not belong together" in ask("DEPTHWISE_CONV_2D", [IMAGE], IMAGE, kernel, depthMultiplier=2)
    assert asked("gpu", "int32")("MUL", [IMAGE, IMAGE], IMAGE).startswith("reads int32")


def test_limits_of_nnapi():
    ask = asked("nnapi")
    assert ask("UNPACK", [(4, 6)], (4,), axis=1) == "along the last axis"
    assert ask("BATCH_MATMUL", [(2, 4, 6), (1, 6, 5)], (2, 4, 5)) == "batches that differ"
    assert ask("SUM", [IMAGE], (1, 6), ints(1)) == "int8; it takes float32"
    assert ask("TRANSPOSE", [IMAGE, (4,)], IMAGE) == "the order of axes is computed, not constant"
    assert ask("MEAN", [(1, 1, 2, 2, 2)], (1, 2), ints(1)) == "reads 5 dimensions; it takes 0, 1, 2, 3 or 4"
    assert asked("nnapi", "int16")("ADD", [IMAGE, IMAGE], IMAGE) == "int16, which it does not take"


def test_limits_of_qualcomm_and_the_old_dsp():
    ask = asked("qualcomm")
    assert ask("CUMSUM", [IMAGE], IMAGE, ints(1)) is None
    assert ask("FLOOR_MOD", [IMAGE, IMAGE], IMAGE) == "int8; it takes int32"
    assert ask("SQUEEZE", [IMAGE], IMAGE) == "not among its operations"
    bias = tensor((6,), "int64", 1)
    assert ask("DEPTHWISE_CONV_2D", [IMAGE], IMAGE, bias) == "a quantized int64 bias"
    assert ask("CONV_2D", [IMAGE], IMAGE, bias) is None
    ask = asked("hexagon")
    assert ask("MAX_POOL_2D", [IMAGE], IMAGE, filterHeight=13) == "a window above 12 with padding SAME"
    assert ask("MUL", [IMAGE, IMAGE], IMAGE, fusedActivationFunction=4) == "TANH fused into it"
    flat, tall = (tensor((1, height, 3, 6), values=1) for height in (1, 2))
    assert ask("DEPTHWISE_CONV_2D", [IMAGE], IMAGE, flat, None, depthMultiplier=1) == "a kernel of height 1"
    assert ask("DEPTHWISE_CONV_2D", [IMAGE], IMAGE, tall, None, depthMultiplier=1) is None


def test_limits_of_microcontrollers():
    ask = asked("micro")
    assert ask("TRANSPOSE", [(1,) * 6], (1,) * 6, ints(0, 1, 2, 3, 4, 5)).startswith("reads 6 dimensions")
    assert ask("RESHAPE", [(1,) * 7], (1,)) == "a tensor of 7 dimensions, more than 6"
    assert ask("CONV_2D", [IMAGE], IMAGE, tensor((6, 1, 1, 6), "int4", 1)) is None
    assert ask("FULLY_CONNECTED", [], (1, 5)) == "fewer inputs than it takes"
    assert asked("micro", "uint8")("CONV_2D", [IMAGE, IMAGE], IMAGE).startswith("uint8; it takes float32")
    ask = asked("cmsis_nn")
    assert ask("ADD", [IMAGE, (1, 1, 1, 6)], IMAGE) == "shapes that differ: 1x8x8x6 and 1x1x1x6"
    assert ask("ADD", [IMAGE, IMAGE], IMAGE) is None
    assert ask("MAXIMUM", [IMAGE, (1, 1, 1, 6)], IMAGE) is None
    assert ask("LOGISTIC", [IMAGE], IMAGE) == "not among its operations"
    assert asked("cmsis_nn", "int16")("MAXIMUM", [IMAGE, IMAGE], IMAGE) == "int16; it takes int8"


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_its_source_and_real_operations(name):
    from ai_edge_litert import schema_py_generated as schema

    module = sys.modules[f"tflite_export.hardware.tables.{name}"]
    assert set(module.TABLE) <= {op for op in vars(schema.BuiltinOperator) if op[0] != "_"}
    assert "CONV_2D" in module.TABLE
    assert "Source: " in module.__doc__
    assert "https://" in module.__doc__
    assert "(20" in known()[name].source or "undated" in known()[name].source


@pytest.mark.parametrize("name", TABLES)
def test_an_operation_without_its_tensors_gets_an_answer(name):
    for op in sys.modules[f"tflite_export.hardware.tables.{name}"].TABLE:
        for inputs in ([], [None], [tensor(())], [tensor(()), tensor(())]):
            found = known()[name].rule(node(op, inputs, [tensor(())]))
            assert found is None or (isinstance(found, str) and found), (op, inputs)


def test_a_new_table_must_name_its_source():
    with pytest.raises(ValueError, match="table of 'mine' must name its source"):
        register(Delegate("mine", " ", lambda node: None))
    with pytest.raises(ValueError, match="'gpu' is registered already"):
        register(Delegate("gpu", "somewhere", lambda node: None))
    try:
        register(Delegate("mine", "a document (2026)", lambda node: None))
        assert "mine" in known()
    finally:
        del registry._KNOWN["mine"]


def chain(*edges, op="ADD", macs=1):
    """Nodes that read some tensors and make one: tensor 0 is the input, node n makes tensor n + 1."""
    return [
        Node(number, op, False, 1, (), (), read, (number + 1,), (), False, "", macs)
        for number, read in enumerate(edges)
    ]


def test_pieces_by_hand():
    line = chain((0,), (1,), (2,))
    assert pieces(line, {0, 2}) == ((0,), (2,))
    assert pieces(line, {0, 1, 2}) == ((0, 1, 2),)
    assert pieces(line, {1}) == ((1,),)
    assert pieces(line, ()) == ()
    diamond = chain((0,), (1,), (1,), (2, 3))
    assert pieces(diamond, {0, 2, 3}) == ((0, 2), (3,))
    assert pieces(diamond, {1, 2, 3}) == ((1, 2, 3),)
    # The first node that can run tells the side of the first turn: two inputs, one branch each, joined.
    assert pieces(chain((-1,), (0,), (1, 2)), {1, 2}) == ((1, 2),)
    assert pieces(chain((0,), (-1,), (1, 2)), {0, 2}) == ((0,), (2,))
    # A node whose tensor comes from a later one waits for the next round of the same turn.
    assert pieces(chain((2,), (0,), (1,)), {0, 1, 2}) == ((0, 1, 2),)
    # Loops keep their order: the second waits for the first, on the CPU, though it reads nothing of it.
    assert pieces(chain((0,), (0,), op="WHILE"), {1}) == ((1,),)
    assert pieces(chain((2,), (0,), op="WHILE"), {0, 1}) == ()


def test_which_pieces_are_taken():
    found = ((0,), (2, 3, 4), (6, 7))
    assert largest(found, 1) == [(2, 3, 4)]
    assert largest(found, 2) == [(2, 3, 4), (6, 7)]
    assert largest(found, None, smallest=3) == [(2, 3, 4)]
    line = Graph(tuple(chain((0,), (1,), (2,), (3,))))  # 1 | CPU | 2 operations

    def verdict(**limits):
        return judged(line, Delegate("mine", "by hand", lambda one: "no" if one.number == 1 else None, **limits))

    assert (verdict().runs, verdict().partitions, verdict().macs_share) == (3, 2, 0.75)
    assert (verdict(most=1).runs, verdict(most=1).partitions) == (2, 2)
    assert (verdict(most=1, in_order=True).runs, verdict(most=1, in_order=True).macs_share) == (1, 0.25)
    assert verdict(smallest=3).verdict == "does not run"
    assert verdict(needs=lambda one: None).runs == 3
