"""Conditional generation without training anew: any score becomes that of a posterior.

    grad log p_t(x | y) = score(x, t) + grad log p_t(y | x)

`posterior` has the methods for measurements y = A x + noise, `operators` what can be measured, `classes` guidance to a
class. What they return is a score again. `constraints` act on the state of a sampler instead.
"""

from score_sde.guidance.classes import Classifier, by_classifier, classifier_free
from score_sde.guidance.constraints import ddrm, projection, put_in
from score_sde.guidance.operators import LinearOperator, Measurement, check_operator, measure
from score_sde.guidance.posterior import METHODS, analytic, condition_on, dps, pigdm, tmpd

__all__ = [
  "METHODS",
  "Classifier",
  "LinearOperator",
  "Measurement",
  "analytic",
  "by_classifier",
  "check_operator",
  "classifier_free",
  "condition_on",
  "ddrm",
  "dps",
  "measure",
  "pigdm",
  "projection",
  "put_in",
  "tmpd",
]
