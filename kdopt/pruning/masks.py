"""From scores to masks."""

import numpy as np

from kdopt.core.validation import check_fraction


def lowest(scores: np.ndarray, sparsity: float) -> np.ndarray:
    """Mask that leaves out the lowest scores.

        number of zeros = round(sparsity * scores.size), at most scores.size - 1

    Exactly that many: among equal scores the first in memory order go.

    Args:
        scores: Finite float array of any shape.
        sparsity: Float in [0, 1).

    Returns: Bool array of the same shape, False where pruned.

    Raises: ValueError for a score that is not finite.

    Example:
    ```
    lowest(np.array([3., 1., 2., 4.]), 0.5)      # [True, False, False, True]
    ```
    """
    check_fraction("sparsity", sparsity)
    if not np.all(np.isfinite(scores)):
        raise ValueError(
            f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} pruning scores are NaN or infinite: training "
            "has diverged (lower the learning rate), or the criterion is wrong. No mask was changed."
        )
    flat = scores.reshape(-1)
    zeros = min(round(sparsity * flat.size), flat.size - 1)
    mask = np.ones(flat.size, bool)
    if zeros > 0:
        threshold = np.partition(flat, zeros - 1)[zeros - 1]
        mask[flat < threshold] = False
        ties = np.flatnonzero(flat == threshold)
        mask[ties[: zeros - np.count_nonzero(~mask)]] = False
    return mask.reshape(scores.shape)


def make_masks(scores: list[np.ndarray], sparsity: float, scope: str) -> list[np.ndarray]:
    """Masks for several kernels.

    Args:
        scores: One array per kernel.
        sparsity: Float in [0, 1).
        scope: `"layer"`: each kernel gets this sparsity. `"global"`: all kernels together do, so
            layers with low scores lose more.

    Returns: Bool arrays of the same shapes.
    """
    if scope == "layer":
        return [lowest(score, sparsity) for score in scores]
    together = lowest(np.concatenate([score.reshape(-1) for score in scores]), sparsity)
    ends = np.cumsum([score.size for score in scores])
    parts = np.split(together, ends[:-1])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]
