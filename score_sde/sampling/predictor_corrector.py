"""The predictor-corrector sampler: Song et al. 2021, Algorithm 1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde import parallel
from score_sde.batch import Array, example_keys, fold
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.predictors import PREDICTORS
from score_sde.sde import SDE, LinearSDE, Score, as_argument, bind

# Steps a dispatch runs: long enough to hide the dispatch, short enough for a progress bar.
CHUNK = 50

# Streams of a sample's key: the prior, and each step's corrector and predictor.
PRIOR, STEPS = range(2)


def predictor_corrector(
  sde: SDE,
  grid: TimeGrid,
  *,
  predictor: str = "reverse_diffusion",
  corrector: str = "langevin",
  snr: float = 0.16,
  n_steps: int = 1,
  num_scales: int = 1000,
  official: bool = False,
  probability_flow: bool = False,
  batch_norms: bool = False,
  denoise: bool = True,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """Builds `sample(score, key, shape, ...) -> (x, info)`, compiled once for any number of steps.

  At every time of `grid` the corrector acts, then the predictor steps on.

  Args:
    sde: the forward SDE.
    grid: from `grids.make_grid`.
    predictor: a name in PREDICTORS.
    corrector: a name in CORRECTORS, with `snr`, `n_steps` (steps each time) and `num_scales` as described there.
    official: discretize by the published tables; belongs to the official grid.
    probability_flow: the predictor steps along the ODE, without noise.
    batch_norms: average Langevin's norms over the batch as the paper does. Samples then depend on their batch; without
      it each depends on its own key alone.
    denoise: leave out the noise of the last step.

  Returns:
    `sample(score, key, shape, first=0, frames=0, progress=None, condition=None)`: `shape` is (B, ...), sample i draws
    from fold_in(key, first + i); `progress(done, steps)` is called between chunks; with a `condition`, a pytree of
    (B, ...) arrays, the score is score(x, t, condition), as that of a class-conditional network. `info` holds `nfe`,
    the evaluations of the score per sample, `finite` (B,), whether each sample is, and, with `frames` > 0,
    `trajectory`: that many (t, x_t, x_mean) evenly spaced in steps.

  Raises:
    ValueError: for unknown names and pairs that cannot work.
  """
  for key, name, table in (("predictor", predictor, PREDICTORS), ("corrector", corrector, CORRECTORS)):
    if name not in table:
      raise ValueError(f"sampling.{key}={name!r} is unknown; choose one of {', '.join(table)}.")
  if predictor == corrector == "none":
    raise ValueError("sampling.predictor and sampling.corrector are both 'none': nothing would move the samples.")
  if predictor == "ancestral_sampling":
    if not isinstance(sde, LinearSDE):
      raise ValueError(f"Ancestral sampling needs a linear SDE, not {type(sde).__name__}; use 'euler_maruyama'.")
    if official and type(sde).chain is LinearSDE.chain:
      raise ValueError(
        f"sampling.predictor='ancestral_sampling' has no official grid for {type(sde).__name__}: the published code "
        "has no table for it. Use --config.sampling.grid=uniform."
      )
    if probability_flow:
      raise ValueError("sampling.probability_flow has no ancestral form; use 'euler_maruyama' or 'reverse_diffusion'.")
  steps = len(grid.t)

  def chunk(
    score: Score, batch: tuple[Array, Any], carry: tuple[Array, Array], times: Array, first: Array, count: Array
  ):
    """`count` steps from number `first`; `times` is a slice of the grid, (CHUNK, 3)."""
    keys, condition = batch
    score = bind(score, condition)
    predict = PREDICTORS[predictor](sde, score, official=official, probability_flow=probability_flow)
    average = parallel.batch_mean if batch_norms else None
    correct = CORRECTORS[corrector](sde, score, snr=snr, n_steps=n_steps, num_scales=num_scales, batch_mean=average)

    def step(i, carry):
      x, _ = carry
      step_keys = fold(fold(keys, STEPS), first + i)
      t, start, stop = (jnp.broadcast_to(times[i, j], x.shape[:1]) for j in range(3))
      x, _ = correct(fold(step_keys, 0), x, t)
      return predict(fold(step_keys, 1), x, t, start, stop)

    return jax.lax.fori_loop(0, count, step, carry)

  run_chunk = parallel.map_batch(chunk, (None, 0, 0, None, None, None), donate=(2,))
  draw_prior = parallel.map_batch(lambda keys, x: sde.prior_sample(fold(keys, PRIOR), x.shape, x.dtype), (0, 0))
  evaluations = steps * ((predictor != "none") + (corrector != "none") * n_steps)

  def sample(
    score: Score,
    key: Array,
    shape: tuple[int, ...],
    *,
    first: int = 0,
    frames: int = 0,
    progress: Callable[[int, int], None] | None = None,
    condition: Any = None,
  ) -> tuple[Array, dict[str, Any]]:
    score = as_argument(score)
    keys = parallel.shard(example_keys(key, first + jnp.arange(shape[0])))
    x = draw_prior(keys, jnp.zeros((*keys.shape, *shape[1:]), jnp.float32))
    batch = (keys, parallel.shard(condition))
    carry = (x, x + 0)  # two buffers, for both are donated
    stops = set(np.linspace(0, steps, frames + 1).round().astype(int)[1:]) if frames else set()
    trajectory = [(sde.T, np.asarray(parallel.unshard(x, shape[0])), None)] if frames else []
    done = 0
    while done < steps:
      count = min([CHUNK, steps - done, *(s - done for s in stops if s > done)])
      times = np.zeros((CHUNK, 3), np.float32)
      times[:count] = np.stack(grid, axis=1)[done : done + count]
      carry = run_chunk(score, batch, carry, times, done, count)
      done += count
      if done in stops:
        x, x_mean = (np.asarray(parallel.unshard(a, shape[0])) for a in carry)
        trajectory.append((float(grid.stop[done - 1]), x, x_mean))
      if progress:
        jax.block_until_ready(carry)
        progress(done, steps)
    x, x_mean = parallel.unshard(carry, shape[0])
    x = x_mean if denoise else x
    info = {"nfe": evaluations, "finite": jnp.all(jnp.isfinite(x.reshape(shape[0], -1)), axis=1)}
    return x, info | ({"trajectory": trajectory} if frames else {})

  return sample
