"""SA-Solver: stochastic Adams methods for the extended reverse-time SDE, from the ODE to more noise than the SDE's."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, Keys, Time
from score_sde.options import check_interval, option
from score_sde.sampling.multistep import Multistep, MultistepState, Transition, through
from score_sde.sampling.solver import half_log_snr
from score_sde.sde import SDE, LinearSDE, Score


def _gauss_legendre(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns nodes and weights of Gauss-Legendre quadrature on [0, 1], and the matrix of integrals from 0 to each node.

  Row i of the matrix integrates the polynomial through values at the nodes, from 0 to node i.
  """
  nodes, weights = np.polynomial.legendre.leggauss(n)
  nodes, weights = (nodes + 1) / 2, weights / 2
  powers = np.vander(nodes, n, increasing=True)
  integrals = nodes[:, None] ** np.arange(1, n + 1) / np.arange(1, n + 1)
  return nodes, weights, np.linalg.solve(powers.T, integrals.T).T


_NODES, _WEIGHTS, _UP_TO = _gauss_legendre(10)

# Steps are cut to this length in lambda, after which nothing of x is left.
_LONGEST = 60.0

# Brownian paths run over this range of lambda, in steps of about 2e-4.
_PATH, _PATH_STEP = 32.0, 2.0**-12


@dataclasses.dataclass(frozen=True)
class SASolver(Multistep):
  """Stochastic Adams solver for dx = [f - (1 + tau²)/2 g² score] dt + tau g dw: all have the marginals of the SDE.

  tau = 0 is the probability-flow ODE, tau = 1 the reverse-time SDE. With lambda = log(alpha / sigma), T(l) the integral
  of tau² from l to the end of a step, and e.g. s and t its ends,

      x_t = sigma_t/sigma_s exp(-T(s)) x_s + sigma_t ∫ exp(l - T(l)) (1 + tau²) D dl + sigma_t sqrt(1 - exp(-2 T(s))) z.

  D is replaced by the polynomial in lambda through `order` evaluations, of which order - 1 are of earlier steps. Its
  integral is exact for a number tau, and to rounding for a smooth function. If `corrected`, the polynomial also passes
  through D at the predicted x_t, with the same noise z. Xue et al. 2023 (SA-Solver), Proposition 4.2 and Algorithm 1.

  Without noise, the order is `order`, one more if corrected. With noise, the error of the covariance on Gaussian data
  is of order 2 (1 for order 1, not corrected), and the error of paths of order 1.

  tau=0, order 1, not corrected is DDIM; tau=0, order 3, corrected is UniPC. tau=1, order 3, not corrected is
  DPM-Solver++(3M) SDE, with all factors of the third order (see docs/errata.md).
  ER-SDE solvers (Cui et al. 2023) with noise phi(s), s = sigma/alpha, have tau² = d log(phi(s)/s) / d log s: give that
  as `noise_of`.

  Attributes:
    noise_of: tau as a function of sigma/alpha, (B, K) -> (B, K); it replaces `tau`. None for the number.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.SASolver(tau=0.8), steps=30).shape
    (4, 2)
  """

  order: int = option(
    3, "evaluations in a step of SA-Solver, besides that of a correction: 1, 2 or 3", choices=(1, 2, 3)
  )
  corrected: bool = option(True, "correct each step of SA-Solver by the evaluation for the next; no more evaluations")
  tau: float = option(1.0, "noise of SA-Solver: 0 is the ODE, 1 the reverse-time SDE", "[0, inf)")
  tau_min: float = option(0.0, "sigma / alpha below which SA-Solver adds no noise", "[0, inf)", needs={"tau": ()})
  tau_max: float = option(math.inf, "sigma / alpha above which it adds none", "(0, inf]", needs={"tau": ()})
  brownian: bool = option(
    False, "draw the noise of SA-Solver from one Brownian path per sample, so that numbers of steps can be compared"
  )
  noise_of: Callable[[Array], Array] | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    check_interval(self, "tau_min", "tau_max")

  @property
  def uses(self) -> int:
    return self.order - 1

  @property
  def corrects(self) -> bool:
    return self.corrected

  def transition(self, sde: LinearSDE, start: Time, stop: Time, h: Array) -> Transition:
    h = jnp.minimum(h, _LONGEST)  # to sigma = 0, the end of no named grid
    nodes, weights, up_to = (jnp.asarray(a, h.dtype) for a in (_NODES, _WEIGHTS, _UP_TO))
    ratio = jnp.exp(-(half_log_snr(sde, start)[:, None] + h[:, None] * nodes))
    if self.noise_of is not None:
      squared = self.noise_of(ratio) ** 2
    else:
      squared = jnp.where((ratio >= self.tau_min) & (ratio <= self.tau_max), self.tau**2, 0.0)
    squared = h[:, None] * squared
    noise = squared @ weights  # T(s)
    rest = noise[:, None] - squared @ up_to.T + h[:, None] * (1 - nodes)
    density = (squared + h[:, None]) * jnp.exp(-rest)
    alpha, sigma = sde.alpha(stop), sde.sigma(stop)

    def of(places: list[Array]) -> list[Array]:
      moments = jnp.stack([(density * nodes**j) @ weights for j in range(1, len(places) + 1)], axis=-1)
      found = through(places, moments)
      return [alpha * found[:, k] for k in range(len(places))]

    silent = self.noise_of is None and self.tau == 0
    std = None if silent else sigma * jnp.sqrt(jnp.maximum(-jnp.expm1(-2 * noise), 0.0))
    return Transition(sigma / sde.sigma(start) * jnp.exp(-noise), -alpha * jnp.expm1(-h - noise), of, std)

  def init(self, sde: SDE, x: Batch, t: Time) -> MultistepState:
    state = super().init(sde, x, t)
    return state._replace(path=jnp.zeros((len(x), 2), jnp.uint32)) if self.brownian else state

  def step(
    self, sde: SDE, score: Score, keys: Keys, state: MultistepState, t: Time, start: Time, stop: Time
  ) -> MultistepState:
    if state.path is not None:  # the keys of the first step are those of the paths
      first = jax.random.key_data(keys)[:, -2:].astype(jnp.uint32)
      state = state._replace(path=jnp.where(state.taken == 0, first, state.path))
    return super().step(sde, score, keys, state, t, start, stop)

  def noise(self, sde: LinearSDE, keys: Keys, x: Batch, start: Time, stop: Time, path: Array | None) -> Array:
    if path is None:
      return super().noise(sde, keys, x, start, stop, path)
    low, high = (jnp.clip(half_log_snr(sde, t), -_PATH, _PATH) for t in (start, stop))

    def increment(words: Array, low: Array, high: Array) -> Array:
      key = jax.random.wrap_key_data(words, impl="threefry2x32")
      shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
      found: Any = diffrax.VirtualBrownianTree(-_PATH, _PATH, _PATH_STEP, shape, key).evaluate(low, high)
      return found / jnp.sqrt(high - low)

    return jax.vmap(increment)(path, low, high)
