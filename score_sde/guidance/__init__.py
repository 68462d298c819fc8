"""Conditional generation without new training: turns any score into the score of a posterior.

    grad log p_t(x | y) = score(x, t) + grad log p_t(y | x)

`posterior` has the methods for measurements y = A x + noise, `operators` the linear and `nonlinear` the other operators
A, and `classes` the guidance to a class, or by a weaker model. The methods of `posterior` and `classes` return a score.
`constraints` change the state of a solver instead.
"""

from score_sde.guidance.classes import Autoguidance, ByClassifier, Classifier, ClassifierFree
from score_sde.guidance.constraints import DDRM, Constraint, Projection, put_in
from score_sde.guidance.nonlinear import PhaseRetrieval, Quantized
from score_sde.guidance.operators import LinearOperator, Measurement, check_operator, inpaint, measure
from score_sde.guidance.posterior import DPS, METHODS, TMPD, Analytic, PiGDM, condition_on

__all__ = [
  "DDRM",
  "DPS",
  "METHODS",
  "TMPD",
  "Analytic",
  "Autoguidance",
  "ByClassifier",
  "Classifier",
  "ClassifierFree",
  "Constraint",
  "LinearOperator",
  "Measurement",
  "PhaseRetrieval",
  "PiGDM",
  "Projection",
  "Quantized",
  "check_operator",
  "condition_on",
  "inpaint",
  "measure",
  "put_in",
]
