"""Quantization: training with the rounding of the int8 file.

quantize_aware   Keras 3 model -> a copy that trains with int8 rounding
QuantizedModel   that copy, engine "tfmot"; importing this registers it, so that Keras can load one from a file
NativeModel      that copy, engine "native"
Quantized        wrapper: one layer that trains with rounding, in a model of one's own
LayerReport      how one layer is quantized, and why
post_training    int8 without training: clipped ranges, equalized channels, adapted rounding, corrected biases
round_adaptively rounds each weight up or down so that the outputs of its layer stay
equalize         brings channels of layers in a row to the same range
RANGES           how ranges are chosen from data, by name
OBSERVERS        how ranges follow training, by name
SCHEMES          what is rounded to how many bits, by name
WEIGHT_GRIDS     which integers weights become, by name; subclass WeightGrid for one's own
quantization_error  which layer int8 costs how much: a table and a figure
"""

from kdopt.quantization.diagnosis import QuantizationErrors, TensorError, quantization_error
from kdopt.quantization.equalize import Equalized, equalize
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.native.wrapper import Quantized
from kdopt.quantization.observers import OBSERVERS, Observer
from kdopt.quantization.post_training import post_training
from kdopt.quantization.quantize import ENGINES, quantize_aware
from kdopt.quantization.ranges import RANGES, RangeMethod
from kdopt.quantization.report import LayerReport
from kdopt.quantization.rounding import LayerRounding, round_adaptively
from kdopt.quantization.schemes import SCHEMES, LayerScheme
from kdopt.quantization.tfmot.facade import QuantizedModel
from kdopt.quantization.weight_grids import WEIGHT_GRIDS, WeightGrid

__all__ = [
    "ENGINES",
    "OBSERVERS",
    "RANGES",
    "SCHEMES",
    "WEIGHT_GRIDS",
    "Equalized",
    "LayerReport",
    "LayerRounding",
    "LayerScheme",
    "NativeModel",
    "Observer",
    "QuantizationErrors",
    "Quantized",
    "QuantizedModel",
    "RangeMethod",
    "TensorError",
    "WeightGrid",
    "equalize",
    "post_training",
    "quantization_error",
    "quantize_aware",
    "round_adaptively",
]
