"""From scores to what stays."""

import numpy as np

from kdopt.core.ordering import kth_smallest, place_of


def keep_highest(scores: np.ndarray, sizes: np.ndarray, lost: float, *, stay: int = 1) -> np.ndarray:
    """Lets go of the lowest scores until about `lost` weights are gone.

    The number of weights that go is the nearest to `lost` that whole units can make. Among equal scores the first
    go first. Scores that are infinite stay.

    Args:
        scores: Float array (n,), not NaN.
        sizes: Integer array (n,), weights of each unit, >= 1.
        lost: Float >= 0, number of weights.
        stay: Integer >= 0, units that stay in any case. Defaults to `1`.

    Returns: Bool array (n,), False for units that go.

    Raises: ValueError for a score that is NaN.

    Example:
    ```
    keep_highest(np.array([3., 1., 2., 4.]), np.ones(4, int), 2)      # [True, False, False, True]
    ```
    """
    _refuse_nan(scores)
    keep = np.ones(scores.size, bool)
    if sizes.strides == (0,) or (sizes == sizes[0]).all():
        _drop_lowest(scores, min(round(lost / int(sizes[0])), scores.size - stay), keep)
        return keep
    order = np.argsort(scores, kind="stable")
    gone = np.concatenate([[0], np.cumsum(sizes[order])])[: scores.size - stay + 1]
    keep[order[: int(np.argmin(np.abs(gone - lost)))]] = False
    return keep


def _drop_lowest(scores: np.ndarray, count: int, keep: np.ndarray) -> None:
    if count <= 0:
        return
    threshold = kth_smallest(scores, count)
    np.greater_equal(scores, threshold, out=keep)
    ties = scores == threshold
    first = place_of(ties, count - int(np.count_nonzero(~keep)))
    keep[:first] &= ~ties[:first]


def _refuse_nan(scores: np.ndarray) -> None:
    wrong = np.isnan(scores)
    if wrong.any():
        raise ValueError(
            f"{np.count_nonzero(wrong)} of {scores.size} pruning scores are NaN or infinite: training "
            "has diverged (lower the learning rate), or the criterion is wrong. No mask was changed."
        )
