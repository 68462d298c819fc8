"""Clipping of x_0: a function from a solver to a solver that keeps the denoiser in the range of the data."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand
from score_sde.errors import InvalidArgument
from score_sde.options import Options, option
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import Solver, Update, Wrapped
from score_sde.sde import SDE, Score, denoiser, linear


@dataclasses.dataclass(frozen=True)
class Clip(Options):
  """Clipping of x_0: a solver sees D(x, t) = E[x_0 | x_t = x] moved into [low, high]. Clip(...)(solver) is a solver.

  Its score becomes (alpha D' - x) / sigma². Without a `quantile`, D' is D, clipped (static thresholding). With one, let
  y = (D - c) / h with the center c and half width h of the range, and s = max(1, the quantile of |y| over the example).
  Then D' = c + h clip(y, -s, s) / s (dynamic thresholding: Saharia et al. 2022, Section 2.3). Works under linear SDEs,
  with every solver that makes steps on a grid.

  Attributes:
    low, high: range of the data.
    quantile: of the absolute values of an example, for dynamic thresholding; None for static clipping.

  Raises:
    InvalidArgument: unless low < high, both finite; for an adaptive solver, or an SDE that is not linear.

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.Clip(-1.0, 1.0)(ss.UniPC())
    >>> x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -9 * x, (4, 2), solver=solver, steps=20)
    >>> bool((abs(x) <= 1).all())
    True
  """

  low: float = -1.0
  high: float = 1.0
  quantile: float | None = option(None, "quantile of |x_0| to which an example is clipped and then scaled", "(0, 1]")

  def __post_init__(self) -> None:
    super().__post_init__()
    if not -math.inf < self.low < self.high < math.inf:
      raise InvalidArgument(
        f"low={self.low} and high={self.high} must be finite and satisfy low < high.", "low", "high"
      )

  def __call__(self, solver: Any) -> "Solver":
    if not isinstance(solver, Solver):
      raise InvalidArgument(f"Clipping of x_0 needs a solver with steps on a grid, not {type(solver).__name__}.")
    return Clipped(noise_removal=solver.noise_removal, solver=solver, clip=self)

  def clipped(self, denoised: Batch) -> Batch:
    """Returns D', like `denoised`."""
    center, half = (self.low + self.high) / 2, (self.high - self.low) / 2
    y = (denoised - center) / half
    limit: Array = jnp.ones((), y.dtype)
    if self.quantile is not None:
      flat = jnp.abs(y).reshape(y.shape[0], -1)
      limit = expand(jnp.maximum(jnp.quantile(flat, self.quantile, axis=1), 1.0), y)
    return center + half * jnp.clip(y, -limit, limit) / limit

  def score(self, sde: SDE, score: Score) -> Score:
    """Returns the score whose denoiser is clipped."""
    kernel, denoise = linear(sde, "Clipping of x_0"), denoiser(sde, score)

    def clipped(x: Batch, t: Time) -> Batch:
      target = expand(kernel.alpha(t), x) * self.clipped(denoise(x, t))
      variance = expand(kernel.sigma(t), x) ** 2
      return jnp.where(variance > 0, (target - x) / jnp.where(variance > 0, variance, 1.0), 0.0)  # 0 at t = 0, not NaN

    return clipped


@dataclasses.dataclass(frozen=True)
class Clipped(Wrapped):
  """Solver that makes the steps of `solver` with a clipped score."""

  clip: Clip = dataclasses.field(default_factory=Clip)

  def on(self, sde: SDE, grid: TimeGrid) -> Wrapped:
    linear(sde, "Clipping of x_0")
    return super().on(sde, grid)

  def step(self, sde: SDE, score: Score, keys: Keys, state: Any, t: Time, start: Time, stop: Time) -> Any:
    return super().step(sde, self.clip.score(sde, score), keys, state, t, start, stop)

  def finish(self, sde: SDE, score: Score, state: Any, t: Time) -> Batch:
    return super().finish(sde, self.clip.score(sde, score), state, t)

  def followed_by(self, update: Update) -> Solver:
    return dataclasses.replace(self, solver=self.solver.followed_by(update))
