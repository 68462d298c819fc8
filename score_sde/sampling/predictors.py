"""Predictors: one step of the reverse-time SDE (or the probability-flow ODE), from x at `start` to x at `stop`.

    predictor(keys, x, t, start, stop) -> (x, x_mean)

x is (B, ...), with one key per example and times (B,); x_mean is x before the noise of the step was added. Each factory
takes the solver whose options it reads (`PredictorCorrector`), the SDE and the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp

from score_sde.batch import Array, expand, normal
from score_sde.sde import SDE, Reverse, Score, apply_covariance, apply_diffusion, linear

if TYPE_CHECKING:
  from score_sde.sampling.predictor_corrector import PredictorCorrector

Predict = Callable[[Array, Array, Array, Array, Array], tuple[Array, Array]]


def euler_maruyama(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """x_mean = x + f̄(x, t) (stop - start),  x = x_mean + G sqrt(start - stop) z, with f̄ the reverse drift.

  Song et al. 2021, eq. (6) and Appendix D.
  """
  reverse = Reverse(sde, score, solver.probability_flow)

  def step(keys: Array, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    dt = expand(stop - start, x)  # negative: from noise to data
    x_mean = x + reverse.drift(x, t) * dt
    return x_mean + apply_diffusion(reverse.diffusion(x, t), jnp.sqrt(-dt) * normal(keys, x)), x_mean

  return step


def reverse_diffusion(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """x_mean = x - f + G Gᵀ score,  x = x_mean + G z, with x_start = x_stop + f + G z the forward chain.

  Song et al. 2021, eq. (46) and Appendix E. Half of G Gᵀ score and no noise along the probability flow.
  """

  def forward(x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    if solver.tabulated or not sde.is_linear:
      return sde.discretize(x, t, start, stop)
    ratio, std = linear(sde, "An exact transition").transition(stop, start)
    return expand(ratio - 1, x) * x, std

  def step(keys: Array, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    f, g = forward(x, t, start, stop)
    pull = apply_covariance(g, score(x, t))
    if solver.probability_flow:
      x = x - f + 0.5 * pull
      return x, x
    x_mean = x - f + pull
    return x_mean + apply_diffusion(g, normal(keys, x)), x_mean

  return step


def ancestral_sampling(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """x_stop | x_start under the Gaussian posterior, with x_0 from Tweedie's formula.

      x_mean = (x + v score) / r,    x = x_mean + s z,    x_start | x_stop ~ N(r x_stop, v)

  with s² = v (sigma² - v) / (r sigma)² the posterior variance, or s² = v where `posterior_variance` is False (the two
  choices of Ho et al. 2020, Section 3.2). By default VP takes v, as published, the others the posterior.
  Song et al. 2021, Appendix F.
  """
  sde = linear(sde, "predictor='ancestral_sampling'")
  posterior = sde.posterior_variance if solver.posterior_variance is None else solver.posterior_variance

  def step(keys: Array, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    ratio, std = sde.chain(t, start, stop) if solver.tabulated else sde.transition(stop, start)
    x_mean = (x + expand(std, x) ** 2 * score(x, t)) / expand(ratio, x)
    if posterior:
      sigma = sde.sigma(start)
      std = std * jnp.sqrt(jnp.maximum(sigma**2 - std**2, 0.0)) / (ratio * sigma)
    return x_mean + expand(std, x) * normal(keys, x), x_mean

  return step


def none(solver: PredictorCorrector, sde: SDE, score: Score) -> Predict:
  """No predictor: only the corrector moves x."""
  return lambda keys, x, t, start, stop: (x, x)


PREDICTORS = {
  "euler_maruyama": euler_maruyama,
  "reverse_diffusion": reverse_diffusion,
  "ancestral_sampling": ancestral_sampling,
  "none": none,
}
