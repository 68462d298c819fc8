"""Heun's method for the ODE of EDM, with optional noise (churn)."""

import dataclasses
import math

import jax.numpy as jnp

from score_sde.batch import Array, Keys, Time, expand, normal
from score_sde.options import check_interval, option
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import FewStep, State, half_log_snr
from score_sde.sde import SDE, Score, denoiser, linear


@dataclasses.dataclass(frozen=True)
class Heun(FewStep):
  """Heun's method for dy/ds = (y - D) / s with y = x / alpha, s = sigma / alpha. Order 2, two evaluations per step.

  With `churn`, a step with churn_min <= s <= churn_max first adds noise churn_noise sqrt(s'² - s²) z to y, which raises
  s to s' = s (1 + min(churn / N, sqrt(2) - 1)). Karras et al. 2022, Algorithms 1 and 2. Under VE this is k-diffusion's
  `heun`.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VE(), lambda x, t: -x, (4, 2), solver=ss.Heun(churn=10.0), steps=20).shape
    (4, 2)
  """

  churn: float = option(0.0, "noise added over all steps (EDM's S_churn)", "[0, inf)")
  churn_min: float = option(0.0, "sigma / alpha below which none is added (S_min)", "[0, inf)", needs={"churn": ()})
  churn_max: float = option(
    math.inf, "sigma / alpha above which none is added (S_max)", "(0, inf]", needs={"churn": ()}
  )
  churn_noise: float = option(1.0, "standard deviation of the noise (S_noise)", "(0, inf)", needs={"churn": ()})
  # Number of steps over which the noise is spread. `on` sets it from the grid.
  churn_steps: int = 1

  def __post_init__(self) -> None:
    super().__post_init__()
    check_interval(self, "churn_min", "churn_max")

  def on(self, sde: SDE, grid: TimeGrid) -> "Heun":
    super().on(sde, grid)
    return dataclasses.replace(self, churn_steps=max(len(grid) + self.noise_removal, 1))

  def step(self, sde: SDE, score: Score, keys: Keys, state: State, t: Time, start: Time, stop: Time) -> State:
    sde, denoise = linear(sde, "Heun's method"), denoiser(sde, score)
    gamma = min(self.churn / self.churn_steps, math.sqrt(2) - 1)

    def slope(y: Array, s: Array, t: Array) -> Array:
      return (y - denoise(expand(sde.alpha(t), y) * y, t)) / expand(jnp.where(s > 0, s, 1.0), y)

    x = state.x
    y = x / expand(sde.alpha(start), x)
    s, s_stop = (jnp.exp(-half_log_snr(sde, time)) for time in (start, stop))
    if gamma:
      largest = jnp.exp(-half_log_snr(sde, jnp.full_like(start, sde.T)))
      churned = (s >= self.churn_min) & (s <= self.churn_max)
      raised = jnp.where(churned, jnp.minimum(s * (1 + gamma), largest), s)
      added = self.churn_noise * jnp.sqrt(jnp.maximum(raised**2 - s**2, 0.0))
      y, s = y + expand(added, y) * normal(keys, y), raised
      start = jnp.where(added > 0, sde.time_of_log_snr(-2 * jnp.log(raised)), start)
    first = slope(y, s, start)
    ds = expand(s_stop - s, y)
    # A step to s = 0 ends at D(start), the estimate by `first` alone: there is no slope.
    second = jnp.where(expand(s_stop, y) > 0, slope(y + ds * first, s_stop, stop), first)
    x = expand(sde.alpha(stop), y) * (y + ds * (first + second) / 2)
    return State(x, x)

  def evaluations(self, steps: int) -> int:
    return 2 * steps + self.noise_removal
