"""What all samplers share: the keys of their samples, what they start from, and the batch spread over devices."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from score_sde.batch import Array, example_keys, fold
from score_sde.run import devices
from score_sde.sde import SDE, Score, as_argument

# Streams of a sample's key: the prior, and each step.
PRIOR, STEPS = range(2)

Sampler = Callable[..., tuple[Array, dict[str, Any]]]


def sampler(sde: SDE, run: Callable[..., tuple[Array, dict[str, Any]]]) -> Sampler:
  """Builds `sample(score, key, shape, ...) -> (x, info)` from what one method does with a sharded batch.

  Args:
    sde: the forward SDE.
    run: (score, (keys, condition), x, unshard, frames, progress) -> (x, info): keys, condition and the noise x come
      sharded, x and info go out as `unshard` makes them.

  Returns:
    `sample(score, key, shape, first=0, frames=0, progress=None, condition=None, start=None, dtype=float32)`: `shape`
    is (B, ...), sample i draws from fold_in(key, first + i); `progress(done, steps)` is called now and then; with a
    `condition`, a pytree of (B, ...) arrays, the score is score(x, t, condition), as that of a class-conditional
    network; `start` (B, ...) is what samples start from at T, in place of the SDE's prior. `info` holds `nfe`, the
    evaluations of the score per sample, `finite` (B,), whether each sample is, and, with `frames` > 0, `trajectory`:
    that many (t, x_t, x_mean) after the first.
  """
  draw_prior = devices.map_batch(lambda keys, x: sde.prior_sample(fold(keys, PRIOR), x.shape, x.dtype), (0, 0))

  def sample(
    score: Score,
    key: Array,
    shape: tuple[int, ...],
    *,
    first: int = 0,
    frames: int = 0,
    progress: Callable[[int, int], None] | None = None,
    condition: Any = None,
    start: Array | None = None,
    dtype: jnp.dtype = jnp.float32,
  ) -> tuple[Array, dict[str, Any]]:
    if start is not None and start.shape != shape:
      raise ValueError(f"start must have the samples' shape {shape}, got {start.shape}.")
    if start is None and not sde.has_prior:
      raise ValueError(
        f"{type(sde).__name__} has no closed-form prior: give start, end points x_T that `simulate` makes of data."
      )
    keys = devices.shard(example_keys(key, first + jnp.arange(shape[0])))
    if start is None:
      x = draw_prior(keys, jnp.zeros((*keys.shape, *shape[1:]), dtype))
    else:
      x = devices.shard(jnp.asarray(start, dtype))
    unshard = lambda tree: devices.unshard(tree, shape[0])
    return run(as_argument(score), (keys, devices.shard(condition)), x, unshard, frames, progress)

  return sample


def all_finite(x: Array) -> Array:
  """(B,): whether every number of an example is finite."""
  return jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
