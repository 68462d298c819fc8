"""DDIM: the probability-flow ODE with the denoiser fixed over a step, or noise of any strength instead."""

import dataclasses

import jax.numpy as jnp

from score_sde.batch import Array, expand, normal
from score_sde.options import option
from score_sde.sampling.solver import FewStep, State
from score_sde.sde import SDE, Score, denoiser, linear


@dataclasses.dataclass(frozen=True)
class DDIM(FewStep):
  """x_stop = alpha D + sqrt(sigma² - v) (x - alpha_start D) / sigma_start + sqrt(v) z, one evaluation per step.

  v = eta² times the variance of the posterior of x_stop given x and x_0 = D: eta = 0 is the ODE, 1 ancestral sampling.
  Of order 1. Song et al. 2021 (DDIM), eq. (12). Under VE this is k-diffusion's `euler`.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DDIM(eta=0.5), steps=20).shape
    (4, 2)
  """

  eta: float = option(0.0, "noise of a step: 0 is the ODE, 1 ancestral sampling", "[0, 1]")

  def step(self, sde: SDE, score: Score, keys: Array, state: State, t: Array, start: Array, stop: Array) -> State:
    sde = linear(sde, "DDIM")
    x, denoised = state.x, denoiser(sde, score)(state.x, t)
    ratio, std = sde.transition(stop, start)
    sigma = sde.sigma(start)
    v = (self.eta * std / (ratio * sigma)) ** 2 * jnp.maximum(sigma**2 - std**2, 0.0)
    noise = (x - expand(sde.alpha(start), x) * denoised) / expand(sigma, x)
    rest = jnp.sqrt(jnp.maximum(sde.sigma(stop) ** 2 - v, 0.0))
    mean = expand(sde.alpha(stop), x) * denoised + expand(rest, x) * noise
    return State(mean + expand(jnp.sqrt(v), x) * normal(keys, x) if self.eta else mean, mean)
