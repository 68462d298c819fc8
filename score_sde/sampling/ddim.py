"""DDIM: solver with the denoiser fixed over a step, for the probability-flow ODE or with noise of any strength."""

import dataclasses

import jax.numpy as jnp

from score_sde.batch import Keys, Time, expand, normal
from score_sde.options import option
from score_sde.sampling.solver import FewStep, State
from score_sde.sde import SDE, Score, denoiser, linear


@dataclasses.dataclass(frozen=True)
class DDIM(FewStep):
  """DDIM solver: x_stop = alpha D + sqrt(sigma² - v) (x - alpha_start D) / sigma_start + sqrt(v) z.

  v is eta² times the variance of the posterior of x_stop given x and x_0 = D. eta = 0 is the ODE, and eta = 1 is
  ancestral sampling. Order 1, one evaluation per step. Song et al. 2021 (DDIM), eq. (12). Under VE this is
  k-diffusion's `euler`.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DDIM(eta=0.5), steps=20).shape
    (4, 2)
  """

  eta: float = option(0.0, "noise of a step: 0 is the ODE, 1 ancestral sampling", "[0, 1]")

  def step(self, sde: SDE, score: Score, keys: Keys, state: State, t: Time, start: Time, stop: Time) -> State:
    sde = linear(sde, "DDIM")
    x, denoised = state.x, denoiser(sde, score)(state.x, t)
    _, std = sde.transition(stop, start)
    sigma = sde.sigma(start)
    v = (self.eta * std * sde.sigma(stop) / sigma) ** 2
    noise = (x - expand(sde.alpha(start), x) * denoised) / expand(sigma, x)
    rest = jnp.sqrt(jnp.maximum(sde.sigma(stop) ** 2 - v, 0.0))
    mean = expand(sde.alpha(stop), x) * denoised + expand(rest, x) * noise
    return State(mean + expand(jnp.sqrt(v), x) * normal(keys, x) if self.eta else mean, mean)
