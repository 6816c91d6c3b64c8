"""Distillation losses: what the student should have in common with the teacher.

On outputs:      SoftTargets, SoftTargetsMSE, DecoupledKD, LogitStandardization, DIST, Regression, ChannelWise,
                 AdversarialLogits
On features:     Hint, CosineFeature, FactorTransfer, VID, NST, OverhaulFeature, AdversarialFeature
On attention:    AttentionTransfer (activations), AttentionMapsKL (transformers)
On relations:    RelationalDistance, RelationalAngle, SimilarityPreserving, CorrelationCongruence, PKT, FSP, CRD
Bases:           DistillationLoss, FeatureLoss, ChannelFreeLoss, RelationLoss; DISTILLATION_LOSSES, the registry
"""

from kdopt.distillation.losses.adversarial import AdversarialFeature, AdversarialLogits
from kdopt.distillation.losses.attention import AttentionTransfer
from kdopt.distillation.losses.attention_maps import AttentionMapsKL
from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.channel_wise import ChannelWise
from kdopt.distillation.losses.contrastive import CRD
from kdopt.distillation.losses.decoupled import DecoupledKD
from kdopt.distillation.losses.factors import FactorTransfer
from kdopt.distillation.losses.feature import ChannelFreeLoss, FeatureLoss
from kdopt.distillation.losses.fsp import FSP
from kdopt.distillation.losses.hint import CosineFeature, Hint
from kdopt.distillation.losses.logits import SoftTargets, SoftTargetsMSE, soft_targets
from kdopt.distillation.losses.overhaul import OverhaulFeature
from kdopt.distillation.losses.regression import Regression
from kdopt.distillation.losses.relation import RelationLoss
from kdopt.distillation.losses.relational import RelationalAngle, RelationalDistance
from kdopt.distillation.losses.selectivity import NST
from kdopt.distillation.losses.similarity import PKT, CorrelationCongruence, SimilarityPreserving
from kdopt.distillation.losses.standardized import DIST, LogitStandardization
from kdopt.distillation.losses.variational import VID

__all__ = [
    "CRD",
    "DIST",
    "DISTILLATION_LOSSES",
    "FSP",
    "NST",
    "PKT",
    "VID",
    "AdversarialFeature",
    "AdversarialLogits",
    "AttentionMapsKL",
    "AttentionTransfer",
    "ChannelFreeLoss",
    "ChannelWise",
    "CorrelationCongruence",
    "CosineFeature",
    "DecoupledKD",
    "DistillationLoss",
    "FactorTransfer",
    "FeatureLoss",
    "Hint",
    "LogitStandardization",
    "OverhaulFeature",
    "Regression",
    "RelationLoss",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "SoftTargets",
    "SoftTargetsMSE",
    "soft_targets",
]
