"""Guidance to a class: by a classifier of noisy data, or by a class-conditional network alone."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from score_sde.batch import Array, expand, fold, normal, uniform
from score_sde.errors import InvalidArgument
from score_sde.losses import uniform_times
from score_sde.options import Options, option
from score_sde.sde import SDE, LinearSDE, Score, linear

# Streams of an example's key.
TIME, NOISE = range(2)


@dataclasses.dataclass(frozen=True)
class Classifier(Options):
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
  eps: float = option(1e-5, "smallest time of training", "(0, inf)")
  stratified: bool = option(False, "spread the times of a batch evenly")
  single_sigma: float | None = option(
    None, "sigma / alpha of the one noise level", "(0, inf)", needs={"time_sampling": ("single",)}
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    linear(self.sde, "A classifier of noisy data")
    if not self.eps < self.sde.T:
      raise InvalidArgument(f"eps={self.eps} must lie in (0, {self.sde.T}).", "eps")

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
    return optax.softmax_cross_entropy_with_integer_labels(logits, cast(Array, y))


@dataclasses.dataclass(frozen=True)
class ByClassifier(Options):
  """score(x, t) + scale grad log p_t(y | x). Song et al. 2021, eq. (14); Dhariwal & Nichol 2021 for the scale.

  `logits(params, x, t)` is a `Classifier`'s; condition_on(score, ByClassifier(...), params) is the score(x, t, y) of
  classes y (B,). scale 0 is no guidance, 1 Bayes' rule; above, samples are surer of their class and less diverse.
  """

  logits: Callable[..., Array]
  scale: float = option(1.0, "strength of guidance: 0 is none, 1 Bayes' rule", "[0, inf)")

  def __call__(self, score: Score, params: Any, x: Array, t: Array, y: Array) -> Array:
    log_p = lambda x: jnp.sum(-optax.softmax_cross_entropy_with_integer_labels(self.logits(params, x, t), y))
    return score(x, t) + self.scale * jax.grad(log_p)(x)


@dataclasses.dataclass(frozen=True)
class ClassifierFree(Options):
  """score(x, t) + scale [score(x, t, y) - score(x, t)], both by one network that knows "no class" (y < 0).

  Ho & Salimans 2022, eq. (6), whose w is scale - 1. Outside low <= sigma / alpha <= high the scale is 1, for one
  evaluation in place of two: guidance only harms at high noise and is lost at low (Kynkäänniemi et al. 2024).

  Raises:
    InvalidArgument: for a negative scale or an empty interval.
  """

  sde: SDE
  scale: float = option(1.0, "strength of guidance: 0 is none, 1 Bayes' rule", "[0, inf)")
  low: float = option(0.0, "sigma / alpha above which classifier_free guides", "[0, inf)")
  high: float = option(math.inf, "sigma / alpha below which classifier_free guides", "(0, inf]")

  def __post_init__(self) -> None:
    super().__post_init__()
    linear(self.sde, "Classifier-free guidance")
    if not self.low < self.high:
      raise InvalidArgument(f"low={self.low} and high={self.high} must satisfy 0 <= low < high.", "low", "high")

  def __call__(self, score: Callable[..., Array], x: Array, t: Array, y: Array) -> Array:
    sde = linear(self.sde, "Classifier-free guidance")
    ratio = sde.sigma(t) / sde.alpha(t)
    inside = (ratio >= self.low) & (ratio <= self.high)

    def both() -> Array:
      with_class, without = jnp.split(score(*(jnp.concatenate(p) for p in ((x, x), (t, t), (y, -jnp.ones_like(y))))), 2)
      return without + expand(jnp.where(inside, self.scale, 1.0), x) * (with_class - without)

    if self.low == 0 and self.high == math.inf:
      return both()
    return jax.lax.cond(jnp.any(inside), both, lambda: score(x, t, y))
