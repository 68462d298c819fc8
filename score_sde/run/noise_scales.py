"""Noise levels and Langevin steps for a data set: Techniques 1, 2 and 4 of NCSNv2 (Song & Ermon 2020)."""

import dataclasses
import logging
import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import Array
from score_sde.run import data
from score_sde.run.config import BadInput, resolve
from score_sde.run.report.progress import Bar

log = logging.getLogger(__name__)

# Examples that are compared: at most this many, of at most this many bytes together as they are stored.
EXAMPLES, EXAMPLE_BYTES = 10_000, 1 << 30
# Rows per block of which all pairs are compared at once, and the size of such a block in bytes, as floats.
ROWS, BLOCK_BYTES = 1024, 64 << 20


@jax.jit
def _largest_squared(a: Array, b: Array) -> Array:
  square = lambda x: jnp.sum(x * x, axis=1)
  return jnp.max(square(a)[:, None] + square(b)[None, :] - 2 * a @ b.T)


def largest_distance(x: np.ndarray, prepare: Callable[[Any], Any] = jnp.asarray) -> float:
  """Returns the largest Euclidean distance between two of the N examples of `x`. Technique 1: it is sigma_max.

  `prepare` maps a block of `x` (n, ...) to floats. Only two blocks of floats are in memory at a time.
  """
  n, dims = len(x), math.prod(x.shape[1:])
  rows = max(1, min(ROWS, BLOCK_BYTES // (4 * dims), n))
  last = lambda i: min(max(n - rows, 0), i)  # the last block is as long as the others: one shape, compiled once
  block = jax.jit(lambda part: jnp.reshape(prepare(part), (rows, dims)))
  largest = 0.0
  with Bar("distances", n, " examples") as bar:
    for i in range(0, n, rows):
      here = block(x[last(i) : last(i) + rows])
      for j in range(i, n, rows):
        largest = max(largest, float(_largest_squared(here, block(x[last(j) : last(j) + rows]))))
      bar.step(min(i + rows, n), n)
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


def suggest_sigmas(config: ConfigDict, examples: int = EXAMPLES) -> dict[str, Any]:
  """Prints and returns the settings that the techniques suggest for the data of `config`, as {dotted key: value}.

  They come from `examples` training examples, drawn at random; fewer if those are larger than a GiB. Images are on the
  scale on which VE trains: [0, 1], unless the config sets data.centered. model.sigma_max is the largest distance
  between two examples. model.num_scales is the length of a geometric sequence down to model.sigma_min. sampling.snr is
  that of NCSN's sampler, whose step is alpha = 2 snr² sigma², with the config's sampling.n_steps_each (5 if that is 1).
  A config that can train under VE accepts all of them.

  Raises:
    BadInput: if the examples are too close to each other for a sequence of levels.
  """
  centered = bool(config.data.centered)
  config = resolve(config)
  source = data.load(config, "train")
  dims = math.prod(data.example_shape(config))
  count = min(examples, len(source), max(2, EXAMPLE_BYTES // (dims * (1 if data.is_image(config) else 4))))
  chosen = data.shuffled(config.seed, len(source), np.arange(count))  # a set may be sorted by class
  image = source.gather(chosen)["image"]
  scaling = dataclasses.replace(data.scaling_of(config), uniform_dequantization=False, centered=centered)
  sigma_max = largest_distance(image, lambda part: scaling.prepare(None, part))
  if round(sigma_max, 2) <= config.model.sigma_min:
    raise BadInput(
      f"The largest distance between {count} training examples is {sigma_max:.3g}, not above model.sigma_min="
      f"{config.model.sigma_min}: there is no sequence of noise levels between the two. Use more examples, or a "
      "smaller model.sigma_min."
    )
  gamma = ratio(dims)
  levels = max(2, 1 + round(math.log(sigma_max / config.model.sigma_min) / math.log(gamma)))
  steps = config.sampling.n_steps_each if config.sampling.n_steps_each > 1 else 5
  step = langevin_step(gamma, steps)
  found: dict[str, Any] = {} if config.training.sde == "vesde" else {"training.sde": "vesde"}
  found |= {
    "model.sigma_max": round(sigma_max, 2),
    "model.num_scales": levels,
    "sampling.method": "ncsn",
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
