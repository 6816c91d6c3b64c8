"""How far one output of a file is from its source's, and whether that is near enough."""

from dataclasses import dataclass

import numpy as np

from tflite_export import metrics

MAX_OVER_RMSE = 20
_MAX_STEP = 4 / 255  # of the peak: outputs of both signs, and calibration data that reached twice as far


@dataclass(frozen=True)
class Accepted:
    """What error is accepted.

    Attributes:
        tolerance: Of the root mean square error, as a fraction of the source's largest |output|.
        step: Of the output's grid, in its unit; 0 if it has none that excuses errors.
        noise: Root mean square difference of the file on XNNPACK and on other kernels, in the output's unit.
    """

    tolerance: float
    step: float = 0.0
    noise: float = 0.0

    def limit(self, peak: float) -> float:
        """Largest root mean square error for outputs up to `peak`.

        A file with a grid far wider than its source's outputs must not loosen its own limit.
        """
        return max(self.tolerance * peak + min(self.step, _MAX_STEP * peak), self.noise)


@dataclass(frozen=True)
class OutputCheck:
    """Distances of one output, as in `Verification`.

    Attributes:
        name: In the source.
        max_abs_error, rmse, snr_db, cosine, top1_agreement, top5_agreement: See `Verification`.
        max_steps: max_abs_error in steps of the output's grid; None for float outputs.
        kernel_rmse: Root mean square difference of the file on XNNPACK and on the runtime's other kernels, in the
            output's unit; None if it was not needed.
        rmse_limit, max_limit: Of rmse and max_abs_error, in the output's unit.
        passed: Whether both are kept; of integers, whether `differing` is at most the tolerance.
        differing: Share of integers (classes, labels) that differ, in [0, 1]; of classes by rank the share of samples
            whose first class does. None for other outputs.
        ranks: Of classes by rank, how many ranks there are; None for other outputs.
    """

    name: str
    max_abs_error: float
    rmse: float
    snr_db: float
    cosine: float
    top1_agreement: float | None
    top5_agreement: float | None
    max_steps: float | None
    kernel_rmse: float | None
    rmse_limit: float
    max_limit: float
    passed: bool
    differing: float | None = None
    ranks: int | None = None

    @property
    def excess(self) -> float:
        """How much of its limit it uses: above 1 it fails."""
        if self.differing is not None:
            return 0.0 if self.passed else 1.0 + self.differing
        if self.max_abs_error == 0:
            return 0.0
        if self.rmse_limit == 0:
            return float("inf")
        return max(self.rmse / self.rmse_limit, self.max_abs_error / self.max_limit)

    def why(self, tolerance: float) -> str:
        """The numbers that decided."""
        if self.differing is not None:
            what = "integers" if self.ranks is None else f"first classes (of {self.ranks})"
            return f"{self.differing:.2%} of the {what} differ, {'<=' if self.passed else '>'} {tolerance:.2%}"
        sides = (("rmse", self.rmse, self.rmse_limit), ("max |error|", self.max_abs_error, self.max_limit))
        said = [f"{name} {value:.3g} {'<=' if value <= limit else '>'} {limit:.3g}" for name, value, limit in sides]
        kernels = (
            ", kernels of one file differ as much" if self.kernel_rmse and self.kernel_rmse >= self.rmse_limit else ""
        )
        return f"{', '.join(said)} (tolerance {tolerance:g} of the largest |output|{kernels})"


def check_output(
    name: str,
    reference: np.ndarray,
    candidate: np.ndarray,
    accepted: Accepted,
    *,
    step: float = 0.0,
    classifier: bool = False,
    measured: bool = False,
    ranked: bool = False,
) -> OutputCheck:
    """Compares one output.

    Args:
        name: Of the output in the source.
        reference: What the source gives, (n, ...).
        candidate: What the file gives, of the same shape.
        accepted: Which error is accepted.
        step: Of the output's grid, in its unit; 0 for none.
        classifier: Whether it is (n, classes), of which the largest matters.
        measured: Whether `accepted.noise` was measured.
        ranked: Whether it is (n, k) of classes by rank, of which only the first must agree: those behind it may be as
            likely as each other.

    Raises: ValueError for other shapes.
    """
    if reference.shape != candidate.shape:
        raise ValueError(f"Output {name!r}: the source gives shape {reference.shape}, the file {candidate.shape}.")
    distance = metrics.errors(reference, candidate)
    whole = reference.dtype.kind in "iub"
    first = (reference[..., :1], candidate[..., :1]) if ranked else (reference, candidate)
    differing = float(np.mean(first[0] != first[1])) if whole else None
    limit, many = accepted.limit(distance.peak), classifier and reference.shape[1] > 5
    return OutputCheck(
        name=name,
        max_abs_error=distance.max_abs_error,
        rmse=distance.rmse,
        snr_db=distance.snr_db,
        cosine=distance.cosine,
        top1_agreement=metrics.top_agreement(reference, candidate, 1) if classifier else None,
        top5_agreement=metrics.top_agreement(reference, candidate, 5) if many else None,
        max_steps=distance.max_abs_error / step if step else None,
        kernel_rmse=accepted.noise if measured else None,
        rmse_limit=limit,
        max_limit=MAX_OVER_RMSE * limit,
        passed=differing <= accepted.tolerance
        if differing is not None
        else distance.rmse <= limit and distance.max_abs_error <= MAX_OVER_RMSE * limit,
        differing=differing,
        ranks=reference.shape[-1] if ranked else None,
    )
