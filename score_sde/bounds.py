"""Bounds of the log-likelihood (the evidence lower bound and DDPM's bound), and of the KL divergence to the data.

They hold for the distribution of the reverse-time SDE. The likelihood of the probability-flow ODE is in `likelihood`.
With z the noise of x_t = alpha x + sigma z, every term is a multiple of |z + sigma score(x_t, t)|². Time is drawn
uniformly in lambda = log_snr, because the weight of the continuous bound is then constant.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.analytic import GaussianMixture
from score_sde.batch import Array, Batch, Keys, PerExample, expand, fold, normal, sum_over_dims, uniform
from score_sde.losses import importance_times
from score_sde.options import Options, option
from score_sde.sampling.sample import check_times
from score_sde.sde import SDE, LinearSDE, Score, linear

# Streams of an example's key.
TIME, NOISE, LAST = range(3)


def _prior_divergence(x: Array, alpha: Array | float, sigma: Array | float, std: float) -> Array:
  """Returns KL(N(alpha x, sigma² I) ‖ N(0, std² I)), (B,)."""
  dims, ratio = math.prod(x.shape[1:]), (sigma / std) ** 2
  return dims / 2 * (ratio - 1 - jnp.log(ratio)) + (alpha / std) ** 2 * sum_over_dims(x**2) / 2


def _noise_error(sde: LinearSDE, score: Score, x: Array, z: Array, t: Array) -> Array:
  """Returns |z + sigma score(alpha x + sigma z, t)|², (B,)."""
  mean, sigma = sde.marginal(x, t)
  sigma = expand(sigma, x)
  return sum_over_dims((z + sigma * score(mean + sigma * z, t)) ** 2)


@dataclasses.dataclass(frozen=True)
class EvidenceBound(Options):
  """Unbiased estimate of a lower bound of log p(x) in nats, under the reverse-time SDE of a linear SDE.

      log p(x) >= -KL(q(x_T | x) ‖ prior) - ½ ∫ E|z + sigma score|² d lambda + E log N(x; D(x_eps), (sigma/alpha)² I)

  lambda runs from its value at T to its value at eps. The `num_times` times of each example are stratified in it. The
  bound is tight for the exact score. Song et al. 2021b (ScoreFlow), Theorem 3, with the step from x_eps to x as
  reconstruction; Kingma et al. 2021.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> ss.EvidenceBound()(ss.VP(), lambda x, t: -x, keys, jnp.zeros((4, 2))).shape
    (4,)
  """

  eps: float = option(1e-5, "time of the data", "(0, inf)")
  num_times: int = option(64, "noise levels per example", "[1, inf)")

  @property
  def evaluations(self) -> int:
    """Returns the number of evaluations of the score per example."""
    return self.num_times + 1

  def __call__(self, sde: SDE, score: Score, keys: Keys, x: Batch) -> PerExample:
    """Returns the bound (B,) of x (B, ...), with keys (B,).

    Raises:
      InvalidArgument: for an SDE that is not linear, or an eps outside (0, T).
    """
    sde = linear(sde, "The evidence lower bound")
    check_times(sde, self.eps, sde.T)
    dims = math.prod(x.shape[1:])
    u = uniform(fold(keys, TIME), jnp.zeros(x.shape[:1], x.dtype))

    def at(k: Array) -> Array:
      t, range_of_lambda = importance_times(sde, (u + k) / self.num_times, self.eps)
      return 0.5 * range_of_lambda * _noise_error(sde, score, x, normal(fold(fold(keys, NOISE), k), x), t)

    diffusion = jnp.mean(jax.lax.map(at, jnp.arange(self.num_times)), axis=0)
    last, end = jnp.full(x.shape[:1], self.eps, x.dtype), jnp.full((), sde.T, x.dtype)
    std = sde.sigma(last) / sde.alpha(last)
    error = _noise_error(sde, score, x, normal(fold(keys, LAST), x), last)
    reconstruction = dims / 2 * jnp.log(2 * math.pi * std**2) + error / 2
    return -(_prior_divergence(x, sde.alpha(end), sde.sigma(end), sde.prior_std) + diffusion + reconstruction)


@dataclasses.dataclass(frozen=True)
class ChainBound(Options):
  """Lower bound of log P(x) of discrete images in nats, under the chain of a discrete model.

      -log P(x) <= KL(q(x_N | x) ‖ prior) + sum_i KL(q(x_i-1 | x_i, x) ‖ p(x_i-1 | x_i)) - log P(x | x_1)

  The terms are DDPM's L_T, L_i-1 and L_0. Each of the model's `num_scales` noise levels uses one noise sample. L_0 is
  a Gaussian about the denoised image, integrated over the bin of the gray level. The `levels` gray levels are evenly
  spaced from `low` to `high`, and the two outer bins are open. Ho et al. 2020, eq. (5) and (13). Also works for a
  discrete VE model.

  `posterior_variance` is the variance of p(x_i-1 | x_i), as in ancestral sampling: False is DDPM's beta, None and True
  are the posterior's.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> keys = jax.random.split(jax.random.key(0), 2)
    >>> ss.ChainBound(num_scales=100)(ss.VP(), lambda x, t: -x, keys, jnp.zeros((2, 4, 4, 1))).shape
    (2,)
  """

  num_scales: int = 1000
  low: float = -1.0
  high: float = 1.0
  levels: int = 256
  posterior_variance: bool | None = option(None, "variance of a step: False is the chain's (beta)")

  @property
  def evaluations(self) -> int:
    """Returns the number of evaluations of the score per example."""
    return self.num_scales

  def __call__(self, sde: SDE, score: Score, keys: Keys, x: Batch) -> PerExample:
    """Returns the bound (B,) of x (B, ...), with keys (B,).

    Raises:
      InvalidArgument: for an SDE that is not linear or has no discrete noise levels.
    """
    sde = linear(sde, "The bound of a discrete chain")
    alpha, sigma = sde.levels(self.num_scales)
    order = np.argsort(sigma / alpha)
    alpha, sigma = alpha[order], sigma[order]
    ratio = alpha[1:] / alpha[:-1]
    added = sigma[1:] ** 2 - (ratio * sigma[:-1]) ** 2
    posterior = added * (sigma[:-1] / sigma[1:]) ** 2
    model = added if self.posterior_variance is False else posterior
    gain = (alpha[:-1] * added / sigma[1:] ** 2) ** 2 / (2 * model) * (sigma[1:] / alpha[1:]) ** 2
    constant = (posterior / model - 1 - np.log(posterior / model)).sum() / 2
    half_bin = (self.high - self.low) / (self.levels - 1) / 2
    dims = math.prod(x.shape[1:])
    table = lambda values: jnp.asarray(values, x.dtype)

    def noised(i: Array | int) -> tuple[Array, Array]:
      """Returns (noise, score) at the i-th level, counted from the least noisy one."""
      z = normal(fold(fold(keys, NOISE), i), x)
      # Slightly later than the level's time, so that float32 rounding does not lower its index by one.
      t = jnp.full(x.shape[:1], jnp.minimum((i + 2e-4) / (self.num_scales - 1), 1) * sde.T, x.dtype)
      return z, score(table(alpha)[i] * x + table(sigma)[i] * z, t)

    def step(i: Array) -> Array:
      z, s = noised(i + 1)
      return table(gain)[i] * sum_over_dims((z + table(sigma)[i + 1] * s) ** 2)

    total = jnp.sum(jax.lax.map(step, jnp.arange(self.num_scales - 1)), axis=0) + dims * constant
    z, s = noised(0)
    std = float(sigma[0] / alpha[0])
    off = -std * (z + float(sigma[0]) * s)  # x minus the denoised image
    upper = jnp.where(x > self.high - half_bin, jnp.inf, (off + half_bin) / std)
    lower = jnp.where(x < self.low + half_bin, -jnp.inf, (off - half_bin) / std)
    # Moves both limits to the negative side: on the positive side, the difference of the two cdfs would round to zero.
    lower, upper = jnp.where(lower > 0, -upper, lower), jnp.where(lower > 0, -lower, upper)
    above, below = jax.scipy.special.log_ndtr(upper), jax.scipy.special.log_ndtr(lower)
    inside = above + jnp.log(jnp.maximum(-jnp.expm1(below - above), 1e-30))
    end = _prior_divergence(x, float(alpha[-1]), float(sigma[-1]), sde.prior_std)
    return sum_over_dims(inside) - total - end


def score_error(sde: LinearSDE, exact: Score, score: Score, key: Array, x: Array, times: Array) -> Array:
  """Returns E|score - exact|² under p_t, (K,), from data `x` (n, D) with fresh noise at each of `times` (K,)."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(times)))

  def at(key_and_time):
    key, time = key_and_time
    t = jnp.full(x.shape[:1], time, x.dtype)
    mean, sigma = sde.marginal(x, t)
    noisy = mean + expand(sigma, x) * jax.random.normal(key, x.shape, x.dtype)
    return jnp.mean(sum_over_dims((score(noisy, t) - exact(noisy, t)) ** 2))

  return jax.lax.map(at, (keys, times))


