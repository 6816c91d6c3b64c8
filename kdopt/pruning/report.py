"""What a pruning did to each layer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerPruning:
    """One kernel, or a layer that was left out.

    Attributes:
        layer: Name, as `GradualPruning` logs it.
        asked: Float in [0, 1], sparsity of the kernel that was asked for; `None` where the allocation decides only
            with the scores, and for a layer that was left out.
        reached: Float in [0, 1], fraction of zeros now; `None` for a layer that was left out.
        weights: Integer, weights of the kernel; 0 for a layer that was left out.
        zeros: Integer, those that are zero.
        skipped: String, why it was left out; empty if it was not.
    """

    layer: str
    asked: float | None
    reached: float | None
    weights: int
    zeros: int
    skipped: str = ""


@dataclass(frozen=True)
class PruningReport:
    """What `prune` did.

    Attributes:
        asked: Float in [0, 1), sparsity of all kernels together that was asked for; `None` with a threshold.
        reached: Float in [0, 1], what they have.
        parameters: Integer, weights of the whole model.
        nonzero: Integer, those that are not zero.
        layers: One `LayerPruning` a kernel, then one a layer that was left out.
    """

    asked: float | None
    reached: float
    parameters: int
    nonzero: int
    layers: tuple[LayerPruning, ...]

    def __str__(self) -> str:
        width = max(len(layer.layer) for layer in self.layers)
        lines = [f"{'kernel':{width}}  {'weights':>11}  sparsity"]
        for layer in self.layers:
            told = layer.skipped and f"left out: {layer.skipped}"
            numbers = "" if layer.reached is None else f"{layer.weights:>11,}  {layer.reached:8.4f}"
            lines.append(f"{layer.layer:{width}}  {numbers}{told}".rstrip())
        asked = "" if self.asked is None else f" (asked: {self.asked:.4f})"
        lines.append(
            f"sparsity of the kernels {self.reached:.4f}{asked}; {self.nonzero:,} of {self.parameters:,} "
            "weights are not zero"
        )
        return "\n".join(lines)
