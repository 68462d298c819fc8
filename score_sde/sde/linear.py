"""SDEs with a linear drift, whose kernels are known: x_t | x_0 ~ N(alpha(t) x_0, sigma(t)² I)."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, Keys, Numbers, PerExample, Time, expand, normal, sum_over_dims
from score_sde.errors import InvalidArgument
from score_sde.options import option
from score_sde.sde.base import SDE

# A time just after zero. VE's sigma is sigma_min there, while at exactly zero x is data.
AFTER_ZERO = 1e-30


@dataclasses.dataclass(frozen=True)
class LinearSDE(SDE):
  """dx = (d log alpha/dt) x dt + g(t) dw, so that x_t | x_0 ~ N(alpha(t) x_0, sigma(t)² I).

  A subclass defines `alpha` and `sigma`. Everything else follows from them: g(t)² = -sigma² d log_snr/dt.
  """

  is_linear: ClassVar[bool] = True

  # Default variance of ancestral sampling: True is the posterior's, False the chain's.
  posterior_variance: ClassVar[bool] = True

  def alpha(self, t: Numbers) -> Numbers:
    """Returns the mean coefficient of x_t | x_0, positive, with alpha(0) = 1."""
    raise TypeError(f"{type(self).__name__} must define alpha(t).")

  def sigma(self, t: Numbers) -> Numbers:
    """Returns the standard deviation of x_t | x_0. The ratio sigma / alpha increases in t."""
    raise TypeError(f"{type(self).__name__} must define sigma(t).")

  @property
  def prior_std(self) -> float:
    """Returns the standard deviation of the normal prior."""
    with jax.ensure_compile_time_eval():  # gives a number, not a tracer, also inside a compiled function
      return float(self.sigma(jnp.asarray(self.T)))

  def log_snr(self, t: Numbers) -> Numbers:
    """Returns log(alpha² / sigma²), which decreases in t."""
    return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    """Returns the t in [0, T] at which `log_snr` is reached, by bisection to the last digit."""
    low, high = jnp.zeros_like(log_snr), jnp.full_like(log_snr, self.T)

    def halve(_, bracket):
      low, high = bracket
      middle = (low + high) / 2
      above = self.log_snr(middle) > log_snr
      return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, 80, halve, (low, high))
    return (low + high) / 2

  def dlog_alpha(self, t: Numbers) -> Numbers:
    """Returns d log alpha / dt."""
    return jax.jvp(lambda t: jnp.log(self.alpha(t)), (t,), (jnp.ones_like(t),))[1]

  def dlog_snr(self, t: Numbers) -> Numbers:
    """Returns d log_snr / dt, which is negative."""
    return jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))[1]

  def drift(self, x: Batch, t: Time) -> Batch:
    return expand(self.dlog_alpha(t), x) * x

  def diffusion(self, x: Batch, t: Time) -> Array:
    return self.sigma(t) * jnp.sqrt(-self.dlog_snr(t))

  def scale(self, x: Batch, t: Time) -> PerExample:
    return self.sigma(t)

  def marginal(self, x0: Batch, t: Time) -> tuple[Batch, PerExample]:
    """Returns the mean (like `x0`) and the standard deviation (B,) of x_t | x_0."""
    return expand(self.alpha(t), x0) * x0, self.sigma(t)

  def transition(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    """Returns (ratio, std), like `t`, of the exact transition x_t | x_s ~ N(ratio x_s, std² I), for 0 <= s < t.

    ratio = alpha(t) / alpha(s),  std² = sigma(t)² - ratio² sigma(s)² = sigma(t)² (1 - SNR(t) / SNR(s)).
    """
    std = self.sigma(t) * jnp.sqrt(-jnp.expm1(self.log_snr(t) - self.log_snr(s)))
    return self.alpha(t) / self.alpha(s), std

  def chain(self, t: Numbers, start: Numbers, stop: Numbers) -> tuple[Numbers, Numbers]:
    """Returns (ratio, std) of the tabulated forward chain of the papers, x_start = ratio x_stop + std z.

    The default is Euler-Maruyama at t with step start - stop. `transition(stop, start)` is the exact version.
    """
    h = start - stop
    return 1 + self.dlog_alpha(t) * h, self.sigma(t) * jnp.sqrt(-self.dlog_snr(t) * h)

  def discretize(self, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Array, Array]:
    ratio, std = self.chain(t, start, stop)
    return expand(ratio - 1, x) * x, std

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (alpha, sigma) of the `num_scales` noise levels of a discrete model, float64, in order of its labels."""
    raise InvalidArgument(f"{type(self).__name__} has no discrete noise levels: train it as a continuous model.")

  def level(self, t: Numbers, num_scales: int) -> tuple[Numbers, Numbers]:
    """Returns (label, index into `levels`) of time t. The label is the input of a discrete model."""
    raise InvalidArgument(f"{type(self).__name__} has no discrete noise levels: train it as a continuous model.")

  def prior_sample(self, keys: Keys, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Batch:
    return self.prior_std * normal(keys, jax.ShapeDtypeStruct(shape, dtype))

  def prior_logp(self, z: Batch) -> PerExample:
    dims = math.prod(z.shape[1:])
    return -dims / 2 * math.log(2 * math.pi * self.prior_std**2) - sum_over_dims(z**2) / (2 * self.prior_std**2)


@dataclasses.dataclass(frozen=True)
class VE(LinearSDE):
  """Variance-exploding SDE, the limit of NCSN's noise levels. Song et al. 2021, eq. (9) and Appendix B.

      dx = sqrt(d sigma(t)² / dt) dw,    sigma(t) = sigma_min (sigma_max / sigma_min)^t,    t in (0, 1]

  At exactly t = 0, x is data: sigma drops from sigma_min to zero. `transition` and `chain` account for this.

  Attributes:
    sigma_min: noise at t -> 0, in units of the data; small against the distance of the closest two data points.
    sigma_max: noise at t = 1; the largest distance between two data points is a good choice (NCSNv2, Technique 1).

  Raises:
    InvalidArgument: unless 0 < sigma_min < sigma_max.
  """

  eps: ClassVar[float] = 1e-5
  has_table: ClassVar[bool] = True

  sigma_min: float = option(0.01, "VE: noise at t -> 0, in units of the data", "(0, inf)")
  sigma_max: float = option(50.0, "VE: noise at t = 1; about the largest distance between two examples", "(0, inf)")

  def __post_init__(self):
    super().__post_init__()
    if not self.sigma_min < self.sigma_max:
      raise InvalidArgument(
        f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must satisfy 0 < sigma_min < sigma_max.",
        "sigma_min", "sigma_max",
      )  # fmt: skip

  @property
  def _log_ratio(self) -> float:
    return math.log(self.sigma_max / self.sigma_min)

  @property
  def prior_std(self) -> float:
    return self.sigma_max

  def alpha(self, t: Numbers) -> Numbers:
    return jnp.ones_like(t)

  def sigma(self, t: Numbers) -> Numbers:
    return self.sigma_min * jnp.exp(t * self._log_ratio)

  def log_snr(self, t: Numbers) -> Numbers:
    return -2 * (math.log(self.sigma_min) + t * self._log_ratio)

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    return (-log_snr / 2 - math.log(self.sigma_min)) / self._log_ratio

  def drift(self, x: Batch, t: Time) -> Batch:
    return jnp.zeros_like(x)

  def dlog_alpha(self, t: Numbers) -> Numbers:
    return jnp.zeros_like(t)

  def diffusion(self, x: Batch, t: Time) -> Array:
    return self.sigma(t) * math.sqrt(2 * self._log_ratio)

  def transition(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    kept = jnp.where(s > 0, -jnp.expm1(2 * self._log_ratio * (s - t)), 1.0)
    return jnp.ones_like(t), self.sigma(t) * jnp.sqrt(kept)

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns alpha = 1, and sigma geometric from sigma_max (label 0) to sigma_min (last label). Song & Ermon 2019."""
    return np.ones(num_scales), np.geomspace(self.sigma_max, self.sigma_min, num_scales)

  def level(self, t: Numbers, num_scales: int) -> tuple[Numbers, Numbers]:
    index = jnp.round((self.T - t) * (num_scales - 1)).astype(jnp.int32)
    return index, index

  def table_steps(self, index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns steps from each of `n` geometric sigmas to the next smaller one, and from the smallest to zero."""
    table = np.concatenate([[0.0, AFTER_ZERO], np.arange(1, n) * self.T / (n - 1)])
    return table[index + 1], table[index]

  def chain(self, t: Numbers, start: Numbers, stop: Numbers) -> tuple[Numbers, Numbers]:
    """Returns NCSN's chain, std² = sigma(start)² - sigma(stop)², which is exact. Song et al. 2021, eq. (20)."""
    return self.transition(stop, start)


@dataclasses.dataclass(frozen=True)
class _BetaSDE(LinearSDE):
  """Base of VP and sub-VP: drift -½ beta(t) x with beta linear in t, hence alpha(t) = exp(-½ ∫ beta)."""

  beta_min: float = option(0.1, "VP and sub-VP: rate of forgetting at t = 0, per unit of time", "(0, inf)")
  beta_max: float = option(20.0, "VP and sub-VP: the rate at t = 1", "(0, inf)")

  def __post_init__(self):
    super().__post_init__()
    if not self.beta_min <= self.beta_max:
      raise InvalidArgument(
        f"beta_min={self.beta_min} and beta_max={self.beta_max} must satisfy 0 < beta_min <= beta_max.",
        "beta_min", "beta_max",
      )  # fmt: skip

  @property
  def prior_std(self) -> float:
    return 1.0

  def beta(self, t: Numbers) -> Numbers:
    """Returns beta_min + t (beta_max - beta_min)."""
    return self.beta_min + t * (self.beta_max - self.beta_min)

  def integral(self, t: Numbers) -> Numbers:
    """Returns ∫₀ᵗ beta."""
    return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

  def _time_of_integral(self, integral: Array) -> Array:
    """Inverts `integral`, with the form of the quadratic formula that does not cancel at t -> 0."""
    slope = self.beta_max - self.beta_min
    return 2 * integral / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * slope * integral))

  def _integral_between(self, s: Array, t: Array) -> Array:
    """Returns ∫ₛᵗ beta, without the cancellation of integral(t) - integral(s)."""
    return (t - s) * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * (s + t))

  def alpha(self, t: Numbers) -> Numbers:
    return jnp.exp(-0.5 * self.integral(t))

  def dlog_alpha(self, t: Numbers) -> Numbers:
    return -0.5 * self.beta(t)


