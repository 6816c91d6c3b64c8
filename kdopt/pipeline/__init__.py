"""Everything together on real data; the only part of kdopt that knows `tflite_export`.

run                 the demo: teacher, sparse distilled student, QAT, checked `.tflite` files, report
prune_and_distill   rounds of pruning and distilling a student, each sparser than the last
shrink_and_distill  the same with channels removed: each round's student is narrower
"""

from tflite_export.silence import silenced

with silenced():  # TensorFlow talks to stderr, past Python, while it is imported for the first time
    from kdopt.pipeline.demo import run
    from kdopt.pipeline.prune_and_distill import prune_and_distill
    from kdopt.pipeline.shrink_and_distill import shrink_and_distill

__all__ = ["prune_and_distill", "run", "shrink_and_distill"]
