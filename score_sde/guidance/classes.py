"""Guidance to a class, by a classifier or by a class-conditional network alone; and by a weaker model of the data."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from score_sde.batch import Array, Batch, Keys, Logits, PerExample, Time, expand, fold, normal
from score_sde.conditions import nothing_like
from score_sde.errors import InvalidArgument
from score_sde.losses import draw_uniform, uniform_times
from score_sde.options import Options, check_interval, option
from score_sde.sde import SDE, LinearSDE, Score, as_argument, linear

# Stream of an example's key for its noise; `draw_uniform` has the one before it.
NOISE = 1

SCALE = "strength of guidance: 0 is none, 1 Bayes' rule; of autoguidance, 0 is the weak model, 1 none"


@dataclasses.dataclass(frozen=True)
class Classifier(Options):
  """Classifier p_t(y | x) of noisy data. The network takes x and the noise-to-signal ratio sigma(t) / alpha(t).

  Attributes:
    sde: the SDE that diffuses the data, a linear one.
    network: (params, x, ratio (B,)) -> logits (B, classes).
    eps: smallest time of training.
    stratified: spread the times of a batch evenly.
    single_sigma: sigma / alpha of one noise level for training, in place of all levels. Such a classifier cannot guide
      sampling, but it judges images with little noise better.

  Raises:
    InvalidArgument: for an SDE that is not linear, or an eps outside (0, T).
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

  def logits(self, params: Any, x: Batch, t: Time) -> Logits:
    """Returns log p_t(y | x) up to a constant, (B, classes)."""
    return self.network(params, x, self.sde.sigma(t) / self.sde.alpha(t))

  def at_time(self, params: Any, keys: Array, x0: Array, t: Array) -> Array:
    """Adds the noise of times `t` (B,) to `x0` (B, ...) and returns the logits (B, classes)."""
    mean, std = self.sde.marginal(x0, t)
    return self.logits(params, mean + expand(std, x0) * normal(fold(keys, NOISE), x0), t)

  def __call__(
    self, params: Any, keys: Keys, x0: Batch, index: Array, batch_size: int, train: bool = True, y: Array | None = None
  ) -> PerExample:
    """Returns the training loss -log p_t(y | x_t), (B,), in nats. Takes the arguments of `ScoreMatching`.

    Times are uniform in [eps, T], or equal to that of `single_sigma`.
    """
    u = draw_uniform(keys, x0, index, batch_size, self.stratified)
    if self.single_sigma is None:
      t = uniform_times(self.sde, u, self.eps)
    else:
      t = self.sde.time_of_log_snr(jnp.full_like(u, -2 * math.log(self.single_sigma)))
    logits = self.at_time(params, keys, x0, t)
    return optax.softmax_cross_entropy_with_integer_labels(logits, cast(Array, y))


@dataclasses.dataclass(frozen=True)
class ByClassifier(Options):
  """Classifier guidance: score(x, t) + scale grad log p_t(y | x). Song et al. 2021, eq. (14).

  `logits(params, x, t)` is the method of a `Classifier`. condition_on(score, ByClassifier(...), params) returns
  score(x, t, y) for classes y (B,). Scale 0 is no guidance, and 1 is Bayes' rule. Above 1, samples show their class
  more clearly and are less diverse (Dhariwal & Nichol 2021).
  """

  logits: Callable[..., Array]
  scale: float = option(1.0, SCALE, "[0, inf)")

  def __call__(self, score: Score, params: Any, x: Batch, t: Time, y: Array) -> Batch:
    log_p = lambda x: jnp.sum(-optax.softmax_cross_entropy_with_integer_labels(self.logits(params, x, t), y))
    return score(x, t) + self.scale * jax.grad(log_p)(x)


