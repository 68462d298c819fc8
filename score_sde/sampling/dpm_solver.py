"""DPM-Solver++(2M), for the ODE and for the SDE. It extrapolates the denoiser from the previous step."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from score_sde.batch import Array, Time
from score_sde.sampling.multistep import Multistep, Transition
from score_sde.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class DPMSolver(Multistep):
  """DPM-Solver++(2M): extrapolates D linearly in lambda from the previous step. The first step is a DDIM step.

  So is a step that is more than `STEEPEST` times longer than the one before it. Order 2, one evaluation per step. Lu et
  al. 2022b (DPM-Solver++), Algorithm 2. Under VE this is k-diffusion's `dpmpp_2m`.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DPMSolver(), steps=20).shape
    (4, 2)
  """

  @property
  def uses(self) -> int:
    return 1

  @property
  def corrects(self) -> bool:
    return False

  def transition(self, sde: LinearSDE, start: Time, stop: Time, h: Array) -> Transition:
    gained = -sde.alpha(stop) * jnp.expm1(-h)
    return Transition(sde.sigma(stop) / sde.sigma(start), gained, _at_the_middle(gained))


def _at_the_middle(gained: Array) -> Callable[[list[Array]], list[Array]]:
  """Returns the weights of a step with D fixed at its value in the middle, by the line through D and the previous D."""
  return lambda places: [gained / (2 * place) for place in places]


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE(DPMSolver):
  """DPM-Solver++(2M) for the reverse-time SDE. Its linear part and its noise are exact. Lu et al. 2022b, Section 5.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DPMSolverSDE(), steps=50).shape
    (4, 2)
  """

  def transition(self, sde: LinearSDE, start: Time, stop: Time, h: Array) -> Transition:
    kept, rest = sde.sigma(stop) / sde.sigma(start) * jnp.exp(-h), -jnp.expm1(-2 * h)
    gained = sde.alpha(stop) * rest
    return Transition(kept, gained, _at_the_middle(gained), sde.sigma(stop) * jnp.sqrt(rest))
