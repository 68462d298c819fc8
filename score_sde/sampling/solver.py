"""Base classes of solvers: options, and pure functions that move a state from noise to data."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Finite, Keys, Numbers, Time, fold
from score_sde.errors import InvalidArgument
from score_sde.options import Options, option
from score_sde.sampling.grids import TimeGrid
from score_sde.sde import SDE, LinearSDE, Score, denoiser, linear

# (sde, keys, x, mean, t) -> (x, mean): changes the state at time t after a step, see `Solver.followed_by`.
Update = Callable[[SDE, Array, Array, Array, Array], tuple[Array, Array]]

# Stream of a step's key for the random numbers of an update.
UPDATE = 2

# A multistep solver uses earlier evaluations only in a step that is at most this many times longer, in lambda, than the
# one before it. Beyond that the extrapolation is worse than a step of lower order: on the uniform grid of VP and
# sub-VP, whose last step is long, UniPC's error with ten evaluations is 3 to 8 times smaller this way.
STEEPEST = 2.0


class State(NamedTuple):
  """Minimal state of a solver between two steps. The state of another solver may have more fields.

  Attributes:
    x: the samples at the current time, (B, ...).
    mean: `x` before the noise of the last step was added, like `x`.
  """

  x: Array
  mean: Array


@dataclasses.dataclass(frozen=True)
class Solver(Options):
  """Base of solvers with a given number of steps. A solver is hashable and holds no arrays.

  A subclass defines `step`, and `init`, `finish` and `evaluations` if the defaults do not fit. There is one key per
  example. Times are (B,). Time runs from T down to eps: `start` > `stop`.

  Example:
    A new solver, Euler's method for the probability-flow ODE:

    >>> import jax, score_sde as ss
    >>> class Euler(ss.Solver):
    ...   def step(self, sde, score, keys, state, t, start, stop):
    ...     drift = ss.Reverse(sde, score, probability_flow=True).drift(state.x, t)
    ...     x = state.x + drift * (stop - start)[:, None]
    ...     return ss.State(x, x)
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=Euler(), steps=10).shape
    (4, 2)
  """

  # Default time grid and default number of steps.
  default_grid: ClassVar[str] = "uniform"
  default_steps: ClassVar[int] = 100

  _: dataclasses.KW_ONLY
  noise_removal: bool = option(
    True,
    "pc: leave out the noise of the last step (without a predictor: end on E[x_0 | x]); few-step and adaptive "
    "samplers: end on E[x_0 | x] at the last noise level, one evaluation",
  )

  def on(self, sde: SDE, grid: TimeGrid) -> "Solver":
    """Prepares the solver for `grid` and returns it. Raises InvalidArgument if it cannot run on `grid` or for `sde`."""
    return self

  def schedule(self, sde: SDE, grid: TimeGrid) -> TimeGrid:
    """Returns the steps that the solver makes on `grid`, before `on`: `grid`, unless it goes back in between."""
    return grid

  def init(self, sde: SDE, x: Batch, t: Time) -> Any:
    """Returns the state before the first step, from noise `x` (B, ...) at time `t` (B,)."""
    return State(x, x)

  def step(self, sde: SDE, score: Score, keys: Keys, state: Any, t: Time, start: Time, stop: Time) -> Any:
    """Makes one step from the state at `start` and returns the state at `stop`. The score is evaluated at `t`."""
    raise TypeError(f"{type(self).__name__} must define step(sde, score, keys, state, t, start, stop).")

  def finish(self, sde: SDE, score: Score, state: Any, t: Time) -> Batch:
    """Returns the samples from `state`, the state after the last step, at time `t`."""
    return state.mean if self.noise_removal else state.x

  def evaluations(self, steps: int) -> int:
    """Returns the nfe, the evaluations of the score per sample, of `steps` steps of a grid and of `finish`."""
    return steps

  def intervals(self, steps: int) -> int:
    """Returns the number of grid steps for `steps` steps of this solver. It is one less if `finish` makes a step."""
    return steps

  def followed_by(self, update: Update) -> "Solver":
    """Returns a solver that applies `update` to the state after every step of this one. Constraints call it."""
    return Updated(noise_removal=self.noise_removal, solver=self, update=update)


@dataclasses.dataclass(frozen=True)
class Wrapped(Solver):
  """Base of solvers that change something about the steps of another `solver`, to which they leave all else."""

  solver: Solver = dataclasses.field(default_factory=Solver)

  def __post_init__(self) -> None:
    super().__post_init__()
    if not isinstance(self.solver, Solver):
      raise InvalidArgument(
        f"{type(self).__name__} needs a solver with steps on a grid, and solver={type(self.solver).__name__} chooses "
        "its own.", "solver",
      )  # fmt: skip
    for name in ("default_grid", "default_steps"):  # the defaults of the wrapped solver
      object.__setattr__(self, name, getattr(self.solver, name))

  @property
  def predictor(self) -> str:
    """Returns the predictor of the wrapped solver, on which the official grid depends."""
    return getattr(self.solver, "predictor", "")

  @property
  def num_scales(self) -> int | None:
    """Returns the noise levels of the wrapped solver, the number of steps of the published samplers."""
    return getattr(self.solver, "num_scales", None)

  def schedule(self, sde: SDE, grid: TimeGrid) -> TimeGrid:
    return self.solver.schedule(sde, grid)

  def on(self, sde: SDE, grid: TimeGrid) -> "Wrapped":
    return dataclasses.replace(self, solver=self.solver.on(sde, grid))

  def init(self, sde: SDE, x: Batch, t: Time) -> Any:
    return self.solver.init(sde, x, t)

  def step(self, sde: SDE, score: Score, keys: Keys, state: Any, t: Time, start: Time, stop: Time) -> Any:
    return self.solver.step(sde, score, keys, state, t, start, stop)

  def finish(self, sde: SDE, score: Score, state: Any, t: Time) -> Batch:
    return self.solver.finish(sde, score, state, t)

  def evaluations(self, steps: int) -> int:
    return self.solver.evaluations(steps)

  def intervals(self, steps: int) -> int:
    return self.solver.intervals(steps)


@dataclasses.dataclass(frozen=True)
class Updated(Wrapped):
  """Solver that makes the steps of `solver` and applies `update` to x and its mean after each of them."""

  update: Update = dataclasses.field(default=lambda sde, keys, x, mean, t: (x, mean))

  def step(self, sde: SDE, score: Score, keys: Keys, state: Any, t: Time, start: Time, stop: Time) -> Any:
    state = super().step(sde, score, keys, state, t, start, stop)
    x, mean = self.update(sde, fold(keys, UPDATE), state.x, state.mean, stop)
    return state._replace(x=x, mean=mean)


@dataclasses.dataclass(frozen=True)
class FewStep(Solver):
  """Base of solvers for few steps. They work for any linear SDE and use only its alpha(t) and sigma(t).

  They use the score as the denoiser D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, and time as the half
  log-SNR lambda = log(alpha / sigma). The length of a step is h = lambda(stop) - lambda(start) > 0. If D is fixed over
  a step, the probability-flow ODE has the exact solution

      x_stop = (sigma_stop / sigma_start) x + alpha_stop (1 - exp(-h)) D.

  With `noise_removal` the last step goes to sigma = 0, where the solution is D. Then n steps visit n noise levels, the
  last at eps, and the result is E[x_0 | x] there, as in EDM, k-diffusion and diffusers. Without it, n steps go through
  n + 1 levels, and the result is x at eps, with the noise of that level.
  """

  default_grid: ClassVar[str] = "log_snr"
  default_steps: ClassVar[int] = 20
  # True if `noise_removal` evaluates the score where the grid ends.
  denoises_end: ClassVar[bool] = True

  def on(self, sde: SDE, grid: TimeGrid) -> "FewStep":
    its = linear(sde, type(self).__name__)
    grid.need_chain(type(self).__name__)
    if self.denoises_end and self.noise_removal and not grid.end and is_clean_at_zero(its):
      raise InvalidArgument(
        f"grid={grid.begin} to 0: {type(self).__name__} with noise_removal=True evaluates the score at the end. End "
        "the grid at a small eps; noise_removal makes the step to sigma = 0.", "grid",
      )  # fmt: skip
    return self

  def finish(self, sde: SDE, score: Score, state: Any, t: Time) -> Batch:
    return denoiser(sde, score)(state.x, t) if self.noise_removal else state.x

  def evaluations(self, steps: int) -> int:
    return steps + self.noise_removal

  def intervals(self, steps: int) -> int:
    return steps - self.noise_removal


def is_clean_at_zero(sde: LinearSDE) -> bool:
  """Returns whether nothing is left of the noise at t = 0. VE has sigma_min there."""
  with jax.ensure_compile_time_eval():
    return not float(sde.sigma(jnp.asarray(0.0)))


def half_log_snr(sde: SDE, t: Numbers) -> Numbers:
  """Returns lambda = log(alpha / sigma), like `t`."""
  return linear(sde, "A solver for few steps").log_snr(t) / 2


def all_finite(x: Batch) -> Finite:
  """Checks each example for NaN and infinity. Returns True for finite examples, (B,)."""
  return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