@dataclasses.dataclass(frozen=True)
class _Extrapolated(Options):
  """Base of guidance that extrapolates from one score through another: first + scale (second - first).

  Raises:
    InvalidArgument: for an SDE that is not linear, a negative scale or an empty interval.
  """

  sde: SDE
  scale: float = option(1.0, SCALE, "[0, inf)")
  low: float = option(0.0, "sigma / alpha above which classifier_free and autoguidance guide", "[0, inf)")
  high: float = option(math.inf, "sigma / alpha below which classifier_free and autoguidance guide", "(0, inf]")

  def __post_init__(self) -> None:
    super().__post_init__()
    linear(self.sde, "Guidance by a difference of scores")
    check_interval(self, "low", "high")

  def _mixed(self, x: Batch, t: Time, both: Callable[[], tuple[Array, Array]], alone: Callable[[], Array]) -> Batch:
    """Returns the guided score from `both` scores, (first, second), inside the interval, and outside it `alone`."""
    sde = linear(self.sde, "Guidance by a difference of scores")
    ratio = sde.sigma(t) / sde.alpha(t)
    inside = (ratio >= self.low) & (ratio <= self.high)

    def guided() -> Array:
      first, second = both()
      return first + expand(jnp.where(inside, self.scale, 1.0), x) * (second - first)

    if self.low == 0 and self.high == math.inf:
      return guided()
    return jax.lax.cond(jnp.any(inside), guided, alone)


@dataclasses.dataclass(frozen=True)
class ClassifierFree(_Extrapolated):
  """Classifier-free guidance: score(x, t) + scale [score(x, t, y) - score(x, t)].

  One network gives both scores, the second one for a y that is not given, see `score_sde.conditions`. Ho & Salimans
  2022, eq. (6); their w is scale - 1. Outside low <= sigma / alpha <= high the scale is 1, which takes one evaluation
  instead of two. There guidance is harmful (high noise) or useless (low noise), see Kynkäänniemi et al. 2024.

  Raises:
    InvalidArgument: for an SDE that is not linear, a negative scale or an empty interval.
  """

  def __call__(self, score: Callable[..., Array], x: Batch, t: Time, y: Any) -> Batch:
    def both() -> tuple[Array, Array]:
      twice = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x, t, y), (x, t, nothing_like(y)))
      given, without = jnp.split(score(*twice), 2)
      return without, given

    return self._mixed(x, t, both, lambda: score(x, t, y))


@dataclasses.dataclass(frozen=True)
class Autoguidance(_Extrapolated):
  """Autoguidance: weak(x, t) + scale [score(x, t) - weak(x, t)], with the score of a weaker model of the same data.

  The weaker model is smaller or trained for less time, and makes the errors of `score` to a higher degree. Going on
  from it through `score` corrects them, with classes or without. Unlike classifier-free guidance it does not move the
  samples to a class, so they stay as diverse. Karras et al. 2024 (Guiding a diffusion model with a bad version of
  itself), eq. (4). Outside low <= sigma / alpha <= high the scale is 1, which takes one evaluation instead of two.

  Raises:
    InvalidArgument: for an SDE that is not linear, a negative scale or an empty interval.

  Example:
    >>> import jax, score_sde as ss
    >>> guided = ss.guidance.Autoguidance(ss.VP(), scale=2.0).of(lambda x, t: -x, lambda x, t: -0.8 * x)
    >>> ss.sample(jax.random.key(0), ss.VP(), guided, (4, 2), solver=ss.UniPC(), steps=10).shape
    (4, 2)
  """

  def of(self, score: Score, weak: Score) -> jax.tree_util.Partial:
    """Returns the guided score(x, t) of `score` and the `weak` one; with classes, score(x, t, y)."""
    return jax.tree_util.Partial(self, as_argument(score), as_argument(weak))

  def __call__(self, score: Callable[..., Array], weak: Callable[..., Array], x: Batch, t: Time, *y: Array) -> Batch:
    return self._mixed(x, t, lambda: (weak(x, t, *y), score(x, t, *y)), lambda: score(x, t, *y))