def kl_bound(
  sde: LinearSDE, data: GaussianMixture, score: Score, key: Array, *, eps: float, num_times: int = 200, n: int = 10_000
) -> dict[str, Array]:
  """Estimates the bound KL(p_eps ‖ p_SDE) <= KL(p_T ‖ prior) + ½ ∫ g² E|score - exact|² dt, in nats, from `n` samples.

  p_SDE is the distribution at eps of the reverse-time SDE of `score`, started from the prior. The bound does not hold
  for the probability-flow ODE. Song et al. 2021b, Theorem 1.

  Returns:
    "bound"; "prior", its first term; and two arrays (num_times,) from T to eps: "log_snr", and "density", ½ g²
    E|score - exact|² dt / d log_snr. The area under the density is the second term.
  """
  x = data.sample(key, n)
  log_snr = jnp.linspace(sde.log_snr(jnp.asarray(sde.T, x.dtype)), sde.log_snr(jnp.asarray(eps, x.dtype)), num_times)
  times = jnp.clip(sde.time_of_log_snr(log_snr), eps, sde.T)
  # g² dt = sigma² d log_snr.
  error = jax.jit(lambda x: score_error(sde, data.score(sde), score, jax.random.fold_in(key, 1), x, times))(x)
  density = 0.5 * sde.sigma(times) ** 2 * error
  area = jnp.sum((density[1:] + density[:-1]) / 2 * jnp.diff(log_snr))
  end = jnp.full(x.shape[:1], sde.T, x.dtype)
  mean, sigma = sde.marginal(x, end)
  last = mean + expand(sigma, x) * jax.random.normal(jax.random.fold_in(key, 2), x.shape, x.dtype)
  prior = jnp.mean(data.log_density(sde, last, end) - sde.prior_logp(last))
  return {"bound": prior + area, "prior": prior, "log_snr": log_snr, "density": density}
