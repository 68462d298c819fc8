"""Sampler of the runner: runs a solver in chunks with progress, on all devices, in batches that fit into memory."""

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import PRIOR, STEPS, Array, as_key, example_keys, fold
from score_sde.errors import InvalidArgument
from score_sde.guidance import DDRM, Constraint, Measurement
from score_sde.run import devices
from score_sde.sampling import AdaptiveODE, AdaptiveSDE, AnySolver, Clip, Solver, TimeGrid, grid_for
from score_sde.sampling.sample import check_condition, check_shape, check_times, noise_of
from score_sde.sampling.solver import all_finite
from score_sde.sde import SDE, Score, as_argument, bind, linear

log = logging.getLogger(__name__)

# Steps per dispatch: enough to hide the cost of the dispatch, few enough for a progress bar.
CHUNK = 50


class Sampler:
  """Sampler: draws samples by a solver. Compiles once per batch shape, for any number of steps and any parameters.

  `sampler(score, key, shape, ...)` gives the same samples as `score_sde.sample`, up to rounding. It also takes:
    first: the index of the first sample.
    frames: number of intermediate states to return, evenly spaced in steps (in time, for adaptive solvers).
    progress: called as progress(done, steps) from time to time.
    condition, x_T, dtype: as for `score_sde.sample`.
  It returns (x, info). `info` holds "nfe", "finite" (B,), for adaptive solvers "t" (B,), and with frames "trajectory",
  a list of (t, x_t, x_mean or None) that begins with the noise. Batches that do not fit into memory are split.
  """

  def __init__(
    self,
    sde: SDE,
    solver: AnySolver,
    grid: TimeGrid | None = None,
    *,
    eps: float | None = None,
    t_start: float | None = None,
    constraint: Callable[[Measurement], Constraint] | None = None,
    clip: Clip | None = None,
    steps_at_once: int = CHUNK,
  ):
    """Checks the arguments before anything is compiled.

    Args:
      sde: the forward SDE.
      solver: the solver.
      grid: times of its steps; None for an adaptive solver.
      eps, t_start: end and start time of an adaptive solver; by default sde.eps and T.
      constraint: from a batch's condition, a measurement, to a constraint. The score then does not get the condition.
      clip: keeps estimates of x_0 in a range.
      steps_at_once: steps per dispatch.

    Raises:
      InvalidArgument: if the arguments are wrong or do not go together.
    """
    self.sde, self.grid, self.constraint, self.clip = sde, grid, constraint, clip
    self.steps_at_once = steps_at_once
    self.start, self.eps = sde.T if t_start is None else t_start, sde.eps if eps is None else eps
    if isinstance(solver, AdaptiveODE | AdaptiveSDE):
      check_times(sde, self.eps, self.start)
      if constraint:
        raise InvalidArgument(
          f"method={type(solver).__name__!r} has no updates that a constraint could follow.", "method"
        )
    elif grid is None:
      raise InvalidArgument(f"grid=None: {type(solver).__name__} needs a grid of time steps.", "grid")
    else:
      solver = solver.on(sde, grid)
    if clip:
      clip(solver)  # checks the solver
      linear(sde, "Clipping of x_0")
    self.solver: Any = _spread(solver, axis_name=devices.AXIS)
    self._fits: dict[tuple[int, ...], int] = {}
    self._compile()

  # --- one batch ------------------------------------------------------------------------------------------------------

  def _bound(self, score: Score, condition: Any) -> Score:
    return score if self.constraint or isinstance(self.solver, DDRM) else bind(score, condition)

  def _solver_of(self, condition: Any, real: Array) -> Any:
    """Returns the solver of a batch. It may depend on the batch's measurement. `real` is False for padding."""
    solver = self.solver
    if isinstance(solver, DDRM):
      solver = solver.given(condition)
    else:
      solver = _spread(solver, real=real)
    if self.constraint:
      solver = self.constraint(condition)(solver)
    return self.clip(solver) if self.clip else solver

  def _compile(self) -> None:
    sde, n = self.sde, self.steps_at_once
    solver: Any = self.solver

    begin = self.grid.begin if self.grid else self.start

    def draw_prior(keys: Array, like: Array) -> Array:
      return noise_of(sde, sde.prior_sample(fold(keys, PRIOR), like.shape, like.dtype), begin)

    def init(keys: Array, real: Array, condition: Any, x: Array) -> Any:
      if isinstance(solver, AdaptiveSDE):
        return solver.init(sde, x, self.start)
      state = self._solver_of(condition, real).init(sde, x, jnp.full(x.shape[:1], begin, x.dtype))
      return jax.tree.map(lambda a: a + 0, state)  # donation needs a separate buffer for each array

    def chunk(
      score: Score, keys: Array, real: Array, condition: Any, state: Any, times: Array, first: Array, count: Array
    ) -> Any:
      """Runs `count` steps from step number `first`. `times` is a slice of the grid, (n, 3)."""
      its, score = self._solver_of(condition, real), self._bound(score, condition)

      def body(i: Any, state: Any) -> Any:
        t, start, stop = (jnp.broadcast_to(times[i, j], keys.shape) for j in range(3))
        return its.step(sde, score, fold(fold(keys, STEPS), first + i), state, t, start, stop)

      return body(0, state) if n == 1 else jax.lax.fori_loop(0, count, body, state)

    def finish(score: Score, real: Array, condition: Any, state: Any, t: Array) -> Array:
      time = jnp.full(state.x.shape[:1], t, state.x.dtype)
      return self._solver_of(condition, real).finish(sde, self._bound(score, condition), state, time)

    def advance(score: Score, keys: Array, condition: Any, state: Any, stop: Array) -> Any:
      return solver.advance(sde, score, keys, state, stop, CHUNK, condition)

    def finish_adaptive(score: Score, condition: Any, state: Any) -> Any:
      return solver.finish(sde, score, state, self.eps, condition)

    mapped = functools.partial(devices.map_batch, name="the sampler")
    self._draw_prior = mapped(draw_prior, (0, 0))
    self._init = mapped(init, (0, 0, 0, 0))
    self._chunk = mapped(chunk, (None, 0, 0, 0, 0, None, None, None), donate=(4,))
    self._finish = mapped(finish, (None, 0, 0, 0, None))
    self._advance = mapped(advance, (None, 0, 0, 0, None), donate=(3,))
    self._finish_adaptive = mapped(finish_adaptive, (None, 0, 0))
    self._solve: dict[int, Callable] = {}

  def _batch(
    self,
    score: Score,
    key: Array,
    shape: tuple[int, ...],
    *,
    first: int = 0,
    frames: int = 0,
    progress: Callable[[int, int], None] | None = None,
    condition: Any = None,
    x_T: Array | None = None,
    dtype: Any = jnp.float32,
  ) -> tuple[Array, dict[str, Any]]:
    keys = devices.shard(example_keys(key, first + jnp.arange(shape[0])))
    real = (np.arange(keys.size) < shape[0]).reshape(keys.shape)
    if x_T is not None:
      x = devices.shard(jnp.asarray(x_T, dtype))
    else:
      x = self._draw_prior(keys, jnp.zeros((*keys.shape, *shape[1:]), dtype))
    unshard = lambda tree: devices.unshard(tree, shape[0])
    drive = {AdaptiveODE: self._drive_ode, AdaptiveSDE: self._drive_sde}.get(type(self.solver), self._drive_steps)
    return drive(as_argument(score), keys, real, devices.shard(condition), x, unshard, frames, progress)

  def _drive_steps(self, score, keys, real, condition, x, unshard, frames, progress):
    assert self.grid is not None
    steps, rows, begin = len(self.grid), self.grid.rows, self.grid.begin
    trajectory: list[Any] = [(begin, np.asarray(unshard(x)), None)] if frames else []
    stops = set(np.linspace(0, steps, frames + 1).round().astype(int)[1:]) if frames else set()
    state, done = self._init(keys, real, condition, x), 0
    while done < steps:
      count = min([self.steps_at_once, steps - done, *(s - done for s in stops if s > done)])
      times = np.zeros((self.steps_at_once, 3), x.dtype)
      times[:count] = rows[done : done + count]
      state = self._chunk(score, keys, real, condition, state, times, done, count)
      done += count
      if done in stops:
        x, mean = (np.asarray(unshard(a)) for a in (state.x, getattr(state, "mean", state.x)))
        trajectory.append((float(rows[done - 1, 2]), x, mean))
      if progress:
        jax.block_until_ready(state)
        progress(done, steps)
    x = unshard(self._finish(score, real, condition, state, np.asarray(self.grid.end, x.dtype)))
    info = {"nfe": self.solver.evaluations(steps), "finite": all_finite(x)}
    return x, info | ({"trajectory": trajectory} if frames else {})

  def _drive_ode(self, score, keys, real, condition, x, unshard, frames, progress):
    if frames not in self._solve:
      times = np.linspace(self.start, self.eps, frames + 1).tolist() if frames else None
      solve = lambda score, keys, real, condition, x: self._solver_of(condition, real).solve(
        self.sde, score, keys, x, start=self.start, eps=self.eps, condition=condition, times=times
      )  # fmt: skip
      self._solve[frames] = devices.map_batch(solve, (None, 0, 0, 0, 0), name="the sampler")
    x, info = unshard(self._solve[frames](score, keys, real, condition, x))
    if progress:
      progress(1, 1)
    if frames:
      path = np.asarray(info.pop("path"))
      times = np.linspace(self.start, self.eps, frames + 1)
      info["trajectory"] = [(float(t), path[:, i], None) for i, t in enumerate(times)]
    return x, info

  def _drive_sde(self, score, keys, real, condition, x, unshard, frames, progress):
    state, host = self._init(keys, real, condition, x), lambda a: np.asarray(unshard(a))
    trajectory = [(self.start, host(state.x), None)]
    for stop in np.linspace(self.start, self.eps, max(frames, 1) + 1)[1:].astype(x.dtype):
      while np.any((host(state.t) > stop) & (host(state.tried) < self.solver.max_steps)):
        state = self._advance(score, keys, condition, state, stop)
        if progress:
          progress(round(1000 * float((self.start - host(state.t).mean()) / (self.start - self.eps))), 1000)
      trajectory.append((float(stop), host(state.x), None))
    x, info = unshard(self._finish_adaptive(score, condition, state))
    return x, info | ({"trajectory": trajectory} if frames else {})

  # --- batches that fit -----------------------------------------------------------------------------------------------

  def __call__(
    self,
    score: Callable[..., Array],
    key: Array,
    shape: tuple[int, ...],
    *,
    condition: Any = None,
    x_T: Array | None = None,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
  ) -> tuple[Array, dict[str, Any]]:
    """Returns (x, info), see the class. Halves a batch that runs out of memory, down to one sample per device.

    Raises:
      InvalidArgument: if the arguments are wrong or do not go together.
    """
    check_shape(shape)
    key = as_key(key)
    check_condition(condition, shape[0])
    if x_T is None and not self.sde.has_prior:
      raise InvalidArgument(
        f"x_T=None, but {type(self.sde).__name__} has no closed-form prior: give end points of simulated paths.", "x_T"
      )
    if x_T is not None and jnp.shape(x_T) != tuple(shape):
      raise InvalidArgument(f"x_T of shape {jnp.shape(x_T)} must have the samples' shape {tuple(shape)}.", "x_T")
    total, count = shape[0], devices.device_count()
    size = min(self._fits.get(shape[1:], total), total)
    while True:
      sizes = [min(size, total - i) for i in range(0, total, size)]
      try:
        parts = []
        for i, n in zip(range(0, total, size), sizes, strict=True):
          part, begin = jax.tree.map(lambda c, i=i, n=n: c[i : i + n], (condition, x_T))
          shown = progress and (lambda done, steps, i=i: progress(i // size * steps + done, len(sizes) * steps))
          parts.append(
            self._batch(
              score, key, (n, *shape[1:]), first=first + i, condition=part, x_T=begin, progress=shown, **options
            )
          )
        return parts[0] if len(parts) == 1 else _joined(parts)
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or size <= count:
          raise
        size = self._fits[shape[1:]] = max(count, size // 2 // count * count)
        log.warning("%d samples do not fit into memory together; drawing %d at a time.", total, size)


def _spread(solver: Any, **values: Any) -> Any:
  """Returns the solver, or the one that it wraps, with `values` about a batch that is spread over devices."""
  if {f.name for f in dataclasses.fields(solver)} >= values.keys():
    return dataclasses.replace(solver, **values)
  inner = getattr(solver, "solver", None)
  if dataclasses.is_dataclass(inner):
    return dataclasses.replace(solver, solver=_spread(inner, **values))
  return solver


def _joined(parts: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
  """Joins the samples and infos of consecutive parts of a batch."""
  info: dict[str, Any] = {}
  for name, value in parts[0][1].items():
    values = [part[name] for _, part in parts]
    if name == "trajectory":
      join = lambda frames: None if frames[0] is None else np.concatenate(frames)
      steps = zip(*values, strict=True)
      info[name] = [(f[0][0], join([p[1] for p in f]), join([p[2] for p in f])) for f in steps]
    elif np.ndim(value):
      info[name] = jnp.concatenate(values)
    else:  # the same for every part
      info[name] = value
  return jnp.concatenate([x for x, _ in parts]), info


def stepping(
  solver: Solver,
  sde: SDE,
  steps: int | None,
  grid: str | None = None,
  *,
  eps: float | None = None,
  t_start: float | None = None,
  **options: Any,
) -> Sampler:
  """Returns the sampler of `steps` steps on the named grid, see `sampling.grid_for`. Passes `options` to `Sampler`."""
  eps = sde.eps if eps is None else eps
  times = grid_for(solver, sde, steps, grid, eps, t_start)
  return Sampler(sde, solver, times, eps=eps, t_start=t_start, **options)
