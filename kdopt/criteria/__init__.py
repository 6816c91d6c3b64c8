"""Which weights matter."""

from kdopt.criteria.activation import ActivationMean, APoZ, GradientNorm, Wanda
from kdopt.criteria.base import CRITERIA, Criterion
from kdopt.criteria.channel import FPGM, BNScale
from kdopt.criteria.data import DataCriterion
from kdopt.criteria.gates import Gates
from kdopt.criteria.gradient import OBD, Fisher, GradientCriterion, Movement, Taylor
from kdopt.criteria.output import OutputSensitivity
from kdopt.criteria.weight import L1, L2, LAMP, Random

__all__ = [
    "CRITERIA",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "OBD",
    "APoZ",
    "ActivationMean",
    "BNScale",
    "Criterion",
    "DataCriterion",
    "Fisher",
    "Gates",
    "GradientCriterion",
    "GradientNorm",
    "Movement",
    "OutputSensitivity",
    "Random",
    "Taylor",
    "Wanda",
]