def _ddpm_level(share: Array, num_scales: int) -> tuple[Array, Array]:
  """Returns (label, index) at time t = `share` T, as the samplers of the published models compute them.

  Labels are fractional. The margins keep rounding errors from lowering the index of a grid time by one. In float32
  these grow with the label: 50/99 * 99 is 2.4e-6 below 50, and 0.5 * 1999 + 0.5 can be 6e-5 below a whole number.
  """
  label = share * (num_scales - 1)
  return label, jnp.floor(label * (1 + 2e-7) + 1e-6).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class VP(_BetaSDE):
  """Variance-preserving SDE, the limit of DDPM's chain. Song et al. 2021, eq. (11) and Appendix B.

      dx = -½ beta(t) x dt + sqrt(beta(t)) dw,    sigma(t)² = 1 - exp(-∫₀ᵗ beta),    t in [0, 1]

  Attributes:
    beta_min, beta_max: rates at which the signal is lost at t = 0 and t = 1, per unit of time. The prior N(0, I) fits
      only if alpha(1) = exp(-(beta_min + beta_max) / 4) is small.

  Raises:
    InvalidArgument: unless 0 < beta_min <= beta_max.
  """

  posterior_variance: ClassVar[bool] = False  # the variance is beta, as published
  has_table: ClassVar[bool] = True

  def sigma(self, t: Numbers) -> Numbers:
    return jnp.sqrt(-jnp.expm1(-self.integral(t)))

  def log_snr(self, t: Numbers) -> Numbers:
    integral = self.integral(t)
    return -integral - jnp.log(-jnp.expm1(-integral))

  def dlog_snr(self, t: Numbers) -> Numbers:
    return self.beta(t) / jnp.expm1(-self.integral(t))

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    return self._time_of_integral(jax.nn.softplus(-log_snr))

  def diffusion(self, x: Batch, t: Time) -> Array:
    return jnp.sqrt(self.beta(t))

  def transition(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    between = self._integral_between(s, t)
    return jnp.exp(-0.5 * between), jnp.sqrt(-jnp.expm1(-between))

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns DDPM's levels, alpha² = alpha-bar = prod(1 - b_i). Ho et al. 2020, eq. (4).

    b_i is linear from beta_min / N to beta_max / N.
    """
    b = np.linspace(self.beta_min, self.beta_max, num_scales) / num_scales
    if b[-1] >= 1:
      raise InvalidArgument(
        f"num_scales={num_scales} must be larger than beta_max={self.beta_max}: a step of VP's chain keeps a share of "
        "1 - beta_max / num_scales of the signal's power.",
        "num_scales", "beta_max",
      )  # fmt: skip
    log_alpha_bar = np.cumsum(np.log1p(-b))
    return np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))

  def level(self, t: Numbers, num_scales: int) -> tuple[Numbers, Numbers]:
    return _ddpm_level(t / self.T, num_scales)

  def chain(self, t: Numbers, start: Numbers, stop: Numbers) -> tuple[Numbers, Numbers]:
    """Returns DDPM's ratio = sqrt(1 - b), std² = b with b = beta(start) (start - stop). Ho et al. 2020, eq. (2)."""
    b = self.beta(start) * (start - stop)
    return jnp.sqrt(1 - b), jnp.sqrt(b)


@dataclasses.dataclass(frozen=True)
class SubVP(_BetaSDE):
  """Sub-variance-preserving SDE, for likelihoods. Song et al. 2021, eq. (12) and Appendix B.

      dx = -½ beta(t) x dt + sqrt(beta(t) (1 - exp(-2 ∫₀ᵗ beta))) dw,    sigma(t) = 1 - exp(-∫₀ᵗ beta),    t in [0, 1]

  Attributes and errors are those of `VP`.
  """

  def sigma(self, t: Numbers) -> Numbers:
    return -jnp.expm1(-self.integral(t))

  def log_snr(self, t: Numbers) -> Numbers:
    integral = self.integral(t)
    return -integral - 2 * jnp.log(-jnp.expm1(-integral))

  def dlog_snr(self, t: Numbers) -> Numbers:
    integral = self.integral(t)
    return self.beta(t) * (1 + jnp.exp(-integral)) / jnp.expm1(-integral)

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    # With y = exp(-∫beta), SNR = y / (1 - y)², so 1 / y - 1 solves u² = (u + 1) / SNR.
    inverse = jnp.exp(-log_snr)
    return self._time_of_integral(jnp.log1p((inverse + jnp.sqrt(inverse**2 + 4 * inverse)) / 2))

  def diffusion(self, x: Batch, t: Time) -> Array:
    return jnp.sqrt(self.beta(t) * -jnp.expm1(-2 * self.integral(t)))

  def transition(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    # std² = (1 - r u₁)² - r (1 - u₁)² with r = exp(-∫ₛᵗ beta), u₁ = exp(-∫₀ˢ beta), as a sum of positive terms.
    between = self._integral_between(s, t)
    r, lost, sigma_s = jnp.exp(-between), -jnp.expm1(-between), self.sigma(s)
    return jnp.exp(-0.5 * between), jnp.sqrt(lost * (lost + r * sigma_s * (2 - sigma_s)))


@dataclasses.dataclass(frozen=True)
class CosineVP(LinearSDE):
  """The variance-preserving SDE of the cosine schedule. Nichol & Dhariwal 2021, eq. (17).

      alpha(t) = cos φ(t) / cos φ(0),    φ(t) = π/2 (t + s) / (1 + s),    sigma² = 1 - alpha²,    t in [0, 1 - delta]
      dx = -½ beta(t) x dt + sqrt(beta(t)) dw,    beta = 2 φ' tan φ

  Time ends before t = 1, where alpha = 0 and beta is infinite.

  Attributes:
    s: an offset that keeps beta(0) from vanishing.
    delta: T = 1 - delta, where alpha is about π/2 delta.

  Raises:
    InvalidArgument: unless s >= 0 and 0 < delta < 1.
  """

  s: float = option(0.008, "cosine: keeps beta(0) from vanishing", "[0, inf)", key="cosine_s")
  delta: float = option(1e-3, "cosine and rectified_flow: time ends at 1 - delta, before all signal is gone", "(0, 1)")

  @property
  def T(self) -> float:
    return 1.0 - self.delta

  @property
  def prior_std(self) -> float:
    return 1.0

  @property
  def _rate(self) -> float:
    """Returns φ'."""
    return math.pi / 2 / (1 + self.s)

  @property
  def _phase(self) -> float:
    """Returns φ(0)."""
    return self._rate * self.s

  def alpha(self, t: Numbers) -> Numbers:
    return jnp.sin(self._rate * (1 - t)) / math.cos(self._phase)  # cos φ as a sine is accurate at t -> 1

  def sigma(self, t: Numbers) -> Numbers:
    # sin² φ(t) - sin² φ(0), as a product that is accurate at t -> 0.
    return jnp.sqrt(jnp.sin(self._rate * t) * jnp.sin(self._rate * t + 2 * self._phase)) / math.cos(self._phase)

  def dlog_alpha(self, t: Numbers) -> Numbers:
    return -self._rate / jnp.tan(self._rate * (1 - t))

  def dlog_snr(self, t: Numbers) -> Numbers:
    return 2 * self.dlog_alpha(t) / self.sigma(t) ** 2

  def diffusion(self, x: Batch, t: Time) -> Array:
    return jnp.sqrt(-2 * self.dlog_alpha(t))

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    sine, cosine = math.sin(self._phase), math.cos(self._phase)
    opposite = jnp.sqrt(sine**2 + cosine**2 * jax.nn.sigmoid(-log_snr))
    return jnp.arctan2(opposite, cosine * jnp.sqrt(jax.nn.sigmoid(log_snr))) / self._rate - self.s

  def transition(self, s: Numbers, t: Numbers) -> tuple[Numbers, Numbers]:
    ratio = jnp.sin(self._rate * (1 - t)) / jnp.sin(self._rate * (1 - s))
    lost = jnp.sin(self._rate * (t - s)) * jnp.sin(self._rate * (t + s) + 2 * self._phase)
    return ratio, jnp.sqrt(lost) / jnp.sin(self._rate * (1 - s))

  def levels(self, num_scales: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the paper's levels: b_i = 1 - alpha-bar((i + 1) / N) / alpha-bar(i / N), at most 0.999."""
    bar = np.cos(self._phase + self._rate * np.arange(num_scales + 1) / num_scales) ** 2
    log_alpha_bar = np.cumsum(np.log1p(-np.minimum(1 - bar[1:] / bar[:-1], 0.999)))
    return np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))

  def level(self, t: Numbers, num_scales: int) -> tuple[Numbers, Numbers]:
    return _ddpm_level(t / self.T, num_scales)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow(LinearSDE):
  """Rectified flow, straight lines x_t = (1 - t) x_0 + t z from data to noise, as a linear SDE. Liu et al. 2023.

      dx = -x / (1 - t) dt + sqrt(2 t / (1 - t)) dw,    t in [0, 1 - delta]

  The velocity of its probability-flow ODE is E[z - x_0 | x_t], which `parameterization` calls "flow". Uniform times
  with the weighting "flow" give the loss of flow matching. Time ends before t = 1, where alpha = 0.

  Attributes:
    delta: T = 1 - delta, where alpha = delta.

  Raises:
    InvalidArgument: unless 0 < delta < 1.
  """

  delta: float = option(1e-3, "cosine and rectified_flow: time ends at 1 - delta, before all signal is gone", "(0, 1)")

  @property
  def T(self) -> float:
    return 1.0 - self.delta

  def alpha(self, t: Numbers) -> Numbers:
    return 1 - t

  def sigma(self, t: Numbers) -> Numbers:
    return t

  def log_snr(self, t: Numbers) -> Numbers:
    return 2 * (jnp.log1p(-t) - jnp.log(t))

  def dlog_alpha(self, t: Numbers) -> Numbers:
    return -1 / (1 - t)

  def dlog_snr(self, t: Numbers) -> Numbers:
    return -2 / (t * (1 - t))

  def diffusion(self, x: Batch, t: Time) -> Array:
    return jnp.sqrt(2 * t / (1 - t))

  def time_of_log_snr(self, log_snr: Numbers) -> Numbers:
    return jax.nn.sigmoid(-log_snr / 2)


def check_kernel(sde: SDE, times: Sequence[float], dtype: Any = None) -> None:
  """Checks that a linear SDE can be computed at `times` > 0, in `dtype` (None: float32, or float64 under x64).

  Other SDEs are not checked. Samplers divide by alpha(t), and scores by sigma(t)².

  Raises:
    InvalidArgument: if alpha, sigma, sigma² or the diffusion is zero, infinite or not a number.
  """
  if not isinstance(sde, LinearSDE):
    return
  with jax.ensure_compile_time_eval():  # gives numbers, not tracers, also inside a compiled function
    t = jnp.asarray(times, jnp.result_type(float) if dtype is None else dtype)
    sigma = sde.sigma(t)
    found = {"alpha": sde.alpha(t), "sigma": sigma, "sigma^2": sigma**2, "diffusion": sde.diffusion(t, t)}
  for name, values in found.items():
    for time, value in zip(times, jnp.broadcast_to(values, t.shape).tolist(), strict=True):
      if not 0 < value < math.inf:
        raise InvalidArgument(
          f"{sde} has {name}={value:g} at t={time:g} in {t.dtype}. Samplers need it positive and finite: use a smaller "
          "range of noise, or a T at which alpha has not vanished (as cosine and rectified_flow do with delta)."
        )


def linear(sde: SDE, what: str) -> LinearSDE:
  """Checks that `sde` is linear and returns it. `what` names the feature that needs one, for the message.

  Raises:
    InvalidArgument: for an SDE that is not linear.
  """
  if not isinstance(sde, LinearSDE):
    raise InvalidArgument(
      f"{what} needs a linear SDE, whose x_t given x_0 is normal with known alpha(t) and sigma(t), not "
      f"{type(sde).__name__}. Use a LinearSDE such as VE, VP or SubVP."
    )
  return sde
