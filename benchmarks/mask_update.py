"""What one change of the masks costs on a model of ten million weights.

    python benchmarks/mask_update.py

Ten kernels of a million weights. Seconds of `PruningRun.update_if_due` (scores, selection, masks on the device, zeros),
the fastest of five, and the largest extra memory NumPy held meanwhile, as a multiple of the largest kernel; 2.5 of it
are the new masks of all kernels (a byte a weight). Goals for criteria that need no data: below 1 s, and little more.
"""

import os
import time
import tracemalloc

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras
import numpy as np

from kdopt.pruning import GradualPruning
from kdopt.pruning.run import PruningRun
from kdopt.schedules import Linear

CASES = (
    ("l1", "unstructured", "uniform"),
    ("l2", "unstructured", "uniform"),
    ("l1", "unstructured", "global"),
    ("l1", "unstructured", "erdos_renyi"),
    ("l2", "unstructured", "lamp"),
    ("lamp", "unstructured", "global"),
    ("random", "unstructured", "uniform"),
    ("l2", "channel", "uniform"),
    ("fpgm", "channel", "uniform"),
    ("l1", "n_m", "uniform"),
    ("l1", "block", "uniform"),
)


def model():
    """Ten dense layers of a million weights."""
    net = keras.Sequential([keras.Input((1000,)), *(keras.layers.Dense(1000) for _ in range(10))])
    net.compile("sgd", "mse")
    return net


def measure(net, criterion, pattern, allocation):
    callback = GradualPruning(
        Linear(0.5, end_step=10**6, frequency=1), criterion, pattern=pattern, allocation=allocation
    )
    callback.set_model(net)
    callback.set_params({"steps": None})
    run = PruningRun(net, callback._make_rule(), begin=0, backup=None, run=None)
    seconds = []
    for step in range(1, 6):
        net.optimizer.iterations.assign(step * 100_000)
        start = time.perf_counter()
        run.update_if_due()
        seconds.append(time.perf_counter() - start)
    tracemalloc.start()
    net.optimizer.iterations.assign(600_000)
    run.update_if_due()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    run.release()
    return min(seconds), peak / 4e6


def main():
    print("| criterion, pattern, allocation | seconds | extra memory / largest kernel |")
    print("|---|---|---|")
    for case in CASES:
        net = model()
        seconds, memory = measure(net, *case)
        print(f"| {', '.join(case)} | {seconds:.2f} | {memory:.1f} |", flush=True)
        assert np.isfinite(seconds)


if __name__ == "__main__":
    main()
