"""Guidance to a class: by a classifier of noisy data, or by a class-conditional network alone."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from score_sde.batch import Array, expand, fold, normal, uniform
from score_sde.guidance.posterior import Conditional
from score_sde.losses import uniform_times
from score_sde.sde import LinearSDE, Score

# Streams of an example's key.
TIME, NOISE = range(2)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """A network as p_t(y | x) of noisy data; it sees x and the noise-to-signal ratio sigma(t) / alpha(t).

  Attributes:
    sde: the SDE that the data is diffused by.
    network: (params, x, ratio (B,)) -> logits (B, classes).
    eps: smallest time of training.
    stratified: spread the times of a batch evenly.
    single_sigma: sigma / alpha of the only noise level it is trained at, in place of all: no guide then, but the better
      judge of images of little noise.
  """

  sde: LinearSDE
  network: Callable[..., Array]
  eps: float = 1e-5
  stratified: bool = False
  single_sigma: float | None = None

  def __post_init__(self):
    if not isinstance(self.sde, LinearSDE):
      raise ValueError(f"training.task='classifier' needs a linear SDE, not {type(self.sde).__name__}.")
    if not 0 < self.eps < self.sde.T:
      raise ValueError(f"training.eps must lie in (0, {self.sde.T}), got {self.eps}.")

  def logits(self, params: Any, x: Array, t: Array) -> Array:
    """log p_t(y | x) up to a constant, (B, classes)."""
    return self.network(params, x, self.sde.sigma(t) / self.sde.alpha(t))

  def at_time(self, params: Any, keys: Array, x0: Array, t: Array) -> Array:
    """Logits of `x0`, noisy as at times `t` (B,)."""
    mean, std = self.sde.marginal(x0, t)
    return self.logits(params, mean + expand(std, x0) * normal(fold(keys, NOISE), x0), t)

  def __call__(
    self, params: Any, keys: Array, x0: Array, index: Array, batch_size: int, train: bool = True, y: Array | None = None
  ) -> Array:
    """The training loss: -log p_t(y | x_t) (B,) in nats, times uniform in [eps, T] or that of `single_sigma`.

    Arguments are those of `ScoreMatching`.
    """
    u = uniform(fold(keys, TIME), jnp.zeros_like(x0, shape=x0.shape[:1]))
    if self.stratified:
      u = (u + index) / batch_size
    if self.single_sigma is None:
      t = uniform_times(self.sde, u, self.eps)
    else:
      t = self.sde.time_of_log_snr(jnp.full_like(u, -2 * math.log(self.single_sigma)))
    logits = self.at_time(params, keys, x0, t)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)


@functools.cache
def by_classifier(logits: Callable[..., Array], scale: float = 1.0) -> Conditional:
  """score(x, t) + scale grad log p_t(y | x). Song et al. 2021, eq. (14); Dhariwal & Nichol 2021 for the scale.

  `logits(params, x, t)` is a `Classifier`'s; condition_on(score, by_classifier(...), params) is the score(x, t, y) of
  classes y (B,). scale 0 is no guidance, 1 Bayes' rule; above, samples are surer of their class and less diverse.
  """
  _check_scale(scale)

  def conditional(score: Score, params: Any, x: Array, t: Array, y: Array) -> Array:
    log_p = lambda x: jnp.sum(-optax.softmax_cross_entropy_with_integer_labels(logits(params, x, t), y))
    return score(x, t) + scale * jax.grad(log_p)(x)

  return conditional


@functools.cache
def classifier_free(sde: LinearSDE, scale: float = 1.0, low: float = 0.0, high: float = math.inf) -> Conditional:
  """score(x, t) + scale [score(x, t, y) - score(x, t)], both by one network that knows "no class" (y < 0).

  Ho & Salimans 2022, eq. (6), whose w is scale - 1. Outside low <= sigma / alpha <= high the scale is 1, for one
  evaluation in place of two: guidance only harms at high noise and is lost at low (Kynkäänniemi et al. 2024).

  Raises:
    ValueError: for a negative scale or an empty interval.
  """
  _check_scale(scale)
  if not 0 <= low < high:
    raise ValueError(f"guidance.low={low} and guidance.high={high} must satisfy 0 <= low < high.")

  def conditional(score: Callable, x: Array, t: Array, y: Array) -> Array:
    ratio = sde.sigma(t) / sde.alpha(t)
    inside = (ratio >= low) & (ratio <= high)

    def both():
      with_class, without = jnp.split(score(*(jnp.concatenate(p) for p in ((x, x), (t, t), (y, -jnp.ones_like(y))))), 2)
      return without + expand(jnp.where(inside, scale, 1.0), x) * (with_class - without)

    if low == 0 and high == math.inf:
      return both()
    return jax.lax.cond(jnp.any(inside), both, lambda: score(x, t, y))

  return conditional


def _check_scale(scale: float) -> None:
  if not 0 <= scale < math.inf:
    raise ValueError(f"guidance.scale must not be negative, got {scale}.")
