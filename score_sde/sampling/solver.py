"""What every solver is: options, and pure functions that move a state from noise to data."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from score_sde.batch import Array, expand, fold
from score_sde.options import Options, option
from score_sde.sampling.grids import TimeGrid
from score_sde.sde import SDE, Score, denoiser, linear

# (sde, keys, x, mean, t) -> (x, mean): acts on a state at time t after an update, see `Solver.followed_by`.
Update = Callable[[SDE, Array, Array, Array, Array], tuple[Array, Array]]

# Stream of a step's key that an update draws from.
UPDATE = 2


class State(NamedTuple):
  """The least that a solver carries from step to step.

  Attributes:
    x: the samples at the current time, (B, ...).
    mean: `x` before the noise of the last step was added, like `x`.
  """

  x: Array
  mean: Array


@dataclasses.dataclass(frozen=True)
class Solver(Options):
  """Base of solvers that take a number of steps. A solver is hashable and holds no arrays.

  A subclass defines `step`, and `init`, `finish` and `evaluations` where the defaults do not fit. Keys are one per
  example, times are (B,), and time runs from T down to eps: `start` > `stop`.

  Example:
    A solver of a user's own, Euler's method for the probability-flow ODE:

    >>> import jax, score_sde as ss
    >>> class Euler(ss.Solver):
    ...   def step(self, sde, score, keys, state, t, start, stop):
    ...     drift = ss.Reverse(sde, score, probability_flow=True).drift(state.x, t)
    ...     x = state.x + drift * (stop - start)[:, None]
    ...     return ss.State(x, x)
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=Euler(), steps=10).shape
    (4, 2)
  """

  # The name of the time grid that suits the solver, and how many steps it takes unless told otherwise.
  default_grid: ClassVar[str] = "uniform"
  default_steps: ClassVar[int] = 100

  _: dataclasses.KW_ONLY
  noise_removal: bool = option(
    True,
    "pc: leave out the noise of the last step (without a predictor: end on E[x_0 | x]); few-step and adaptive "
    "samplers: end on E[x_0 | x] at the last noise level, one evaluation",
  )

  def on(self, sde: SDE, grid: TimeGrid) -> "Solver":
    """Returns the solver as it runs on `grid`. Raises InvalidArgument where it cannot run there or under `sde`."""
    return self

  def init(self, sde: SDE, x: Array, t: Array) -> Any:
    """Returns the state before the first step, from `x` (B, ...) at time `t` (B,)."""
    return State(x, x)

  def step(self, sde: SDE, score: Score, keys: Array, state: Any, t: Array, start: Array, stop: Array) -> Any:
    """Returns the state at `stop`, from the one at `start`; the score is evaluated at `t`."""
    raise TypeError(f"{type(self).__name__} must define step(sde, score, keys, state, t, start, stop).")

  def finish(self, sde: SDE, score: Score, state: Any, t: Array) -> Array:
    """Returns the samples, from the state after the last step, at time `t`."""
    return state.mean if self.noise_removal else state.x

  def evaluations(self, steps: int) -> int:
    """Returns how often the score is evaluated per sample over `steps` steps of a grid, `finish` included."""
    return steps

  def intervals(self, steps: int) -> int:
    """Returns how many steps of a grid belong to `steps` steps of this solver; one may be that of `finish`."""
    return steps

  def followed_by(self, update: Update) -> "Solver":
    """Returns a solver that applies `update` to the state after every update of this one."""
    return Updated(noise_removal=self.noise_removal, solver=self, update=update)


@dataclasses.dataclass(frozen=True)
class Updated(Solver):
  """`solver`, with `update` applied to x and its mean after every step."""

  solver: Solver = dataclasses.field(default_factory=Solver)
  update: Update = dataclasses.field(default=lambda sde, keys, x, mean, t: (x, mean))

  def on(self, sde: SDE, grid: TimeGrid) -> "Updated":
    return dataclasses.replace(self, solver=self.solver.on(sde, grid))

  def init(self, sde: SDE, x: Array, t: Array) -> Any:
    return self.solver.init(sde, x, t)

  def step(self, sde: SDE, score: Score, keys: Array, state: Any, t: Array, start: Array, stop: Array) -> Any:
    state = self.solver.step(sde, score, keys, state, t, start, stop)
    x, mean = self.update(sde, fold(keys, UPDATE), state.x, state.mean, stop)
    return state._replace(x=x, mean=mean)

  def finish(self, sde: SDE, score: Score, state: Any, t: Array) -> Array:
    return self.solver.finish(sde, score, state, t)

  def evaluations(self, steps: int) -> int:
    return self.solver.evaluations(steps)

  def intervals(self, steps: int) -> int:
    return self.solver.intervals(steps)


@dataclasses.dataclass(frozen=True)
class FewStep(Solver):
  """Base of solvers for few steps, which see any linear SDE through alpha(t) and sigma(t) alone.

  They see the score as the denoiser D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, and time as the half
  log-SNR lambda = log(alpha / sigma); h = lambda(stop) - lambda(start) > 0 is the length of a step. With D kept fixed
  over a step the probability-flow ODE has the exact solution

      x_stop = (sigma_stop / sigma_start) x + alpha_stop (1 - exp(-h)) D.

  With `noise_removal` the last of their steps goes to sigma = 0, where the solution is D: n steps then visit n noise
  levels, from the first to that of eps, and end on E[x_0 | x] there, as in EDM, k-diffusion and diffusers. Without it
  they take n steps between n + 1 levels and return x at eps, with the noise of that level in it.
  """

  default_grid: ClassVar[str] = "log_snr"
  default_steps: ClassVar[int] = 20

  def on(self, sde: SDE, grid: TimeGrid) -> "FewStep":
    linear(sde, type(self).__name__)
    grid.need_chain(type(self).__name__)
    return self

  def finish(self, sde: SDE, score: Score, state: Any, t: Array) -> Array:
    return denoiser(sde, score)(state.x, t) if self.noise_removal else state.x

  def evaluations(self, steps: int) -> int:
    return steps + self.noise_removal

  def intervals(self, steps: int) -> int:
    return steps - self.noise_removal


def half_log_snr(sde: SDE, t: Array) -> Array:
  """Returns lambda = log(alpha / sigma), like `t`."""
  return linear(sde, "A solver for few steps").log_snr(t) / 2


def exact_step(sde: Any, x: Array, denoised: Array, start: Array, stop: Array) -> Array:
  """Returns the solution of the probability-flow ODE at `stop`, from `x` at `start`, with D fixed at `denoised`."""
  h = half_log_snr(sde, stop) - half_log_snr(sde, start)
  kept, gained = sde.sigma(stop) / sde.sigma(start), -sde.alpha(stop) * jnp.expm1(-h)
  return expand(kept, x) * x + expand(gained, x) * denoised


def all_finite(x: Array) -> Array:
  """Returns whether every number of each example is finite, (B,)."""
  return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
