"""Stochastic differential equations that carry data (t = 0) to noise (t = T), and their reversal in time.

    dx = f(x, t) dt + G(x, t) dw                                      forward
    dx = [f - div(G Gᵀ) - G Gᵀ score] dt + G dw̄                       reverse-time SDE
    dx = [f - ½ div(G Gᵀ) - ½ G Gᵀ score] dt                          probability-flow ODE

Song et al. 2021, eq. (5), (6), (13), Appendix A for a diffusion that depends on the state, and Appendices B and C for
the three SDEs of the paper. `x` has shape (B, ...), `t` has shape (B,), and arithmetic follows their dtype.

To write another SDE, subclass `SDE` with `drift` and `diffusion`; or, if x_t | x_0 is N(alpha(t) x_0, sigma(t)² I),
subclass `LinearSDE` with `alpha` and `sigma` alone: drift, diffusion, transitions and prior follow from them.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand, normal, sum_over_dims

Score = Callable[[Array, Array], Array]


def as_argument(score: Score) -> jax.tree_util.Partial:
  """`score` as a pytree that compiled functions take as an argument.

  A Partial(function, params) is one already, and new parameters never recompile; a plain function compiles anew.
  """
  return score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)


def bind(score: Score, condition: Any) -> Score:
  """The score(x, t) of a batch whose examples each have a `condition`; None leaves `score` as it is."""
  return score if condition is None else lambda x, t: score(x, t, condition)


@dataclasses.dataclass(frozen=True)
class SDE:
  """An SDE on t in [0, T]. Frozen and hashable, so that it is a static argument of compiled functions.

  `diffusion` may return one number per example (B,), an array like `x` (a diagonal), or a linear operator: a pytree
  with `matvec(v)` and `rmatvec(v)` (its transpose) on arrays like `x`.
  """

  @property
  def T(self) -> float:
    return 1.0

  def drift(self, x: Array, t: Array) -> Array:
    """f(x, t), like `x`."""
    raise TypeError(f"{type(self).__name__} must define drift(x, t).")

  def diffusion(self, x: Array, t: Array) -> Array:
    """G(x, t): (B,), like `x`, or a linear operator."""
    raise TypeError(f"{type(self).__name__} must define diffusion(x, t).")

  def prior_sample(self, keys: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    """Samples of shape `shape` = (B, ...) from the law that sampling starts from at t = T; one key an example."""
    raise TypeError(f"{type(self).__name__} has no closed-form prior to sample from.")

  def prior_logp(self, z: Array) -> Array:
    """Log-density (B,), in nats, of `z` under the prior."""
    raise TypeError(f"{type(self).__name__} has no closed-form prior density.")

  def discretize(self, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """One step of the forward chain, x_start = x_stop + f + G z, evaluated at (x, t): returns (f, G).

    The default is Euler-Maruyama: f = drift (start - stop), G = diffusion sqrt(start - stop). Song et al. 2021, (45).
    """
    h = start - stop
    g = self.diffusion(x, t)
    if not isinstance(g, jax.Array):
      raise TypeError("A diffusion that is an operator has no tabulated chain; use the Euler-Maruyama predictor.")
    return self.drift(x, t) * expand(h, x), g * jnp.sqrt(expand(h, g))


@dataclasses.dataclass(frozen=True)
class LinearSDE(SDE):
  """dx = (d log alpha/dt) x dt + g(t) dw, so that x_t | x_0 ~ N(alpha(t) x_0, sigma(t)² I).

  A subclass gives `alpha` and `sigma`; everything else follows: g(t)² = -sigma² d log_snr/dt.
  """

  def alpha(self, t: Array) -> Array:
    """Mean coefficient of x_t | x_0, positive, alpha(0) = 1."""
    raise TypeError(f"{type(self).__name__} must define alpha(t).")

  def sigma(self, t: Array) -> Array:
    """Standard deviation of x_t | x_0, increasing against alpha."""
    raise TypeError(f"{type(self).__name__} must define sigma(t).")

  @property
  def prior_std(self) -> float:
    """Standard deviation of the normal law that sampling starts from."""
    return float(self.sigma(jnp.asarray(self.T)))

  def log_snr(self, t: Array) -> Array:
    """log(alpha² / sigma²), decreasing in t."""
    return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

  def time_of_log_snr(self, log_snr: Array) -> Array:
    """The t in [0, T] at which `log_snr` is reached, by bisection to the last digit."""
    low, high = jnp.zeros_like(log_snr), jnp.full_like(log_snr, self.T)

    def halve(_, bracket):
      low, high = bracket
      middle = (low + high) / 2
      above = self.log_snr(middle) > log_snr
      return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, 80, halve, (low, high))
    return (low + high) / 2

  def dlog_alpha(self, t: Array) -> Array:
    """d log alpha / dt."""
    return jax.jvp(lambda t: jnp.log(self.alpha(t)), (t,), (jnp.ones_like(t),))[1]

  def dlog_snr(self, t: Array) -> Array:
    """d log_snr / dt, negative."""
    return jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))[1]

  def drift(self, x: Array, t: Array) -> Array:
    return expand(self.dlog_alpha(t), x) * x

  def diffusion(self, x: Array, t: Array) -> Array:
    return self.sigma(t) * jnp.sqrt(-self.dlog_snr(t))

  def marginal(self, x0: Array, t: Array) -> tuple[Array, Array]:
    """Mean (like `x0`) and standard deviation (B,) of x_t | x_0."""
    return expand(self.alpha(t), x0) * x0, self.sigma(t)

  def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
    """(ratio, std), both (B,), with x_t | x_s ~ N(ratio x_s, std² I) exactly, for 0 <= s < t.

    ratio = alpha(t) / alpha(s),  std² = sigma(t)² - ratio² sigma(s)² = sigma(t)² (1 - SNR(t) / SNR(s)).
    """
    std = self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr(t) - self.log_snr(s)))
    return self.alpha(t) / self.alpha(s), std

  def chain(self, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """(ratio, std) of the tabulated forward chain, x_start = ratio x_stop + std z: as the papers discretize the SDE.

    The default is Euler-Maruyama at t with step start - stop; `transition(stop, start)` is the exact counterpart.
    """
    h = start - stop
    return 1 + self.dlog_alpha(t) * h, self.sigma(t) * jnp.sqrt(-self.dlog_snr(t) * h)

  def discretize(self, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    ratio, std = self.chain(t, start, stop)
    return expand(ratio - 1, x) * x, std

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) of the `num_scales` noise levels of the discrete model, float64, in the order of its labels."""
    raise TypeError(f"{type(self).__name__} has no discrete noise levels; train it with training.continuous=True.")

  def level(self, t: Array, num_scales: int) -> tuple[Array, Array]:
    """(label, index into `levels`) that a discrete model is shown at time t."""
    raise TypeError(f"{type(self).__name__} has no discrete noise levels; train it with training.continuous=True.")

  def prior_sample(self, keys: Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    return self.prior_std * normal(keys, jax.ShapeDtypeStruct(shape, dtype))

  def prior_logp(self, z: Array) -> Array:
    dims = math.prod(z.shape[1:])
    return -dims / 2 * math.log(2 * math.pi * self.prior_std**2) - sum_over_dims(z**2) / (2 * self.prior_std**2)


@dataclasses.dataclass(frozen=True)
class VE(LinearSDE):
  """Variance-exploding SDE, the limit of NCSN's noise levels. Song et al. 2021, eq. (9) and Appendix B.

      dx = sqrt(d sigma(t)² / dt) dw,    sigma(t) = sigma_min (sigma_max / sigma_min)^t,    t in (0, 1]

  At t = 0 itself x is data: sigma jumps from sigma_min at t -> 0 to zero, which `transition` and `chain` honour for
  s = 0.

  Attributes:
    sigma_min: noise at t -> 0, in units of the data; small against the closest pair of data points.
    sigma_max: noise at t = 1; the largest distance between two data points is a good choice (NCSNv2, Technique 1).

  Raises:
    ValueError: unless 0 < sigma_min < sigma_max.
  """

  sigma_min: float = 0.01
  sigma_max: float = 50.0

  def __post_init__(self):
    if not 0 < self.sigma_min < self.sigma_max < math.inf:
      raise ValueError(f"VE needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}.")

  @property
  def _log_ratio(self) -> float:
    return math.log(self.sigma_max / self.sigma_min)

  @property
  def prior_std(self) -> float:
    return self.sigma_max

  def alpha(self, t: Array) -> Array:
    return jnp.ones_like(t)

  def sigma(self, t: Array) -> Array:
    return self.sigma_min * jnp.exp(t * self._log_ratio)

  def log_snr(self, t: Array) -> Array:
    return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

  def time_of_log_snr(self, log_snr: Array) -> Array:
    return (-log_snr / 2 - math.log(self.sigma_min)) / self._log_ratio

  def drift(self, x: Array, t: Array) -> Array:
    return jnp.zeros_like(x)

  def dlog_alpha(self, t: Array) -> Array:
    return jnp.zeros_like(t)

  def diffusion(self, x: Array, t: Array) -> Array:
    return self.sigma(t) * math.sqrt(2 * self._log_ratio)

  def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
    kept = jnp.where(s > 0, -jnp.expm1(2 * self._log_ratio * (s - t)), 1.0)
    return jnp.ones_like(t), self.sigma(t) * jnp.sqrt(kept)

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Geometric from sigma_max (label 0) down to sigma_min (label num_scales - 1). Song & Ermon 2019."""
    return np.ones(num_scales), np.geomspace(self.sigma_max, self.sigma_min, num_scales)

  def level(self, t: Array, num_scales: int) -> tuple[Array, Array]:
    index = jnp.round((self.T - t) * (num_scales - 1)).astype(jnp.int32)
    return index, index

  def chain(self, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """NCSN's, std² = sigma(start)² - sigma(stop)², which is exact. Song et al. 2021, eq. (20)."""
    return self.transition(stop, start)


@dataclasses.dataclass(frozen=True)
class _BetaSDE(LinearSDE):
  """What VP and sub-VP share: drift -½ beta(t) x with beta linear in t, hence alpha(t) = exp(-½ ∫ beta)."""

  beta_min: float = 0.1
  beta_max: float = 20.0

  def __post_init__(self):
    if not 0 < self.beta_min <= self.beta_max < math.inf:
      name = type(self).__name__
      raise ValueError(f"{name} needs 0 < beta_min <= beta_max, got {self.beta_min} and {self.beta_max}.")

  @property
  def prior_std(self) -> float:
    return 1.0

  def beta(self, t: Array) -> Array:
    """beta_min + t (beta_max - beta_min)."""
    return self.beta_min + t * (self.beta_max - self.beta_min)

  def integral(self, t: Array) -> Array:
    """∫₀ᵗ beta."""
    return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

  def _time_of_integral(self, integral: Array) -> Array:
    """Inverse of `integral`, in the form of the quadratic formula that does not cancel at t -> 0."""
    slope = self.beta_max - self.beta_min
    return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

  def _integral_between(self, s: Array, t: Array) -> Array:
    """∫ₛᵗ beta, without the cancellation of integral(t) - integral(s)."""
    return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (s + t))

  def alpha(self, t: Array) -> Array:
    return jnp.exp(-0.5 * self.integral(t))

  def dlog_alpha(self, t: Array) -> Array:
    return -0.5 * self.beta(t)


