"""Correctors: Langevin steps at a fixed time, which leave the marginal p_t where it is and pull x towards it.

    corrector(keys, x, t) -> (x, x_mean),        x_mean = x + e score(x, t),  x = x_mean + sqrt(2 e) z

Song et al. 2021, Algorithms 4 and 5, with a(t) = 1 + 2 (d log alpha/dt) / num_scales in the place of their alpha_i:
1 for VE and 1 - beta(t) / num_scales for VP and sub-VP, at any t. Each factory takes the SDE, the score, and
  snr: the ratio of noise to score in a step;
  n_steps: Langevin steps at each time;
  num_scales: the number of noise levels that a(t) belongs to;
  batch_mean: mean over the whole batch, or None for norms of every sample by itself.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.batch import Array, expand, fold, norm, normal
from score_sde.sde import SDE, LinearSDE, Score


def _repeat(step, keys, x, n_steps):
  """`n_steps` of `step(keys, x)`, each with keys of its own."""
  if n_steps == 1:
    return step(fold(keys, 0), x)
  body = lambda i, carry: step(fold(keys, i), carry[0])
  return jax.lax.fori_loop(0, n_steps, body, (x, x))


def _shrinkage(sde: SDE, t: Array, num_scales: int) -> Array:
  if not isinstance(sde, LinearSDE):
    return jnp.ones_like(t)
  return 1 + 2 * sde.dlog_alpha(t) / num_scales


def langevin(
  sde: SDE,
  score: Score,
  *,
  snr: float,
  n_steps: int = 1,
  num_scales: int = 1000,
  batch_mean: Callable[[Array], Array] | None = None,
  **_,
):
  """e = 2 a(t) (snr ‖z‖ / ‖score‖)²: the step adapts to the score. Song et al. 2021, Algorithms 4 and 5.

  With `batch_mean` the norms are averaged over the batch as in the paper, which couples the samples of a batch; without
  it a sample does not depend on which others it is drawn with.
  """
  average = batch_mean or (lambda norms: norms)

  def step(keys, x, t):
    z, gradient = normal(keys, x), score(x, t)
    ratio = snr * average(norm(z)) / average(norm(gradient))
    e = expand(2 * ratio**2 * _shrinkage(sde, t, num_scales), x)
    x_mean = x + e * gradient
    return x_mean + jnp.sqrt(2 * e) * z, x_mean

  return lambda keys, x, t: _repeat(lambda keys, x: step(keys, x, t), keys, x, n_steps)


def annealed_langevin(
  sde: LinearSDE,
  score: Score,
  *,
  snr: float,
  n_steps: int = 1,
  num_scales: int = 1000,
  batch_mean: Callable[[Array], Array] | None = None,
  paper: bool = False,
):
  """e = 2 a(t) (snr sigma(t))²: NCSN's annealed Langevin dynamics, where that is Algorithm 1's alpha_i.

  Song & Ermon 2019 step by alpha_i / 2 times the score in their Algorithm 1, and by alpha_i in their code, to which the
  published snr = 0.316 belongs (alpha_i = 2e-5 (sigma_i / 0.01)²). `paper` halves e accordingly.
  """

  def step(keys, x, t):
    z = normal(keys, x)
    e = expand((1 if paper else 2) * (snr * sde.sigma(t)) ** 2 * _shrinkage(sde, t, num_scales), x)
    x_mean = x + e * score(x, t)
    return x_mean + jnp.sqrt(2 * e) * z, x_mean

  return lambda keys, x, t: _repeat(lambda keys, x: step(keys, x, t), keys, x, n_steps)


def none(sde: SDE, score: Score, **_):
  """No corrector."""
  return lambda keys, x, t: (x, x)


CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": none}
