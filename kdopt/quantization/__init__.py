"""Quantization: training with the rounding of the int8 file.

quantize_aware   Keras 3 model -> a copy that trains with int8 rounding
QuantizedModel   that copy, engine "tfmot"; importing this registers it, so that Keras can load one from a file
NativeModel      that copy, engine "native"
LayerReport      how one layer is quantized, and why
quantization_error  which layer int8 costs how much: a table and a figure
"""

from kdopt.quantization.diagnosis import QuantizationErrors, TensorError, quantization_error
from kdopt.quantization.native.model import NativeModel
from kdopt.quantization.quantize import ENGINES, quantize_aware
from kdopt.quantization.report import LayerReport
from kdopt.quantization.tfmot.facade import QuantizedModel

__all__ = [
    "ENGINES",
    "LayerReport",
    "NativeModel",
    "QuantizationErrors",
    "QuantizedModel",
    "TensorError",
    "quantization_error",
    "quantize_aware",
]