@dataclasses.dataclass(frozen=True)
class VP(_BetaSDE):
  """Variance-preserving SDE, the limit of DDPM's chain. Song et al. 2021, eq. (11) and Appendix B.

      dx = -½ beta(t) x dt + sqrt(beta(t)) dw,    sigma(t)² = 1 - exp(-∫₀ᵗ beta),    t in [0, 1]

  Attributes:
    beta_min, beta_max: rates of forgetting at t = 0 and t = 1, per unit of time; for the prior N(0, I) to fit,
      alpha(1) = exp(-(beta_min + beta_max) / 4) must be small.

  Raises:
    ValueError: unless 0 < beta_min <= beta_max.
  """

  def sigma(self, t: Array) -> Array:
    return jnp.sqrt(-jnp.expm1(-self.integral(t)))

  def log_snr(self, t: Array) -> Array:
    integral = self.integral(t)
    return -integral - jnp.log(-jnp.expm1(-integral))

  def dlog_snr(self, t: Array) -> Array:
    return self.beta(t) / jnp.expm1(-self.integral(t))

  def time_of_log_snr(self, log_snr: Array) -> Array:
    return self._time_of_integral(jax.nn.softplus(-log_snr))

  def diffusion(self, x: Array, t: Array) -> Array:
    return jnp.sqrt(self.beta(t))

  def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
    between = self._integral_between(s, t)
    return jnp.exp(-0.5 * between), jnp.sqrt(-jnp.expm1(-between))

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """DDPM's alpha-bar = prod(1 - b_i), b_i linear from beta_min / N to beta_max / N. Ho et al. 2020, eq. (4)."""
    b = np.linspace(self.beta_min, self.beta_max, num_scales) / num_scales
    if b[-1] >= 1:
      raise ValueError(
        f"VP's chain needs num_scales > beta_max, got num_scales={num_scales}, beta_max={self.beta_max}."
      )
    log_alpha_bar = np.cumsum(np.log1p(-b))
    return np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))

  def level(self, t: Array, num_scales: int) -> tuple[Array, Array]:
    # The published models are sampled with fractional labels; 1e-6 keeps times of the grid from falling one index low.
    label = t * (num_scales - 1) / self.T
    return label, jnp.floor(label + 1e-6).astype(jnp.int32)

  def chain(self, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """DDPM's, ratio = sqrt(1 - b), std² = b with b = beta(start) (start - stop). Ho et al. 2020, eq. (2)."""
    b = self.beta(start) * (start - stop)
    return jnp.sqrt(1 - b), jnp.sqrt(b)


@dataclasses.dataclass(frozen=True)
class SubVP(_BetaSDE):
  """Sub-variance-preserving SDE, for likelihoods. Song et al. 2021, eq. (12) and Appendix B.

      dx = -½ beta(t) x dt + sqrt(beta(t) (1 - exp(-2 ∫₀ᵗ beta))) dw,    sigma(t) = 1 - exp(-∫₀ᵗ beta),    t in [0, 1]

  Attributes and errors as for `VP`.
  """

  def sigma(self, t: Array) -> Array:
    return -jnp.expm1(-self.integral(t))

  def log_snr(self, t: Array) -> Array:
    integral = self.integral(t)
    return -integral - 2 * jnp.log(-jnp.expm1(-integral))

  def dlog_snr(self, t: Array) -> Array:
    integral = self.integral(t)
    return self.beta(t) * (1 + jnp.exp(-integral)) / jnp.expm1(-integral)

  def time_of_log_snr(self, log_snr: Array) -> Array:
    # With y = exp(-∫beta), SNR = y / (1 - y)², so 1 / y - 1 solves u² = (u + 1) / SNR.
    inverse = jnp.exp(-log_snr)
    return self._time_of_integral(jnp.log1p((inverse + jnp.sqrt(inverse**2 + 4 * inverse)) / 2))

  def diffusion(self, x: Array, t: Array) -> Array:
    return jnp.sqrt(self.beta(t) * -jnp.expm1(-2 * self.integral(t)))

  def transition(self, s: Array, t: Array) -> tuple[Array, Array]:
    # std² = (1 - r u₁)² - r (1 - u₁)² with r = exp(-∫ₛᵗ beta), u₁ = exp(-∫₀ˢ beta), arranged as a sum of positives.
    between = self._integral_between(s, t)
    r, lost, sigma_s = jnp.exp(-between), -jnp.expm1(-between), self.sigma(s)
    return jnp.exp(-0.5 * between), jnp.sqrt(lost * (lost + r * sigma_s * (2 - sigma_s)))


def denoiser(sde: LinearSDE, score: Score) -> Score:
  """D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, by Tweedie's formula."""
  return lambda x, t: (x + expand(sde.sigma(t), x) ** 2 * score(x, t)) / expand(sde.alpha(t), x)


def apply_diffusion(g: Array, v: Array) -> Array:
  """G v for each of the three kinds of diffusion."""
  return expand(g, v) * v if isinstance(g, jax.Array) else g.matvec(v)


def apply_covariance(g: Array, v: Array) -> Array:
  """G Gᵀ v for each of the three kinds of diffusion."""
  return expand(g, v) ** 2 * v if isinstance(g, jax.Array) else g.matvec(g.rmatvec(v))


def covariance_divergence(sde: SDE, x: Array, t: Array) -> Array | float:
  """div(G Gᵀ), like `x`: its i-th entry is the sum over j of ∂(G Gᵀ)ᵢⱼ/∂xⱼ. Song et al. 2021, Appendix A.

  Zero when the diffusion is one number an example; otherwise one forward derivative per dimension.
  """
  g = jax.eval_shape(sde.diffusion, x, t)
  if isinstance(g, jax.ShapeDtypeStruct) and g.ndim <= 1:
    return 0.0
  dims = math.prod(x.shape[1:])

  def along(j):
    basis = jnp.broadcast_to(jax.nn.one_hot(j, dims, dtype=x.dtype).reshape(x.shape[1:]), x.shape)
    return jax.jvp(lambda x: apply_covariance(sde.diffusion(x, t), basis), (x,), (basis,))[1]

  return jnp.sum(jax.lax.map(along, jnp.arange(dims)), axis=0)


@dataclasses.dataclass(frozen=True)
class Reverse:
  """The reverse-time SDE of `sde` under `score`, or its probability-flow ODE; time still counts forward.

  Song et al. 2021, eq. (6), (13) and Appendix A.

  Attributes:
    sde: the forward SDE.
    score: (x, t) -> grad log p_t(x), like `x`.
    probability_flow: the deterministic ODE with the same marginals, instead of the SDE.
  """

  sde: SDE
  score: Score
  probability_flow: bool = False

  @property
  def _share(self) -> float:
    return 0.5 if self.probability_flow else 1.0

  def drift(self, x: Array, t: Array) -> Array:
    g = self.sde.diffusion(x, t)
    pull = apply_covariance(g, self.score(x, t)) + covariance_divergence(self.sde, x, t)
    return self.sde.drift(x, t) - self._share * pull

  def diffusion(self, x: Array, t: Array) -> Array:
    return jnp.zeros_like(t) if self.probability_flow else self.sde.diffusion(x, t)

  def discretize(self, x: Array, t: Array, start: Array, stop: Array) -> tuple[Array, Array]:
    """(f, G) with x_stop = x_start - f + G z: the forward chain's step, reversed. Song et al. 2021, eq. (46)."""
    f, g = self.sde.discretize(x, t, start, stop)
    f = f - self._share * apply_covariance(g, self.score(x, t))
    return f, jnp.zeros_like(g) if self.probability_flow else g
