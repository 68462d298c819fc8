"""Restart sampling: from a low noise level back to a higher one by fresh noise, several times."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, Keys, Time, expand, fold, normal
from score_sde.errors import InvalidArgument
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import Solver, Wrapped
from score_sde.sde import SDE, LinearSDE, Score, linear

# Stream of a step's key for the noise of a restart.
RESTART = 3


@dataclasses.dataclass(frozen=True)
class Interval:
  """Interval of noise levels sigma/alpha from `low` to `high`, which is crossed `repeats` more times in `steps` steps.

  Raises:
    InvalidArgument: for levels that do not increase, or counts below 1.
  """

  low: float
  high: float
  steps: int = 4
  repeats: int = 1

  def __post_init__(self) -> None:
    if not 0 < self.low < self.high:
      raise InvalidArgument(f"low={self.low!r} and high={self.high!r} must be noise levels with 0 < low < high.", "low")
    if self.steps < 1 or self.repeats < 1:
      raise InvalidArgument(f"steps={self.steps!r} and repeats={self.repeats!r} must be at least 1.", "steps")


class RestartState(NamedTuple):
  """State of `Restart`: that of its solver, and the time (B,) that it has reached."""

  inner: Any
  reached: Array

  @property
  def x(self) -> Array:
    """Returns the samples at the current time."""
    return self.inner.x

  @property
  def mean(self) -> Array:
    """Returns the samples without the noise of the last step."""
    return self.inner.mean


@dataclasses.dataclass(frozen=True)
class Restart(Wrapped):
  """Solver that makes the steps of `solver`, and returns to more noise in some intervals. Xu et al. 2023, Algorithm 1.

  When a step reaches the lowest level of an interval (the nearest level of the grid), x gets the noise that leads to
  its highest one,

      x_high = alpha_high/alpha_low x_low + sqrt(sigma_high² - (alpha_high/alpha_low)² sigma_low²) z,

  and the solver, which forgets its earlier steps, crosses the interval again. An ODE solver makes small errors of
  discretization; the noise contracts errors that were made before.

  Attributes:
    restarts: the intervals.
    noise_removal: that of `solver`.

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.Restart(solver=ss.Heun(), restarts=(ss.Interval(0.1, 0.5, steps=3, repeats=2),))
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=solver, steps=10).shape
    (4, 2)
  """

  restarts: tuple[Interval, ...] = ()
  # Number of restarts on the grid; `on` counts them.
  count: int = 0

  def __post_init__(self) -> None:
    super().__post_init__()
    object.__setattr__(self, "noise_removal", self.solver.noise_removal)

  def schedule(self, sde: SDE, grid: TimeGrid) -> TimeGrid:
    """Returns `grid` with the steps of the restarts."""
    sde = linear(sde, "Restart sampling")
    grid.need_chain("Restart sampling")
    if self.solver.schedule(sde, grid) is not grid:
      raise InvalidArgument(
        f"solver={type(self.solver).__name__} changes the grid itself, as restarts do. Leave its levels unset; "
        "of two Restarts, give all intervals to one Restart, as restarts=(Interval(...), ...).", "solver",
      )  # fmt: skip
    if not len(grid):
      return grid
    with jax.ensure_compile_time_eval():  # a schedule is the same for all samples
      return self._extended(sde, grid)

  def _extended(self, sde: LinearSDE, grid: TimeGrid) -> TimeGrid:
    level = lambda t: np.exp(-np.asarray(sde.log_snr(jnp.asarray(t)), np.float64) / 2)
    levels, after = np.log(level(grid.stop)), {}
    for interval in self.restarts:
      at = int(np.argmin(np.abs(levels - np.log(interval.low))))
      low, high = float(np.exp(levels[at])), min(interval.high, float(level(grid.begin)))
      if not low < high * (1 - 1e-6):
        raise InvalidArgument(
          f"high={interval.high!r} must exceed the level of the grid that is nearest to low={interval.low!r}, "
          f"{low:.3g}. Take more steps or a wider interval.", "high",
        )  # fmt: skip
      inner = np.linspace(high ** (1 / 7), low ** (1 / 7), interval.steps + 1) ** 7  # Karras et al. 2022
      times = np.array(sde.time_of_log_snr(jnp.asarray(-2 * np.log(inner))), np.float64)
      times[-1] = grid.stop[at]
      after.setdefault(at, []).append((interval.repeats, times))
    rows = []
    for i, row in enumerate(grid.rows):
      rows.append(row[None])
      for repeats, times in after.get(i, ()):
        rows += [np.stack([times[:-1], times[:-1], times[1:]], axis=1)] * repeats
    t, start, stop = np.concatenate(rows).T
    return TimeGrid(t, start, stop, grid.official, grid.begin)

  def on(self, sde: SDE, grid: TimeGrid) -> "Restart":
    falling = np.unique(np.concatenate([[grid.begin], grid.stop]))[::-1] if len(grid) else np.array([grid.begin])
    # Each restart evaluates the score once more if the first step of the solver does.
    jumps = int((grid.start[1:] > grid.stop[:-1]).sum())
    return dataclasses.replace(self, solver=self.solver.on(sde, TimeGrid.through(falling)), count=jumps)

  def init(self, sde: SDE, x: Batch, t: Time) -> RestartState:
    return RestartState(self.solver.init(sde, x, t), t)

  def step(self, sde: SDE, score: Score, keys: Keys, state: Any, t: Time, start: Time, stop: Time) -> Any:
    inner, reached = state
    sde = linear(sde, "Restart sampling")

    def back() -> Any:
      kept = sde.alpha(start) / sde.alpha(reached)
      std = jnp.sqrt(jnp.maximum(sde.sigma(start) ** 2 - (kept * sde.sigma(reached)) ** 2, 0.0))
      x = expand(kept, inner.x) * inner.x + expand(std, inner.x) * normal(fold(keys, RESTART), inner.x)
      return self.solver.init(sde, x, start)

    inner = jax.lax.cond(jnp.all(start > reached), back, lambda: inner)
    return RestartState(self.solver.step(sde, score, keys, inner, t, start, stop), stop)

  def finish(self, sde: SDE, score: Score, state: Any, t: Time) -> Batch:
    return self.solver.finish(sde, score, state.inner, t)

  def evaluations(self, steps: int) -> int:
    of = self.solver.evaluations
    return of(steps) + self.count * (of(1) - of(0) - (of(2) - of(1)))

  def followed_by(self, update: Any) -> Solver:
    return dataclasses.replace(self, solver=self.solver.followed_by(update))
