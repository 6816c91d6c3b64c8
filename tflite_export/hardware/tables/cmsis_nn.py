"""CMSIS-NN: fast int8 and int16 kernels of TensorFlow Lite Micro for Arm Cortex-M.

What it does not have runs in TensorFlow Lite Micro's plain kernels, on the same core.

Source: tflite-micro 90b983c2 (2026-08-20), https://github.com/tensorflow/tflite-micro
    tensorflow/lite/micro/kernels/cmsis_nn/*.cc: for which dtypes and shapes each kernel calls an `arm_*` function;
    tensorflow/lite/micro/kernels/cmsis_nn/README.md.

RESHAPE, SQUEEZE and EXPAND_DIMS count as run: they copy bytes, and there is nothing to be faster at. Left out: which
functions use the vector instructions (MVE, DSP) of a core.
"""

from tflite_export.hardware.registry import Delegate, register
from tflite_export.hardware.rules import Table, by_table, input_rank, makes, reads, same_shapes
from tflite_export.hardware.tables.micro import runs_on_micro

_8 = (reads(0, "int8"),)
_8_16 = (reads(0, "int8", "int16"),)
_FOUR = input_rank(0, 4)

TABLE: Table = {
    "ADD": (*_8_16, same_shapes),
    "AVERAGE_POOL_2D": _8_16,
    "BATCH_MATMUL": _8_16,
    "CONV_2D": _8_16,
    "DEPTHWISE_CONV_2D": _8_16,
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": _8_16,
    "MAXIMUM": (*_8, _FOUR),
    "MAX_POOL_2D": _8_16,
    "MINIMUM": (*_8, _FOUR),
    "MUL": (*_8_16, same_shapes),
    "PAD": (*_8, _FOUR),
    "PADV2": (*_8, _FOUR),
    "RESHAPE": (),
    "SOFTMAX": (*_8_16, makes("int8", "int16")),
    "SQUEEZE": (),
    "SVDF": _8,
    "TRANSPOSE": (*_8, _FOUR),
    "TRANSPOSE_CONV": (reads(2, "int8"),),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _8_16,
}

CMSIS_NN = register(
    Delegate(
        name="cmsis_nn",
        source="tflite-micro 90b983c2 (2026-08-20): tensorflow/lite/micro/kernels/cmsis_nn",
        rule=by_table(TABLE),
        needs=runs_on_micro,
        remedy="What it does not have runs in plain loops on the same core: convert with "
        "precision='int8', and write it with operations that it has.",
        note="Build TensorFlow Lite Micro with OPTIMIZED_KERNEL_DIR=cmsis_nn.",
    )
)
