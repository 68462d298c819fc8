"""The loop that samplers of a fixed number of steps share: compiled once, run in chunks, over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, fold
from score_sde.run import devices
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.sampler import STEPS, Sampler, all_finite, sampler
from score_sde.sde import SDE, LinearSDE, Score, bind, denoiser

# Steps a dispatch runs: long enough to hide the dispatch, short enough for a progress bar.
CHUNK = 50

# Stream of a step's key that a constraint draws from.
CONSTRAINT = 2

# (keys, number of the step, carry, t, start, stop) -> carry, whose first two entries are x and its mean.
Step = Callable[[Array, Array, tuple, Array, Array, Array], tuple]

# (keys, x, x_mean, t) -> (x, x_mean): what acts on the state after every update, see `guidance.constraints`.
Constrain = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def loop(
  sde: SDE,
  grid: TimeGrid,
  make_step: Callable[[Score, Any], Step],
  *,
  evaluations: int,
  constrained: bool = False,
  differentiated: bool = False,
  memory: Callable[[Array], tuple[Array, ...]] = lambda x: (),
  denoise: bool = True,
  tweedie: bool = False,
) -> Sampler:
  """Builds `sample(score, key, shape, ...) -> (x, info)`, compiled once for any number of steps.

  Args:
    sde: the forward SDE.
    grid: of the steps.
    make_step: makes the step of a score(x, t) and the batch's condition, inside jit.
    evaluations: of the score by all steps.
    constrained: the condition is that of the steps alone; the score is score(x, t) without it.
    differentiated: the score holds the derivative of a network. XLA's CPU backend computes that of a convolution five
      times slower inside a loop, so there a dispatch runs a single step.
    memory: from x (b, ...) to what else a step hands to the next one, as it is before the first.
    denoise: return the mean of the last step, without its noise.
    tweedie: return E[x_0 | x] at the last of the times instead (Tweedie's formula), for one evaluation more.

  Returns:
    `sample` as that of `sampler`; frames are evenly spaced in steps.
  """
  steps = len(grid.t)
  at_once = 1 if differentiated and devices.on_cpu() else CHUNK
  bound = lambda score, condition: bind(score, None if constrained else condition)

  def chunk(score: Score, batch: tuple[Array, Any], carry: tuple, times: Array, first: Array, count: Array):
    """`count` steps from number `first`; `times` is a slice of the grid, (at_once, 3)."""
    keys, condition = batch
    step = make_step(bound(score, condition), condition)

    def body(i, carry):
      t, start, stop = (jnp.broadcast_to(times[i, j], keys.shape) for j in range(3))
      return step(fold(fold(keys, STEPS), first + i), first + i, carry, t, start, stop)

    return body(0, carry) if at_once == 1 else jax.lax.fori_loop(0, count, body, carry)

  def last_denoising(score: Score, batch: tuple[Array, Any], x: Array) -> Array:
    t = jnp.full(x.shape[:1], grid.t[-1], x.dtype)
    return denoiser(sde, bound(score, batch[1]))(x, t)

  # A buffer each, for all are donated; sharded as the steps return them, or the second dispatch would compile again.
  begin = devices.map_batch(lambda x: (x, x + 0, *memory(x)), (0,))
  finish = devices.map_batch(last_denoising, (None, 0, 0))
  run_chunk = devices.map_batch(chunk, (None, 0, 0, None, None, None), donate=(2,))

  def run(score, batch, x, unshard, frames, progress):
    carry = begin(x)
    stops = set(np.linspace(0, steps, frames + 1).round().astype(int)[1:]) if frames else set()
    trajectory = [(float(grid.start[0]), np.asarray(unshard(x)), None)] if frames else []
    done = 0
    while done < steps:
      count = min([at_once, steps - done, *(s - done for s in stops if s > done)])
      times = np.zeros((at_once, 3), x.dtype)
      times[:count] = np.stack(grid, axis=1)[done : done + count]
      carry = run_chunk(score, batch, carry, times, done, count)
      done += count
      if done in stops:
        x, x_mean = (np.asarray(unshard(a)) for a in carry[:2])
        trajectory.append((float(grid.stop[done - 1]), x, x_mean))
      if progress:
        jax.block_until_ready(carry)
        progress(done, steps)
    x = unshard(finish(score, batch, carry[0]) if tweedie else carry[1 if denoise else 0])
    info = {"nfe": evaluations + tweedie, "finite": all_finite(x)}
    return x, info | ({"trajectory": trajectory} if frames else {})

  return sampler(sde, run)


def constrained_step(make_step: Callable[[Score], Step], constrain: Callable[[Any], Constrain] | None):
  """`make_step(score, condition)` of steps after each of which the condition's constraint, if any, acts."""
  if constrain is None:
    return lambda score, condition: make_step(score)

  def make(score: Score, condition: Any) -> Step:
    step, act = make_step(score), constrain(condition)

    def both(keys, i, carry, t, start, stop):
      x, x_mean, *memory = step(keys, i, carry, t, start, stop)
      return *act(fold(keys, CONSTRAINT), x, x_mean, stop), *memory

    return both

  return make


def chained(method: str, sde: SDE, grid: TimeGrid) -> None:
  """Raises ValueError unless the SDE is linear and each of the grid's steps begins where the one before ended."""
  if not isinstance(sde, LinearSDE):
    raise ValueError(f"sampling.method={method!r} needs a linear SDE, not {type(sde).__name__}; use 'ode' or 'pc'.")
  if (grid.start[1:] != grid.stop[:-1]).any() or (grid.t != grid.start).any():
    raise ValueError(f"sampling.method={method!r} needs steps that chain; use --config.sampling.grid=log_snr.")
