"""Distillation losses: what the student should have in common with the teacher."""

from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets, soft_targets

__all__ = ["DISTILLATION_LOSSES", "DistillationLoss", "SoftTargets", "soft_targets"]
