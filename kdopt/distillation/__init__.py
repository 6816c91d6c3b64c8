"""Distillation: a small student learns from a trained teacher.

make_student         a narrower, shallower net of the teacher's architecture
agreement            how far a student follows its teacher: answers, probabilities, calibration, under corruption
recommend            which losses fit a teacher and a student, and why
Distiller            a `keras.Model` that trains `student` against `teacher`
cache_teacher        asks a teacher once about all data; the `TeacherCache` then teaches in its place
MeanTeacher          the student's own averaged weights as its teacher
MutualLearning       students that teach each other
distill_chain        teacher -> assistant -> student; born_again: the same net, generation by generation
DeepestExit          one output of the student as the teacher of the others
losses               every loss, on outputs, features, attention and relations; `DISTILLATION_LOSSES` by name
SoftTargets          Hinton's loss on temperature-softened class probabilities, the default
DistillationLoss     base class of losses on outputs; `losses.FeatureLoss` of those on inner layers
"""

from kdopt.distillation import losses
from kdopt.distillation.cache.cache import TeacherCache
from kdopt.distillation.cache.making import cache_teacher
from kdopt.distillation.chain import born_again, distill_chain
from kdopt.distillation.comparing.agreement import Agreement, agreement
from kdopt.distillation.distiller import Distiller
from kdopt.distillation.losses.base import DISTILLATION_LOSSES, DistillationLoss
from kdopt.distillation.losses.logits import SoftTargets
from kdopt.distillation.mutual import MutualLearning
from kdopt.distillation.recommend import Recommendation, recommend
from kdopt.distillation.selftaught import DeepestExit, MeanTeacher
from kdopt.distillation.student import make_student

__all__ = [
    "DISTILLATION_LOSSES",
    "Agreement",
    "DeepestExit",
    "DistillationLoss",
    "Distiller",
    "MeanTeacher",
    "MutualLearning",
    "Recommendation",
    "SoftTargets",
    "TeacherCache",
    "agreement",
    "born_again",
    "cache_teacher",
    "distill_chain",
    "losses",
    "make_student",
    "recommend",
]
