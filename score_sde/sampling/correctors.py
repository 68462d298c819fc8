"""Correctors: Langevin steps at a fixed time t. They move x towards the marginal p_t and leave p_t unchanged.

    corrector(keys, x, t) -> (x, x_mean),        x_mean = x + e score(x, t),  x = x_mean + sqrt(2 e) z

Song et al. 2021, Algorithms 4 and 5. a(t) = 1 + 2 (d log alpha/dt) / num_scales takes the place of their alpha_i: 1 for
VE, and 1 - beta(t) / num_scales for VP and sub-VP. It is defined at any t. The arguments of each factory are the SDE,
the score and the solver, from which it reads options (`PredictorCorrector`: snr, n_steps_each, num_scales, norms,
ald_step).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand, fold, norm, normal
from score_sde.sde import SDE, Score, linear

if TYPE_CHECKING:
  from score_sde.sampling.predictor_corrector import PredictorCorrector

Correct = Callable[[Array, Array, Array], tuple[Array, Array]]


def _repeated(step: Correct, n_steps: int) -> Correct:
  """Returns a corrector that makes `n_steps` steps, each with its own keys."""
  if n_steps == 1:
    return lambda keys, x, t: step(fold(keys, 0), x, t)

  def repeated(keys: Array, x: Array, t: Array) -> tuple[Array, Array]:
    body = lambda i, carry: step(fold(keys, i), carry[0], t)
    return jax.lax.fori_loop(0, n_steps, body, (x, x))

  return repeated


def langevin(solver: PredictorCorrector, sde: SDE, score: Score) -> Correct:
  """Returns a corrector with e = 2 a(t) (snr r)², where r is the ratio of noise to score. Song et al. 2021, Alg. 4, 5.

  With norms="batch", r = E‖z‖ / E‖score‖ with means over the batch, as in the paper. Samples then depend on each other.
  With norms="sample", r = sigma(t), which only a linear SDE has. In many dimensions the two agree, because ‖z‖ is
  close to sqrt(d) and ‖score‖ to sqrt(d) / sigma(t). A ratio of the norms of one sample would depend on the noise and
  the state that it multiplies: then the step no longer keeps p_t, and in few dimensions the error is large. A step of
  either kind leaves the variance of p_t up to 1 / (1 - snr²) times too large, like every Langevin step without a
  correction.
  """

  def step(keys: Keys, x: Batch, t: Time) -> tuple[Batch, Batch]:
    z, gradient = normal(keys, x), score(x, t)
    if solver.norms == "batch":
      ratio = solver.averaged(norm(z)) / solver.averaged(norm(gradient))
    else:
      ratio = linear(sde, "corrector='langevin' with norms='sample'").sigma(t)
    e = expand(2 * (solver.snr * ratio) ** 2 * (1 + 2 * sde.dlog_alpha(t) / solver.num_scales), x)
    x_mean = x + e * gradient
    return x_mean + jnp.sqrt(2 * e) * z, x_mean

  return _repeated(step, solver.n_steps_each)


def annealed_langevin(solver: PredictorCorrector, sde: SDE, score: Score) -> Correct:
  """Returns the corrector of NCSN's annealed Langevin dynamics, e = 2 a(t) (snr sigma(t))², the alpha_i of its code.

  Algorithm 1 of Song & Ermon 2019 steps by alpha_i / 2 times the score, but their code steps by alpha_i times the
  score. The published snr = 0.316 belongs to the code (alpha_i = 2e-5 (sigma_i / 0.01)²). ald_step="paper" halves e.
  """
  sde = linear(sde, "corrector='ald'")
  factor = 1 if solver.ald_step == "paper" else 2

  def step(keys: Keys, x: Batch, t: Time) -> tuple[Batch, Batch]:
    z = normal(keys, x)
    e = factor * (solver.snr * sde.sigma(t)) ** 2 * (1 + 2 * sde.dlog_alpha(t) / solver.num_scales)
    e = expand(e, x)
    x_mean = x + e * score(x, t)
    return x_mean + jnp.sqrt(2 * e) * z, x_mean

  return _repeated(step, solver.n_steps_each)


def none(solver: PredictorCorrector, sde: SDE, score: Score) -> Correct:
  """Returns a corrector that does nothing."""
  return lambda keys, x, t: (x, x)


CORRECTORS = {"langevin": langevin, "ald": annealed_langevin, "none": none}
