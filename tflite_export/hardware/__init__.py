"""Which delegate or accelerator runs which operation of a file, and why the others stay on the CPU.

Above tflite, sources, runtime and conversion, beside proof. XNNPACK is measured; the others are tables with sources.
"""
