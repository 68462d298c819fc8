"""Exact log-likelihoods, encoding and decoding by the probability-flow ODE, a bijection between data and latents.

    log p_0(x) = log p_T(x_T) + ∫₀ᵀ div f̃(x_t, t) dt,        div f̃ = E[eᵀ (∂f̃/∂x) e]

Song et al. 2021, eq. (39) and (40); Hutchinson 1990, Skilling 1989 for the estimate of the trace. One forward
derivative (`jax.jvp`) gives both drift and divergence. It costs about two evaluations of the score.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from score_sde.batch import (
  Array,
  Batch,
  Keys,
  PerExample,
  Stack,
  Time,
  Weights,
  as_key,
  example_keys,
  expand,
  norm,
  sum_over_dims,
)
from score_sde.errors import InvalidArgument
from score_sde.options import Options, option
from score_sde.sampling.ode import AdaptiveODE, solve
from score_sde.sampling.sample import check_condition, check_parts, check_score, check_times
from score_sde.sampling.solver import all_finite
from score_sde.sde import SDE, LinearSDE, Reverse, Score, bind
from score_sde.trace import PROBES, basis, value_and_jvps


class LogDensity(NamedTuple):
  """Result of `ExactLikelihood` for each example.

  Attributes:
    log_p: log-density of x_eps in nats, (B,).
    x_T: the latent, like x.
    nfe: evaluations of the score, (B,).
    t: the time that the solve reached, (B,): T, or less if it ran into `max_steps`. Then log_p is invalid.
  """

  log_p: Array
  x_T: Array
  nfe: Array
  t: Array


@dataclasses.dataclass(frozen=True)
class ExactLikelihood(Options):
  """Log-density of data under the probability-flow ODE, by one adaptive solve per example.

      log p_0(x) = log p_T(x_T) + ∫₀ᵀ div f̃(x_t, t) dt,        div f̃ = E[eᵀ (∂f̃/∂x) e]

  Song et al. 2021, eq. (39) and (40). Works under every SDE with a known prior. With `probe` "rademacher" or
  "gaussian", random vectors estimate the divergence. "exact" computes it, with one derivative per dimension.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> found = ss.ExactLikelihood(probe="exact")(ss.VP(), lambda x, t: -x, keys, jnp.zeros((4, 2)))
    >>> round(float(found.log_p[0]), 3)  # -log(2 pi)
    -1.838
  """

  eps: float = option(1e-5, "time of the data", "(0, inf)")
  rtol: float = option(1e-5, "relative tolerance of the ODE", "(0, inf)")
  atol: float = option(1e-5, "absolute tolerance of the ODE", "(0, inf)")
  probe: str = option("rademacher", "probes of the divergence", choices=(*PROBES, "exact"))
  num_probes: int = option(1, "probes per example", "[1, inf)", needs={"probe": tuple(PROBES)})
  # Options of the adaptive solve. Not declared by `option`: a config sets them once for sampling and likelihoods.
  solver: str = "dopri5"
  max_steps: int = 4096

  def __post_init__(self) -> None:
    super().__post_init__()
    AdaptiveODE(self.rtol, self.atol, self.solver, max_steps=self.max_steps)  # checks their ranges

  def __call__(
    self,
    sde: SDE,
    score: Callable[..., Array],
    keys: Keys,
    x: Batch,
    condition: Any = None,
    prior_logp: Callable[[Array], Array] | None = None,
  ) -> LogDensity:
    """Returns the log-densities of x (B, ...), with keys (B,) for the probes. A pure function.

    With a `condition`, a pytree of (B, ...) arrays, the score is score(x, t, condition). `prior_logp` replaces the
    log-density (B,) of the SDE's prior at x_T, for example by the exact one of `analytic` data.

    Raises:
      InvalidArgument: for an SDE without a likelihood, or an eps outside (0, T).
    """
    if prior_logp is None and sde.why_no_likelihood:
      raise InvalidArgument(f"{type(sde).__name__} has no likelihood: {sde.why_no_likelihood}")
    check_times(sde, self.eps, sde.T)
    log_prior = prior_logp or sde.prior_logp

    def one(key: Array, x: Array, condition: Any) -> LogDensity:
      field, probes = self._field(sde, score, key, x, condition)
      options = {"rtol": self.rtol, "atol": self.atol, "solver": self.solver, "max_steps": self.max_steps}
      state = (x, jnp.zeros((), x.dtype))
      (z, delta), nfe, t = solve(field, state, probes, self.eps, sde.T, **options)
      return LogDensity(log_prior(z[None])[0] + delta, z, nfe, t)

    return jax.vmap(one)(keys, x, condition)

  def evaluate(
    self, sde: SDE, score: Callable[..., Array], keys: Keys, x: Batch, t: Time, condition: Any = None
  ) -> tuple[Batch, PerExample]:
    """Returns (dx/dt, divergence) of the probability flow at x (B, ...) and times t (B,): one evaluation of a solve."""

    def one(key: Array, x: Array, t: Array, condition: Any) -> tuple[Array, Array]:
      field, probes = self._field(sde, score, key, x, condition)
      return field(t, (x, jnp.zeros((), x.dtype)), probes)

    return jax.vmap(one)(keys, x, t, condition)

  def _field(self, sde, score, key, x, condition):
    """Returns the derivative of one example's (x, log-density) in time, and its probes."""
    reverse = Reverse(sde, bind(score, jax.tree.map(lambda c: c[None], condition)), probability_flow=True)
    if self.probe == "exact":
      probes, weight = basis(x, x.size), 1.0
    else:
      probes, weight = PROBES[self.probe](key, (self.num_probes, *x.shape), x.dtype), 1 / self.num_probes

    def field(t: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
      x, _ = state
      drift = lambda x: reverse.drift(x[None], jnp.reshape(t, (1,)).astype(x.dtype))[0]
      value, products = value_and_jvps(drift, x, probes)
      return value, weight * jnp.sum(products * probes)

    return field, probes


def log_likelihood(
  key: Array, sde: SDE, score: Callable[..., Array], x: Batch, *, condition: Any = None, **options: Any
) -> PerExample:
  """Returns log p(x) in nats, (B,), of x (B, ...) under the probability-flow ODE of `score`. A pure function.

  The value is NaN if the solve ran into `max_steps`. `options` are those of `ExactLikelihood`, which also returns the
  latents and the number of evaluations.

  Raises:
    InvalidArgument: for an SDE without a likelihood, a score with wrong arguments, shape or dtype, or options out of
      range.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> ss.log_likelihood(jax.random.key(0), ss.VP(), lambda x, t: -x, jnp.zeros((4, 2)), probe="exact").shape
    (4,)
  """
  check_parts(sde)
  x = jnp.asarray(x)  # NumPy's float64 would be taken for another dtype than the score returns
  if not x.ndim or not jnp.issubdtype(x.dtype, jnp.floating):
    raise InvalidArgument(f"x of {x.dtype}{list(x.shape)} must be an array (B, ...) of floats.", "x")
  keys = example_keys(as_key(key), jnp.arange(x.shape[0]))
  check_condition(condition, x.shape[0])
  check_score(score, x, condition)
  found = ExactLikelihood(**options)(sde, score, keys, x, condition)
  return jnp.where(found.t >= jnp.asarray(sde.T, found.t.dtype), found.log_p, jnp.nan)


def bits_per_dim(log_p: PerExample, dims: int, levels: int, scale: float) -> PerExample:
  """Returns bits/dim, (B,), of discrete images with `levels` gray levels: -log2 p / dims + log2(levels) + log2(scale).

  Args:
    log_p: log-density, in nats, (B,), of uniformly dequantized images after scaling to the model's data.
    dims: dimensions of an image.
    levels: gray levels, 256 for ordinary images.
    scale: d(image in [0, 1]) / d(model's data): 1 for data in [0, 1], 1/2 for data in [-1, 1].
  """
  return -log_p / (dims * math.log(2)) + math.log2(levels) + math.log2(scale)


def dequantize_by_truncated_normal(
  sde: LinearSDE, keys: Keys, x0: Batch, gap: float, eps: float
) -> tuple[Batch, PerExample]:
  """Returns (x, log q(x | x_0)): noisy data of time `eps` whose density bounds the probability of discrete data x_0.

      log P(x_0) >= E_q[log p_eps(x) - log q(x | x_0)],    x = alpha x_0 + sigma z

  z is standard normal in [-tau, tau] with tau = alpha gap / (2 sigma), so that the x of two values do not overlap. A
  model of discrete data knows p_eps: it needs no training on dequantized data, as uniform dequantization does. The
  bound is close where tau is about 3 or more: choose `eps` so. Zheng et al. 2023, Section 4.

  Args:
    sde: the SDE, at whose time `eps` the data are taken.
    keys: one per example, (B,).
    x0: discrete data on the model's scale, (B, ...).
    gap: distance of two neighbouring values of x0.
    eps: the time of x, that of the likelihood.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> from score_sde.likelihood import dequantize_by_truncated_normal
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> x, log_q = dequantize_by_truncated_normal(ss.VP(), keys, jnp.ones((4, 2)), gap=2.0, eps=1e-3)
    >>> bool((abs(x - 1) < 1).all()), log_q.shape
    (True, (4,))
  """
  t = jnp.full(x0.shape[:1], eps, x0.dtype)
  alpha, sigma = sde.alpha(t), sde.sigma(t)
  tau, dims = alpha * gap / (2 * sigma), math.prod(x0.shape[1:])
  draw = lambda key, tau: jax.random.truncated_normal(key, -tau, tau, x0.shape[1:], x0.dtype)
  z = jax.vmap(draw)(keys, tau)
  inside = jax.scipy.special.erf(tau / math.sqrt(2))
  log_q = -sum_over_dims(z**2) / 2 - dims * (math.log(2 * math.pi) / 2 + jnp.log(sigma) + jnp.log(inside))
  return expand(alpha, x0) * x0 + expand(sigma, x0) * z, log_q


def normalize(
  log_density: Callable[[Array], Array], low: Array, high: Array, n: int = 200
) -> tuple[Array, Array, Array]:
  """Normalizes a density in one or two dimensions by quadrature. Returns (points, log-density, log-normalizer).

  log Z = log ∫ exp(log_density(x)) dx over the box from `low` to `high` (D,), by the midpoint rule with n points per
  axis. `points` are (n, 1) or (n, n, 2). The returned log-density is in nats, and its density integrates to one over
  the box.

  Raises:
    InvalidArgument: for another number of dimensions, or an empty box.
  """
  low, high = (jnp.atleast_1d(jnp.asarray(a, jnp.float32)) for a in (low, high))
  if len(low) not in (1, 2) or low.shape != high.shape or not bool((low < high).all()):
    raise InvalidArgument(
      f"low={low} and high={high} must satisfy low < high, in one or two dimensions.", "low", "high"
    )
  width = (high - low) / n
  axes = [a + w * (jnp.arange(n) + 0.5) for a, w in zip(low, width, strict=True)]
  points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
  values = log_density(points.reshape(-1, len(low))).reshape(points.shape[:-1])
  log_z = jax.nn.logsumexp(values) + jnp.sum(jnp.log(width))
  return points, values - log_z, log_z


# Encoding and then decoding changes data by at most 1e-3, even between modes, where the flow stretches most.
PRECISE = AdaptiveODE(rtol=1e-6, atol=1e-6)


def encode(
  sde: SDE, score: Score, x: Batch, *, eps: float = 1e-5, ode: AdaptiveODE = PRECISE, condition: Any = None
) -> tuple[Array, dict[str, Array]]:
  """Returns (latent, info): solves the ODE from data x (B, ...) at time `eps` to its latent at T. A pure function.

  The map is one to one. Latents of data have the density of x_T, which is the prior up to the signal that is left at T:
  nearly standard normal under VP and sub-VP, and nearly N(0, sigma_max² I) under VE with a large sigma_max.
  Latents scaled by a temperature below one decode to smoother data. `info` has "nfe", "t" and "finite", each (B,). "t"
  is the time reached. "finite" is False if the solve ran into `max_steps`, or if the result is not finite: then the
  result must not be used.
  Song et al. 2021, Section 4.3 and Appendix D.5.

  Raises:
    InvalidArgument: for an eps outside (0, T).

  Example:
    >>> import jax.numpy as jnp, score_sde as ss
    >>> latent, info = ss.encode(ss.VP(), lambda x, t: -x, jnp.ones((4, 2)))
    >>> latent.shape
    (4, 2)
  """
  check_times(sde, eps, sde.T)
  y, nfe, t = ode.move(sde, score, x, eps, sde.T, condition=condition)
  return y, {"nfe": nfe, "t": t, "finite": (t >= jnp.asarray(sde.T, t.dtype)) & all_finite(y)}


def decode(
  sde: SDE, score: Score, latent: Batch, *, eps: float = 1e-5, ode: AdaptiveODE = PRECISE, condition: Any = None
) -> tuple[Array, dict[str, Array]]:
  """Returns (data, info): the inverse of `encode`, with the same arguments and errors."""
  check_times(sde, eps, sde.T)
  y, nfe, t = ode.move(sde, score, latent, sde.T, eps, condition=condition)
  return y, {"nfe": nfe, "t": t, "finite": (t <= jnp.asarray(eps, t.dtype)) & all_finite(y)}


def interpolate(a: Batch, b: Batch, weights: Weights) -> Stack:
  """Interpolates latents from `a` to `b` (B, ...) on the great circle. Returns (K, B, ...), `weights` (K,) in [0, 1].

  sin((1 - w) θ) / sin θ a + sin(w θ) / sin θ b, θ the angle between the two. This keeps the norm of latents. A straight
  line would pass too close to the origin. Song et al. 2021, Appendix D.5.
  """
  cosine = sum_over_dims(a * b) / jnp.maximum(norm(a) * norm(b), jnp.finfo(a.dtype).tiny)
  angle = jnp.arccos(jnp.clip(cosine, -1, 1))
  apart = (angle > 1e-4) & (angle < math.pi - 1e-4)
  sine = jnp.where(apart, jnp.sin(angle), 1.0)
  share = lambda w: expand(jnp.where(apart, jnp.sin(w * angle) / sine, w), a)
  return jnp.stack([share(1 - w) * a + share(w) * b for w in jnp.asarray(weights, a.dtype)])
