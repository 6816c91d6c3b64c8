"""Everything together on real data; the only part of kdopt that knows `tflite_export`.

run    the demo: teacher, sparse distilled student, quantization-aware training, checked `.tflite` files, report
"""

from tflite_export.silence import silenced

with silenced():  # TensorFlow talks to stderr, past Python, while it is imported for the first time
    from kdopt.pipeline.demo import run

__all__ = ["run"]
