"""Multistep sampling of a consistency model: estimate the data, add noise again, at ever smaller noise levels."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Batch, Keys, Time, expand, normal
from score_sde.errors import InvalidArgument
from score_sde.options import option
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import FewStep, State, is_clean_at_zero
from score_sde.sde import SDE, Score, denoiser, linear


@dataclasses.dataclass(frozen=True)
class Consistency(FewStep):
  """Solver for a consistency model f: x_stop = alpha f(x, t) + sqrt(sigma² - (alpha s)²) z, s = sigma / alpha at eps.

  The result is f at the last noise level before eps. One step is f of noise; each further step is one more evaluation.
  Song et al. 2023 (consistency models), Algorithm 1. The score must come from a ConsistencyModel.

  Attributes:
    sigmas: decreasing noise levels sigma / alpha of the steps after the first, in place of the grid's; () for these.
    start_sigma: noise level at which sampling starts, from noise of this level and on a grid that is even in its
      logarithm; None for that of T. The noise at T can be far more than hides the data (152 under VP(0.1, 20)), and
      networks are then badly trained there.

  Raises:
    InvalidArgument: for `sigmas` that do not decrease within the noise levels of sampling, for a number of steps other
      than len(sigmas) + 1, or for `start_sigma` beside a start below T.

  Example:
    >>> import jax, score_sde as ss
    >>> model = ss.ConsistencyModel(ss.VE(), lambda params, x, labels, keys: params * x, "edm", end=1e-5)
    >>> score = jax.tree_util.Partial(model.score, 0.0)
    >>> ss.sample(jax.random.key(0), ss.VE(), score, (4, 2), solver=ss.Consistency(), steps=2).shape
    (4, 2)
  """

  default_steps: ClassVar[int] = 1
  denoises_end: ClassVar[bool] = False

  end: float = 0.0  # time at which sampling ends, set by `on`

  start_sigma: float | None = option(None, "noise level sigma / alpha of the first step; unset: that of T", "(0, inf)")
  sigmas: tuple[float, ...] = option(
    (), "noise levels sigma / alpha of the steps after the first; (): those of the grid"
  )

  def schedule(self, sde: SDE, grid: TimeGrid) -> TimeGrid:
    if not self.sigmas and self.start_sigma is None:
      return grid
    its = linear(sde, "Consistency")
    level = lambda t: float(jnp.exp(-its.log_snr(jnp.asarray(t)) / 2))
    time = lambda s: float(its.time_of_log_snr(jnp.asarray(-2 * np.log(s))))
    if not grid.end and is_clean_at_zero(its):
      raise InvalidArgument(
        f"grid={grid.begin} to 0 with start_sigma={self.start_sigma} and sigmas={self.sigmas}: there is no noise level "
        "at the end. End the grid at a small eps.", "grid",
      )  # fmt: skip
    with jax.ensure_compile_time_eval():  # a schedule is the same for all samples
      first, last = level(grid.begin), level(grid.end)
      if self.start_sigma is not None and grid.begin < sde.T:
        raise InvalidArgument(
          f"start_sigma={self.start_sigma} and a start at t={grid.begin}: leave one of them unset.", "start_sigma",
          "t_start",
        )  # fmt: skip
      if self.start_sigma is not None and not last < self.start_sigma <= first * (1 + 1e-6):
        raise InvalidArgument(
          f"start_sigma={self.start_sigma} must lie in ({last:.3g}, {first:.3g}], the noise levels at the end and the "
          "beginning of sampling.", "start_sigma",
        )  # fmt: skip
      if self.sigmas and len(grid) != len(self.sigmas) + 1:
        raise InvalidArgument(
          f"sigmas={self.sigmas} are the noise levels of {len(self.sigmas) + 1} steps, the first from noise, but there "
          f"are steps={len(grid)}. Give as many, or sigmas=().", "sigmas", "steps",
        )  # fmt: skip
      start = first if self.start_sigma is None else min(self.start_sigma, first)
      if self.sigmas:
        levels = [start, *self.sigmas, last]
      else:
        levels = np.geomspace(start, last, len(grid) + 1).tolist()
      if not (np.diff(levels) < 0).all():
        raise InvalidArgument(
          f"sigmas={self.sigmas} must decrease and lie between {last:.3g} and {start:.3g}, the noise levels at the end "
          "and the beginning of sampling.", "sigmas",
        )  # fmt: skip
      times = [grid.begin if s == first else time(s) for s in levels[:-1]]
      return TimeGrid.through([*times, grid.end])

  def init(self, sde: SDE, x: Batch, t: Time) -> State:
    if self.start_sigma is not None:  # x is noise of time T
      its = linear(sde, "Consistency")
      x = expand(its.sigma(t) / its.prior_std, x) * x
    return State(x, x)

  def on(self, sde: SDE, grid: TimeGrid) -> "Consistency":
    super().on(sde, grid)
    return dataclasses.replace(self, end=grid.end)

  def step(self, sde: SDE, score: Score, keys: Keys, state: State, t: Time, start: Time, stop: Time) -> State:
    sde = linear(sde, "Consistency")
    found = denoiser(sde, score)(state.x, t)
    end = jnp.full_like(stop, self.end)
    kept = sde.alpha(stop) * sde.sigma(end) / sde.alpha(end)
    std = jnp.sqrt(jnp.maximum(sde.sigma(stop) ** 2 - kept**2, 0))
    mean = expand(sde.alpha(stop), found) * found
    return State(mean + expand(std, found) * normal(keys, found), found)

  def finish(self, sde: SDE, score: Score, state: State, t: Time) -> Batch:
    return state.mean

  def evaluations(self, steps: int) -> int:
    return steps

  def intervals(self, steps: int) -> int:
    return steps
