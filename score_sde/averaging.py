"""Averages of the parameters with a width that can be chosen after training. Karras et al. 2024, Section 3.

An average of the parameters theta(1), ..., theta(t) of a run has a profile, the weight of each. A power function

    p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1),    0 <= tau <= t

keeps its form while the run grows, and forgets the initial parameters. Its width is its standard deviation in units of
the run's length, (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2): about 0.05 to 0.15 for image models. Averages
of two widths, stored from time to time, are enough to build one of any other width: the combination whose profile is
nearest.

Example:
  >>> from score_sde.averaging import exponent, weights
  >>> stored = [(step, exponent(width)) for step in range(100, 1001, 100) for width in (0.05, 0.1)]
  >>> bool(abs(sum(weights(stored, 1000, exponent(0.075))) - 1) < 1e-3)
  True
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.errors import InvalidArgument

# The width of gamma = 0, where all parameters of a run count alike.
WIDEST = 12**-0.5


def exponent(width: float) -> float:
  """Returns gamma of the power function of this `width`. Karras et al. 2024, eq. (123) and Algorithm 2.

  Raises:
    InvalidArgument: for a width outside (0, 0.2886].
  """
  if not 0 < width <= WIDEST + 1e-9:
    raise InvalidArgument(f"width={width} must lie in (0, {WIDEST:.4g}], in units of the run's length.", "width")
  return float(max(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real))


def updated(average: Any, params: Any, step: Array | int, gamma: float) -> Any:
  """Returns the average after training step `step`, from 1, which gave `params`. Both are trees of arrays.

  average <- b average + (1 - b) params with b = (1 - 1/step)^(gamma + 1). Karras et al. 2024, eq. (7).
  """
  share = -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))  # 1 - b, also of a million steps
  return jax.tree.map(lambda new, old: old + share * (new - old), params, average)


def weights(stored: Sequence[tuple[int, float]], step: int, gamma: float) -> np.ndarray:
  """Returns the weights (N,) of `stored` averages, pairs (step, gamma), that give the average of `gamma` at `step`.

  They minimize the squared difference of the profiles (Karras et al. 2024, Algorithm 3) among those that sum to one:
  what all parameters of the run have in common is then kept exactly.
  """
  among, wanted = _products(stored, step, gamma)
  solve = lambda b: np.linalg.lstsq(among, b, rcond=None)[0]
  found, equal = solve(wanted), solve(np.ones(len(wanted)))
  return found + (1 - found.sum()) / equal.sum() * equal


def distance(stored: Sequence[tuple[int, float]], step: int, gamma: float) -> float:
  """Returns the norm of the difference between the profile wanted and the nearest combination, relative to its norm."""
  (among, wanted), found = _products(stored, step, gamma), weights(stored, step, gamma)
  whole = _product(float(step), gamma, float(step), gamma)
  return float(np.sqrt(max(0.0, (whole - 2 * found @ wanted + found @ among @ found) / whole)))


def _products(stored: Sequence[tuple[int, float]], step: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns the products of the profiles of `stored` with each other (N, N), and with the one wanted (N,)."""
  times, gammas = (np.asarray(values, np.float64) for values in zip(*stored, strict=True))
  among = _product(times[:, None], gammas[:, None], times[None], gammas[None])
  return among, _product(times, gammas, float(step), gamma)


def _product(t: Any, gamma: Any, other_t: Any, other_gamma: Any) -> Any:
  """Returns the integral of the product of two profiles."""
  first = t <= other_t
  ratio = np.where(first, t / other_t, other_t / t)
  of_later = np.where(first, other_gamma, gamma)
  scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
  return scale * ratio**of_later / np.maximum(t, other_t)
