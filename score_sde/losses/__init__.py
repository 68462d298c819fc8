"""Training losses: score matching in all its forms, and consistency of the probability-flow ODE's solutions.

A loss is a frozen dataclass of options. It is called as `loss(params, keys, x0, index, batch_size, train, y)` and
returns one value per example.
"""

from score_sde.losses.consistency import CONSISTENCY, ConsistencyLoss, has_target
from score_sde.losses.score_matching import (
  IMPLICIT,
  MAX_EXACT_DIMS,
  OBJECTIVES,
  WEIGHTINGS,
  ScoreMatching,
  denoising,
  draw_uniform,
  explicit,
  finite_difference,
  implicit,
  importance_times,
  lognormal_times,
  reduce,
  sliced,
  sliced_variance_reduced,
  uniform_times,
)

__all__ = [
  "CONSISTENCY",
  "IMPLICIT",
  "MAX_EXACT_DIMS",
  "OBJECTIVES",
  "WEIGHTINGS",
  "ConsistencyLoss",
  "ScoreMatching",
  "denoising",
  "draw_uniform",
  "explicit",
  "finite_difference",
  "has_target",
  "implicit",
  "importance_times",
  "lognormal_times",
  "reduce",
  "sliced",
  "sliced_variance_reduced",
  "uniform_times",
]
