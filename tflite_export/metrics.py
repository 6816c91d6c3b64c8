"""How far one array is from another. Pure functions."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Errors:
    """Distances of a candidate from a reference.

    Attributes:
        max_abs_error: max |c - r|, in the unit of the values.
        rmse: sqrt(mean((c - r)^2)), in the unit of the values.
        snr_db: 10 log10(sum(r^2) / sum((c - r)^2)); inf if equal, -inf if only the reference is 0.
        cosine: sum(c r) / sqrt(sum(c^2) sum(r^2)); 1 if both are 0, 0 if one is.
        peak: max |r|.
    """

    max_abs_error: float
    rmse: float
    snr_db: float
    cosine: float
    peak: float


def errors(reference: np.ndarray, candidate: np.ndarray) -> Errors:
    """Distances of `candidate` from `reference`, over all elements, computed in float64.

    Args:
        reference: Array, not empty, finite.
        candidate: Array of the same shape; a value that is not finite makes the errors infinite.

    Raises: ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"Shapes differ: reference {reference.shape}, candidate {candidate.shape}.")
    r, c = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    peak = float(np.abs(r).max())
    if not np.isfinite(c).all():
        return Errors(np.inf, np.inf, -np.inf, 0.0, peak)
    difference = c - r
    noise, signal, power = float(difference @ difference), float(r @ r), float(c @ c)
    if noise == 0:
        return Errors(0.0, 0.0, np.inf, 1.0, peak)
    return Errors(
        max_abs_error=float(np.abs(difference).max()),
        rmse=float(np.sqrt(noise / len(r))),
        snr_db=float(10 * np.log10(signal / noise)) if signal else -np.inf,
        cosine=float((r @ c) / np.sqrt(signal * power)) if signal and power else 0.0,
        peak=peak,
    )


def top_agreement(reference: np.ndarray, candidate: np.ndarray, k: int) -> float:
    """Fraction in [0, 1] of rows whose largest value in `reference` is among the `k` largest of `candidate`.

    Args:
        reference: Array (n, classes).
        candidate: Array (n, classes). NaN counts as disagreement; of equal values the first is the larger one.
        k: Integer in [1, classes].
    """
    first = reference.argmax(axis=-1)[:, None]
    largest = np.argsort(-candidate.astype(np.float64), axis=-1, kind="stable")[:, :k]
    return float(np.mean((largest == first).any(axis=-1) & ~np.isnan(candidate).any(axis=-1)))
