"""Predictors: one step of the reverse-time SDE (or the probability-flow ODE), x at `start` to x at `stop`.

    predictor(keys, x, t, start, stop) -> (x, x_mean)

x (B, ...), one key an example, times (B,); x_mean is x before the noise of the step, which the last step returns.
Each factory takes the SDE, the score, and
  official: discretize as the published tables do (on the official grid) instead of by the exact transition;
  probability_flow: step along the ODE, without noise;
  posterior_variance: for ancestral sampling, see there.
"""

import jax.numpy as jnp

from score_sde.batch import expand, normal
from score_sde.sde import SDE, VP, LinearSDE, Reverse, Score, apply_covariance, apply_diffusion


def euler_maruyama(sde: SDE, score: Score, *, probability_flow: bool = False, **_):
  """x_mean = x + f̄(x, t) (stop - start),  x = x_mean + G sqrt(start - stop) z, with f̄ the reverse drift.

  Song et al. 2021, eq. (6) and Appendix D.
  """
  reverse = Reverse(sde, score, probability_flow)

  def step(keys, x, t, start, stop):
    dt = expand(stop - start, x)  # negative: from noise to data
    x_mean = x + reverse.drift(x, t) * dt
    return x_mean + apply_diffusion(reverse.diffusion(x, t), jnp.sqrt(-dt) * normal(keys, x)), x_mean

  return step


def reverse_diffusion(sde: SDE, score: Score, *, official: bool = False, probability_flow: bool = False, **_):
  """x_mean = x - f + G Gᵀ score,  x = x_mean + G z, with x_start = x_stop + f + G z the forward chain.

  Song et al. 2021, eq. (46) and Appendix E. Half of G Gᵀ score and no noise along the probability flow.
  """

  def forward(x, t, start, stop):
    if official or not isinstance(sde, LinearSDE):
      return sde.discretize(x, t, start, stop)
    ratio, std = sde.transition(stop, start)
    return expand(ratio - 1, x) * x, std

  def step(keys, x, t, start, stop):
    f, g = forward(x, t, start, stop)
    pull = apply_covariance(g, score(x, t))
    if probability_flow:
      x = x - f + 0.5 * pull
      return x, x
    x_mean = x - f + pull
    return x_mean + apply_diffusion(g, normal(keys, x)), x_mean

  return step


def ancestral_sampling(
  sde: LinearSDE, score: Score, *, official: bool = False, posterior_variance: bool | None = None, **_
):
  """x_stop | x_start under the Gaussian posterior, with x_0 from Tweedie's formula.

      x_mean = (x + v score) / r,    x = x_mean + s z,    x_start | x_stop ~ N(r x_stop, v)

  with s² = v (sigma² - v) / (r sigma)² the posterior variance, or s² = v where `posterior_variance` is False (the two
  choices of Ho et al. 2020, Section 3.2). By default VP takes v, as published, the others the posterior.
  Song et al. 2021, Appendix F.
  """
  if posterior_variance is None:
    posterior_variance = not isinstance(sde, VP)

  def step(keys, x, t, start, stop):
    ratio, std = sde.chain(t, start, stop) if official else sde.transition(stop, start)
    x_mean = (x + expand(std, x) ** 2 * score(x, t)) / expand(ratio, x)
    if posterior_variance:
      sigma = sde.sigma(start)
      std = std * jnp.sqrt(jnp.maximum(sigma**2 - std**2, 0.0)) / (ratio * sigma)
    return x_mean + expand(std, x) * normal(keys, x), x_mean

  return step


def none(sde: SDE, score: Score, **_):
  """No predictor: only the corrector moves x."""
  return lambda keys, x, t, start, stop: (x, x)


PREDICTORS = {
  "euler_maruyama": euler_maruyama,
  "reverse_diffusion": reverse_diffusion,
  "ancestral_sampling": ancestral_sampling,
  "none": none,
}
