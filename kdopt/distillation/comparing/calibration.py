"""Class probabilities compared: with each other, and with how often they are right."""

from dataclasses import dataclass

import numpy as np

from kdopt.distillation.activations import SOFTMAX


@dataclass(frozen=True)
class Reliability:
    """How often a net is right where it is how sure, in bins of equal width.

    Attributes:
        edges: bins + 1 floats from 0 to 1; bin m holds the confidences in (edges[m], edges[m + 1]].
        counts: Integers, answers in each bin.
        confidence: Floats in [0, 1], the mean of the largest probability in each bin; 0 in an empty one.
        accuracy: Floats in [0, 1], the share of right answers in each bin; 0 in an empty one.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    @property
    def ece(self) -> float:
        """The expected calibration error, float in [0, 1].

            sum_m |B_m| / n * |acc(B_m) - conf(B_m)|

        Reference: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
        """
        shares = np.array(self.counts) / sum(self.counts)
        return float(np.sum(shares * np.abs(np.subtract(self.accuracy, self.confidence))))


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> Reliability:
    """Sorts answers into bins of equal width by their confidence.

    Args:
        confidence: Float array (n,), the probability of the chosen class.
        correct: Bool array (n,), whether that is the right one.
        bins: Integer >= 1. Defaults to `15`, as in Guo et al. 2017.

    Example:
    ```
    reliability(np.array([0.9, 0.8]), np.array([True, False]), bins=2).ece      # 0.35
    ```
    """
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(confidence, edges[1:-1], right=True)
    counts = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, np.asarray(values, "float64"), bins) for values in (confidence, correct)]
    means = [tuple((total / np.maximum(counts, 1)).tolist()) for total in sums]
    return Reliability(tuple(edges.tolist()), tuple(counts.tolist()), *means)


def log_probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    """Logarithms of class probabilities, one row an answer.

        softmax:  z_c - log sum_k exp(z_k)
        sigmoid:  each unit answers for itself: (log(1 - p), log p),   log p = -log(1 + exp(-z))

    Args:
        logits: Float array (samples, ..., units).
        activation: `"softmax"` or `"sigmoid"`.

    Returns: float64, (answers, classes): a row for each position; of sigmoid, for each position and unit, two classes.
    """
    z = logits.astype("float64")
    if activation != SOFTMAX:
        z = np.stack([np.zeros_like(z), z], axis=-1)
    z = z.reshape(-1, z.shape[-1])
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def divergence(teacher: np.ndarray, student: np.ndarray) -> float:
    """Mean over the answers of the Kullback-Leibler divergence, in nats, >= 0.

        sum_c p_c * (log p_c - log q_c),   p of the teacher, q of the student

    Args:
        teacher, student: Float arrays (answers, classes), log-probabilities.
    """
    return float(np.mean(np.sum(np.exp(teacher) * (teacher - student), axis=-1)))
