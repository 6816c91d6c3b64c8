"""The penalties once more: plain NumPy in float64, with loops over explicit index sets for the groups."""

import functools
import itertools

import numpy as np

DENSE, CONV, DEPTHWISE, TRANSPOSED = (6, 5), (3, 2, 4, 5), (3, 3, 4, 2), (3, 2, 5, 4)
QUERY, PROJECTION = (4, 2, 5), (2, 6, 3)
LAYOUT = {DENSE: "standard", CONV: "standard", DEPTHWISE: "depthwise", TRANSPOSED: "transposed"}
LAYOUT.update({QUERY: (-3,), PROJECTION: (-3, -2)})


def coordinates(shape, layout):
    """For each weight: (position, input, output), by its index in the kernel."""
    for index in np.ndindex(shape):
        if isinstance(layout, tuple):
            ins = [axis % len(shape) for axis in layout]
            yield index, ((), tuple(index[a] for a in ins), tuple(x for a, x in enumerate(index) if a not in ins))
            continue
        *position, first, second = index
        if layout == "standard":
            yield index, (tuple(position), first, second)
        elif layout == "transposed":
            yield index, (tuple(position), second, first)
        else:
            yield index, (tuple(position), first, (first, second))


@functools.cache
def index_sets(shape, groups, layout="standard", block_shape=None):
    """List of lists of indices into a kernel of `shape`."""
    if len(shape) == 1:
        shape_ = (1, *shape)
        return [[i[1:] for i in group] for group in index_sets(shape_, groups, layout, block_shape)]
    keys = {
        "out_channels": lambda p, i, o: o,
        "columns": lambda p, i, o: o,
        "in_channels": lambda p, i, o: i,
        "rows": lambda p, i, o: (p,) if layout == "depthwise" else (p, i),
    }
    everything = list(coordinates(shape, layout))
    if groups == "blocks":
        rows = sorted({(c[0],) if layout == "depthwise" else (c[0], c[1]) for _, c in everything})
        columns = sorted({c[2] for _, c in everything})

        def key(p, i, o):
            row = rows.index((p,) if layout == "depthwise" else (p, i))
            return row // block_shape[0], columns.index(o) // block_shape[1]
    else:
        key = keys[groups]
    ordered = sorted(everything, key=lambda item: key(*item[1]))
    return [[index for index, _ in group] for _, group in itertools.groupby(ordered, lambda item: key(*item[1]))]


def group_vectors(w, *args):
    return [np.array([w[index] for index in group]) for group in index_sets(w.shape, *args)]


def l1(w):
    return np.abs(w).sum()


def l1l2(w, ratio=0.5):
    return ratio * np.abs(w).sum() + (1 - ratio) * 0.5 * (w * w).sum()


def hoyer_square(w):
    return np.abs(w).sum() ** 2 / (w**2).sum()


def transformed_l1(w, a=1.0):
    return sum((a + 1) * abs(x) / (a + abs(x)) for x in w.flat)


def group_lasso(w, *args, scale=True):
    return sum((len(g) ** 0.5 if scale else 1) * np.linalg.norm(g) for g in group_vectors(w, *args))


def ordered_l1(w, *args, slope=1.0, fraction=0.5):
    norms = sorted((np.linalg.norm(g) for g in group_vectors(w, *args)), reverse=True)
    p = max(round(fraction * len(norms)), 1)
    return sum((1 + slope * max(p - i, 0) / p) * norm for i, norm in enumerate(norms))


def finite_difference(function, w, step=1e-6):
    slope = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        up, down = w.copy(), w.copy()
        up[index] += step
        down[index] -= step
        slope[index] = (function(up) - function(down)) / (2 * step)
    return slope


def pool_adjacent_violators(values):
    """Non-increasing least-squares fit: the textbook stack."""
    blocks = []
    for value in values:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    return np.concatenate([[value] * count for value, count in blocks])
