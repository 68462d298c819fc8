"""Distributions whose density, score and posterior mean are known exactly at every t under every linear SDE.

They are a ground truth for samplers and likelihoods. If x_0 is a mixture of Gaussians, x_t = alpha x_0 + sigma z is
one too, with means alpha m_k and covariances alpha² C_k + sigma² I.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, PerExample, Time, sum_over_dims
from score_sde.errors import InvalidArgument
from score_sde.sde import LinearSDE, Score, denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
  """Gaussian mixture sum_k weights[k] N(means[k], covariances[k]) in D dimensions.

  With one component it is a Gaussian. With zero covariances it is a set of points.

  Attributes:
    means: (K, D).
    covariances: (K, D, D), positive semidefinite.
    weights: (K,), positive; they are normalized to sum to one.

  Raises:
    InvalidArgument: for other shapes, weights that are not positive, or covariances with a negative eigenvalue.
  """

  means: np.ndarray
  covariances: np.ndarray
  weights: np.ndarray
  # The eigenvalues (K, D) and eigenvectors (K, D, D) of the covariances.
  _spectrum: np.ndarray = dataclasses.field(init=False, repr=False)
  _basis: np.ndarray = dataclasses.field(init=False, repr=False)

  def __post_init__(self) -> None:
    means, covariances = np.asarray(self.means, np.float64), np.asarray(self.covariances, np.float64)
    weights = np.asarray(self.weights, np.float64)
    if means.ndim != 2:
      raise InvalidArgument(f"means={list(means.shape)} must be (K, D): K components in D dimensions.", "means")
    k, d = means.shape
    if covariances.shape != (k, d, d) or weights.shape != (k,) or not (weights > 0).all():
      raise InvalidArgument(
        f"A mixture of {k} components in {d} dimensions needs covariances {(k, d, d)} and {k} positive weights, got "
        f"{covariances.shape} and {weights}."
      )
    spectrum, basis = np.linalg.eigh(covariances)
    if spectrum.min() < -1e-10 * max(spectrum.max(), 1.0):
      raise InvalidArgument(f"covariances must be positive semidefinite; the smallest eigenvalue is {spectrum.min()}.")
    values = (means, covariances, weights / weights.sum(), np.maximum(spectrum, 0), basis)
    for name, value in zip(("means", "covariances", "weights", "_spectrum", "_basis"), values, strict=True):
      object.__setattr__(self, name, value)

  def sample(self, key: Array, n: int) -> Array:
    """Draws n samples of x_0, (n, D)."""
    pick, noise = jax.random.split(key)
    component = jax.random.choice(pick, len(self.weights), (n,), p=jnp.asarray(self.weights))
    root = jnp.asarray(self._basis * np.sqrt(self._spectrum)[:, None, :])
    z = jax.random.normal(noise, (n, self.means.shape[1]))
    return jnp.asarray(self.means)[component] + jnp.einsum("nij,nj->ni", root[component], z)

  def log_density(self, sde: LinearSDE, x: Batch, t: Time) -> PerExample:
    """Returns log p_t(x), in nats: (B, D), (B,) -> (B,)."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]

    def component(mean, spectrum, basis, weight):
      variance = alpha**2 * jnp.asarray(spectrum, x.dtype) + sigma**2
      projected = (x - alpha * jnp.asarray(mean, x.dtype)) @ jnp.asarray(basis, x.dtype)
      exponent = jnp.sum(projected**2 / variance + jnp.log(2 * math.pi * variance), axis=1)
      return math.log(weight) - exponent / 2

    parts = [component(*c) for c in zip(self.means, self._spectrum, self._basis, self.weights.tolist(), strict=True)]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0)

  def score(self, sde: LinearSDE) -> Score:
    """Returns the exact score(x, t) = grad log p_t(x)."""
    return lambda x, t: jax.grad(lambda x: jnp.sum(self.log_density(sde, x, t)))(x)

  def posterior(self, a: np.ndarray, y: np.ndarray, noise: float) -> "GaussianMixture":
    """Returns the distribution of x_0 given y = a x_0 + noise z, also a mixture: `a` (M, D), `y` (M,), noise > 0.

    The `score` of the result is the score of p_t(x | y) at every t.
    """
    a, y = np.asarray(a, np.float64), np.asarray(y, np.float64)
    r, c = y - self.means @ a.T, self.covariances
    s = a @ c @ a.T + noise**2 * np.eye(len(y))
    gain = c @ a.T @ np.linalg.inv(s)
    log_w = np.log(self.weights) - (np.einsum("km,kml,kl->k", r, np.linalg.inv(s), r) + np.linalg.slogdet(s)[1]) / 2
    kept = np.eye(a.shape[1]) - gain @ a
    covariances = kept @ c @ kept.transpose(0, 2, 1) + noise**2 * gain @ gain.transpose(0, 2, 1)
    weights = np.maximum(np.exp(log_w - log_w.max()), 1e-300)
    return GaussianMixture(self.means + np.einsum("kdm,km->kd", gain, r), covariances, weights)

  def log_likelihood(self, sde: LinearSDE, x: Array, t: Array, a: Array, y: Array, noise: Array) -> Array:
    """Returns log p_t(y | x_t = x) in nats, (B,), where y = a x_0 + noise z.

    Shapes: x (B, D), t (B,), a (B, M, D), y (B, M), noise (B,).
    """
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]

    def component(mean, spectrum, basis, weight):
      """Returns the log-weight given x_t, up to a constant, and log p(y | x_t) for one component; each is (B,)."""
      mean, spectrum, basis = (jnp.asarray(v, x.dtype) for v in (mean, spectrum, basis))
      variance = alpha**2 * spectrum + sigma**2
      z = (x - alpha * mean) @ basis
      log_w = math.log(weight) - jnp.sum(z**2 / variance + jnp.log(variance), axis=1) / 2
      expected = mean + (alpha * spectrum / variance * z) @ basis.T
      rotated = a @ basis
      s = jnp.einsum("bmk,bk,blk->bml", rotated, spectrum * sigma**2 / variance, rotated)
      root = jnp.linalg.cholesky(s + noise[:, None, None] ** 2 * jnp.eye(a.shape[1], dtype=x.dtype))
      r = jax.scipy.linalg.solve_triangular(root, (y - jnp.einsum("bmd,bd->bm", a, expected))[..., None], lower=True)
      log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)), axis=1)
      return log_w, -(sum_over_dims(r**2) + log_det + a.shape[1] * math.log(2 * math.pi)) / 2

    parts = [component(*c) for c in zip(self.means, self._spectrum, self._basis, self.weights.tolist(), strict=True)]
    log_w, log_p = (jnp.stack(p) for p in zip(*parts, strict=True))
    return jax.nn.logsumexp(jax.nn.log_softmax(log_w, axis=0) + log_p, axis=0)

  def posterior_mean(self, sde: LinearSDE, x: Batch, t: Time) -> Batch:
    """Returns E[x_0 | x_t = x] = (x + sigma² score) / alpha, Tweedie's formula: (B, D), (B,) -> (B, D)."""
    return denoiser(sde, self.score(sde))(x, t)


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> GaussianMixture:
  """Returns N(mean, covariance) as a mixture of one component: `mean` (D,), `covariance` (D, D)."""
  return GaussianMixture(np.asarray(mean)[None], np.asarray(covariance)[None], np.ones(1))


def points(locations: np.ndarray) -> GaussianMixture:
  """Returns the distribution of K equally likely points: `locations` (K, D)."""
  if np.ndim(locations) != 2:
    raise InvalidArgument(
      f"locations={list(np.shape(locations))} must be (K, D): K points in D dimensions.", "locations"
    )
  k, d = np.shape(locations)
  return GaussianMixture(np.asarray(locations), np.zeros((k, d, d)), np.ones(k))
