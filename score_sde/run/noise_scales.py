"""Noise levels and Langevin steps for a data set: Techniques 1, 2 and 4 of NCSNv2 (Song & Ermon 2020)."""

import logging
import math
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import Array, example_keys
from score_sde.run import data
from score_sde.run.config import resolve
from score_sde.run.report.progress import Bar

log = logging.getLogger(__name__)

# Rows per block that are compared with all others.
ROWS = 512


@jax.jit
def _largest_squared(rows: Array, x: Array) -> Array:
  square = lambda a: jnp.sum(a * a, axis=1)
  return jnp.max(square(rows)[:, None] + square(x)[None, :] - 2 * rows @ x.T)


def largest_distance(x: Array) -> float:
  """Returns the largest Euclidean distance between two rows of `x` (N, D). Technique 1: it is sigma_max."""
  largest = 0.0
  with Bar("distances", len(x), " examples") as bar:
    for i in range(0, len(x), ROWS):
      largest = max(largest, float(_largest_squared(x[i : i + ROWS], x)))
      bar.step(min(i + ROWS, len(x)), len(x))
  return math.sqrt(largest)


def ratio(dims: int, overlap: float = 0.5) -> float:
  """Returns the ratio gamma = sigma_i / sigma_{i+1} at which neighbouring levels overlap. Technique 2.

  In `dims` dimensions, the radius of noise of level sigma is nearly N(sqrt(dims) sigma, sigma² / 2). At gamma, a sample
  of one level is within three standard deviations of the next level's radius with probability `overlap`.
  """
  cdf = NormalDist().cdf
  meet = lambda g: cdf(math.sqrt(2 * dims) * (g - 1) + 3 * g) - cdf(math.sqrt(2 * dims) * (g - 1) - 3 * g)
  low, high = 1.0, 100.0
  for _ in range(200):
    middle = (low + high) / 2
    low, high = (middle, high) if meet(middle) > overlap else (low, middle)
  return low


def langevin_step(gamma: float, steps: int) -> float:
  """Returns the e = epsilon / sigma_min² with which `steps` Langevin steps end nearest to a level's variance.

  Technique 4. A step is x + alpha score + sqrt(2 alpha) z, alpha = epsilon sigma² / sigma_min². After T steps the
  variance divided by sigma² is (1 - e)^(2T) (gamma² - 2e / (1 - (1 - e)²)) + 2e / (1 - (1 - e)²).
  """
  e = np.geomspace(1e-6, 0.9, 100_000)
  stationary = 2 * e / (1 - (1 - e) ** 2)
  variance = (1 - e) ** (2 * steps) * (gamma**2 - stationary) + stationary
  return float(e[np.argmin(np.abs(variance - 1))])


def suggest_sigmas(config: ConfigDict, examples: int = 10_000) -> dict[str, float]:
  """Prints and returns the settings that the techniques suggest for the data of `config`, as {dotted key: value}.

  They come from the first `examples` training examples. model.sigma_max is the largest distance between two examples.
  model.num_scales is the length of a geometric sequence down to model.sigma_min. sampling.snr is for the "ald"
  corrector, whose step is alpha = 2 snr² sigma², with the config's sampling.n_steps_each (5 if that is 1).
  """
  config = resolve(config)
  source = data.load(config, "train")
  count = min(examples, len(source))
  image = source.gather(np.arange(count))["image"]
  keys = example_keys(jax.random.key(config.seed), jnp.arange(count))
  x = data.scaling_of(config).prepare(keys, jnp.asarray(image)).reshape(count, -1)
  sigma_max, dims = largest_distance(x), x.shape[1]
  gamma = ratio(dims)
  levels = max(2, 1 + round(math.log(sigma_max / config.model.sigma_min) / math.log(gamma)))
  steps = config.sampling.n_steps_each if config.sampling.n_steps_each > 1 else 5
  step = langevin_step(gamma, steps)
  found = {
    "model.sigma_max": round(sigma_max, 2),
    "model.num_scales": levels,
    "sampling.n_steps_each": steps,
    "sampling.snr": round(math.sqrt(step / 2), 4),
  }
  epsilon = step * config.model.sigma_min**2
  print(
    f"{config.data.dataset}: {dims} dimensions, {count} of {len(source)} training examples, sigma_min "
    f"{config.model.sigma_min}, ratio {gamma:.4f}, Langevin step {epsilon:.2e}\n"
    + " ".join(f"--config.{k}={v}" for k, v in found.items()),
    flush=True,
  )
  return found
