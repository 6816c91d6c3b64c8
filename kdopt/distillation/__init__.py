"""Distillation: a small student learns from a trained teacher.

Distiller            a `keras.Model` that trains `student` against `teacher`
SoftTargets          Hinton's loss on temperature-softened class probabilities
DistillationLoss     base class of the losses; subclass it for your own
DISTILLATION_LOSSES  registry of the losses by name
"""

from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets

__all__ = ["DISTILLATION_LOSSES", "DistillationLoss", "Distiller", "SoftTargets"]
