"""Weights that become zero while the model trains."""

from kdopt.pruning.callbacks import GradualPruning

__all__ = ["GradualPruning"]
