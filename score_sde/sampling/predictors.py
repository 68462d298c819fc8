"""Predictors: one step of the reverse-time SDE (or the probability-flow ODE), from x at `start` to x at `stop`.

    predictor(keys, x, t, start, stop) -> (x, x_mean)

x is (B, ...), with one key per example and times (B,). x_mean is the new x before the noise of the step is added. The
arguments of each factory are the solver, from which it reads options (`PredictorCorrector`), the SDE and the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand, normal
from score_sde.sde import SDE, VP, Reverse, Score, apply_diffusion, covariance_pull, linear

if TYPE_CHECKING:
  from score_sde.sampling.predictor_corrector import PredictorCorrector

Predict = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


def euler_maruyama(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """Returns the Euler-Maruyama predictor. Song et al. 2021, eq. (6) and Appendix D.

  x_mean = x + f̄(x, t) (stop - start),    x = x_mean + G sqrt(start - stop) z,    f̄ the reverse drift
  """
  reverse = Reverse(sde, score, solver.probability_flow)

  def step(keys: Keys, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Batch, Batch]:
    dt = expand(stop - start, x)  # negative: from noise to data
    x_mean = x + reverse.drift(x, t) * dt
    return x_mean + apply_diffusion(reverse.diffusion(x, t), jnp.sqrt(-dt) * normal(keys, x)), x_mean

  return step


def reverse_diffusion(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """Returns the reverse diffusion predictor. Song et al. 2021, eq. (46) and Appendix E.

      x_mean = x - f + G Gᵀ score,    x = x_mean + G z,    x_start = x_stop + f + G z the forward chain

  If G depends on x, div(G Gᵀ) is added to G Gᵀ score, see `Reverse`. With `probability_flow`, both are halved and no
  noise is added.
  """

  def forward(x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    if solver.tabulated or not sde.is_linear:
      return sde.discretize(x, t, start, stop)
    ratio, std = linear(sde, "An exact transition").transition(stop, start)
    return expand(ratio - 1, x) * x, std

  def step(keys: Keys, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Batch, Batch]:
    f, g = forward(x, t, start, stop)
    pull = covariance_pull(sde, score, x, t, g, start - stop)
    if solver.probability_flow:
      x = x - f + 0.5 * pull
      return x, x
    x_mean = x - f + pull
    return x_mean + apply_diffusion(g, normal(keys, x)), x_mean

  return step


def ancestral_sampling(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """Returns the ancestral predictor. It draws x_stop | x_start from the Gaussian posterior, x_0 by Tweedie's formula.

      x_mean = (x + v score) / r,    x = x_mean + s z,    x_start | x_stop ~ N(r x_stop, v)

  s² is the posterior variance v (sigma² - v) / (r sigma)² = v sigma_stop² / sigma², or v if `posterior_variance` is
  False (the two choices of Ho et al. 2020, Section 3.2). The default is v for VP, as published, and the posterior
  variance for other SDEs. Song et al. 2021, Appendix F.
  """
  sde = linear(sde, "predictor='ancestral_sampling'")
  posterior = sde.posterior_variance if solver.posterior_variance is None else solver.posterior_variance
  n = solver.table_size
  # The chain's own sigmas. Those of VE are sigma(start).
  levels = sde.levels(n)[1] if posterior and solver.tabulated and isinstance(sde, VP) else None

  def share(std: Array, ratio: Array, start: Time, stop: Time) -> Array:
    """Returns s / sqrt(v)."""
    if not solver.tabulated:
      return jnp.where(stop > 0, sde.sigma(stop), 0) / sde.sigma(start)
    if levels is None:
      sigma = sde.sigma(start)
    else:
      sigma = jnp.asarray(levels, std.dtype)[jnp.round(start / sde.T * (n - 1)).astype(jnp.int32)]
    return jnp.sqrt(jnp.maximum(sigma**2 - std**2, 0.0)) / (ratio * sigma)

  def step(keys: Keys, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Batch, Batch]:
    ratio, std = sde.chain(t, start, stop) if solver.tabulated else sde.transition(stop, start)
    x_mean = (x + expand(std, x) ** 2 * score(x, t)) / expand(ratio, x)
    if posterior:
      std = std * share(std, ratio, start, stop)
    return x_mean + expand(std, x) * normal(keys, x), x_mean

  return step


def none(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """Returns a predictor that does nothing. Then only the corrector moves x."""
  return lambda keys, x, t, start, stop: (x, x)


PREDICTORS = {
  "euler_maruyama": euler_maruyama,
  "reverse_diffusion": reverse_diffusion,
  "ancestral_sampling": ancestral_sampling,
  "none": none,
}
