"""The loop that samplers of a fixed number of steps share: compiled once, run in chunks, over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import parallel
from score_sde.batch import Array, fold
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.sampler import STEPS, Sampler, all_finite, sampler
from score_sde.sde import SDE, Score, bind, denoiser

# Steps a dispatch runs: long enough to hide the dispatch, short enough for a progress bar.
CHUNK = 50

# (keys, number of the step, carry, t, start, stop) -> carry, whose first two entries are x and its mean.
Step = Callable[[Array, Array, tuple, Array, Array, Array], tuple]


def loop(
  sde: SDE,
  grid: TimeGrid,
  make_step: Callable[[Score], Step],
  *,
  evaluations: int,
  memory: Callable[[Array], tuple[Array, ...]] = lambda x: (),
  denoise: bool = True,
  tweedie: bool = False,
) -> Sampler:
  """Builds `sample(score, key, shape, ...) -> (x, info)`, compiled once for any number of steps.

  Args:
    sde: the forward SDE.
    grid: of the steps.
    make_step: makes the step of a score, inside jit.
    evaluations: of the score by all steps.
    memory: from x (devices, b, ...) to what else a step hands to the next one, as it is before the first.
    denoise: return the mean of the last step, without its noise.
    tweedie: return E[x_0 | x] at the last of the times instead (Tweedie's formula), for one evaluation more.

  Returns:
    `sample` as that of `sampler`; frames are evenly spaced in steps.
  """
  steps = len(grid.t)

  def chunk(score: Score, batch: tuple[Array, Any], carry: tuple, times: Array, first: Array, count: Array):
    """`count` steps from number `first`; `times` is a slice of the grid, (CHUNK, 3)."""
    keys, condition = batch
    step = make_step(bind(score, condition))

    def body(i, carry):
      t, start, stop = (jnp.broadcast_to(times[i, j], keys.shape) for j in range(3))
      return step(fold(fold(keys, STEPS), first + i), first + i, carry, t, start, stop)

    return jax.lax.fori_loop(0, count, body, carry)

  def last_denoising(score: Score, batch: tuple[Array, Any], x: Array) -> Array:
    t = jnp.full(x.shape[:1], grid.t[-1], x.dtype)
    return denoiser(sde, bind(score, batch[1]))(x, t)

  finish = parallel.map_batch(last_denoising, (None, 0, 0))
  run_chunk = parallel.map_batch(chunk, (None, 0, 0, None, None, None), donate=(2,))

  def run(score, batch, x, unshard, frames, progress):
    carry = (x, x + 0, *memory(x))  # a buffer each, for all are donated
    stops = set(np.linspace(0, steps, frames + 1).round().astype(int)[1:]) if frames else set()
    trajectory = [(sde.T, np.asarray(unshard(x)), None)] if frames else []
    done = 0
    while done < steps:
      count = min([CHUNK, steps - done, *(s - done for s in stops if s > done)])
      times = np.zeros((CHUNK, 3), x.dtype)
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
