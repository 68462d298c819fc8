"""DPM-Solver++(2M), for the ODE and for the SDE. It extrapolates the denoiser from the previous step."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand, normal
from score_sde.sampling.solver import STEEPEST, FewStep, exact_step, half_log_snr
from score_sde.sde import SDE, Score, denoiser, linear


class DPMState(NamedTuple):
  """State of `DPMSolver`: x and its mean, D of the previous step, its lambda (B,), and the count of steps so far."""

  x: Array
  mean: Array
  denoised: Array
  half_log_snr: Array
  taken: Array


@dataclasses.dataclass(frozen=True)
class DPMSolver(FewStep):
  """DPM-Solver++(2M): extrapolates D linearly in lambda from the previous step. The first step is a DDIM step.

  So is a step that is more than `STEEPEST` times longer than the one before it. Order 2, one evaluation per step. Lu et
  al. 2022b (DPM-Solver++), Algorithm 2. Under VE this is k-diffusion's `dpmpp_2m`.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DPMSolver(), steps=20).shape
    (4, 2)
  """

  def init(self, sde: SDE, x: Batch, t: Time) -> DPMState:
    return DPMState(x, x, jnp.zeros_like(x), jnp.zeros_like(t), jnp.zeros((), jnp.int32))

  def step(self, sde: SDE, score: Score, keys: Keys, state: DPMState, t: Time, start: Time, stop: Time) -> DPMState:
    sde = linear(sde, "DPM-Solver")
    x, denoised, now = state.x, denoiser(sde, score)(state.x, t), half_log_snr(sde, start)
    h, before = half_log_snr(sde, stop) - now, now - state.half_log_snr
    later = (state.taken > 0) & (h <= STEEPEST * before)
    slope = jnp.where(later, h / (2 * jnp.where(later, before, 1.0)), 0.0)
    middle = denoised + expand(slope, x) * (denoised - state.denoised)
    x, mean = self.move(sde, keys, x, middle, h, start, stop)
    return DPMState(x, mean, denoised, now, state.taken + 1)

  def move(
    self, sde: SDE, keys: Keys, x: Batch, middle: Array, h: Array, start: Time, stop: Time
  ) -> tuple[Array, Array]:
    """Returns (x, mean) at `stop`, from x at `start`, with D fixed at `middle`. `h` (B,) is the length in lambda."""
    x = exact_step(sde, x, middle, start, stop)
    return x, x


@dataclasses.dataclass(frozen=True)
class DPMSolverSDE(DPMSolver):
  """DPM-Solver++(2M) for the reverse-time SDE. Its linear part and its noise are exact. Lu et al. 2022b, Section 5.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DPMSolverSDE(), steps=50).shape
    (4, 2)
  """

  def move(
    self, sde: SDE, keys: Keys, x: Batch, middle: Array, h: Array, start: Time, stop: Time
  ) -> tuple[Array, Array]:
    sde = linear(sde, "DPM-Solver")
    kept = sde.sigma(stop) / sde.sigma(start) * jnp.exp(-h)
    gained = -jnp.expm1(-2 * h)
    mean = expand(kept, x) * x + expand(sde.alpha(stop) * gained, x) * middle
    return mean + expand(sde.sigma(stop) * jnp.sqrt(gained), x) * normal(keys, x), mean
