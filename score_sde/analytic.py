"""Data whose density, score and posterior mean are known exactly at every t under every linear SDE.

A ground truth for samplers and likelihoods: with x_0 a mixture of Gaussians, x_t = alpha x_0 + sigma z is one too, with
means alpha m_k and covariances alpha² C_k + sigma² I.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.sde import LinearSDE, Score, denoiser


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
  """sum_k weights[k] N(means[k], covariances[k]) in D dimensions. One component is a Gaussian, zero covariances points.

  Attributes:
    means: (K, D).
    covariances: (K, D, D), positive semidefinite.
    weights: (K,), positive, normalized on use.
  """

  means: np.ndarray
  covariances: np.ndarray
  weights: np.ndarray

  def __post_init__(self):
    means, covariances = np.asarray(self.means, np.float64), np.asarray(self.covariances, np.float64)
    weights = np.asarray(self.weights, np.float64)
    k, d = means.shape
    if covariances.shape != (k, d, d) or weights.shape != (k,) or not (weights > 0).all():
      raise ValueError(
        f"A mixture of {k} components in {d} dimensions needs covariances {(k, d, d)} and {k} positive weights, got "
        f"{covariances.shape} and {weights}."
      )
    spectrum, basis = np.linalg.eigh(covariances)
    if spectrum.min() < -1e-10 * max(spectrum.max(), 1.0):
      raise ValueError(f"covariances must be positive semidefinite; the smallest eigenvalue is {spectrum.min()}.")
    values = (means, covariances, weights / weights.sum(), np.maximum(spectrum, 0), basis)
    for name, value in zip(("means", "covariances", "weights", "_spectrum", "_basis"), values, strict=True):
      object.__setattr__(self, name, value)

  def sample(self, key: Array, n: int) -> Array:
    """n draws of x_0, (n, D)."""
    pick, noise = jax.random.split(key)
    component = jax.random.choice(pick, len(self.weights), (n,), p=jnp.asarray(self.weights))
    root = jnp.asarray(self._basis * np.sqrt(self._spectrum)[:, None, :])
    z = jax.random.normal(noise, (n, self.means.shape[1]))
    return jnp.asarray(self.means)[component] + jnp.einsum("nij,nj->ni", root[component], z)

  def log_density(self, sde: LinearSDE, x: Array, t: Array) -> Array:
    """log p_t(x), in nats: (B, D), (B,) -> (B,)."""
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]

    def component(mean, spectrum, basis, weight):
      variance = alpha**2 * jnp.asarray(spectrum, x.dtype) + sigma**2
      projected = (x - alpha * jnp.asarray(mean, x.dtype)) @ jnp.asarray(basis, x.dtype)
      exponent = jnp.sum(projected**2 / variance + jnp.log(2 * math.pi * variance), axis=1)
      return math.log(weight) - exponent / 2

    parts = [component(*c) for c in zip(self.means, self._spectrum, self._basis, self.weights.tolist(), strict=True)]
    return jax.nn.logsumexp(jnp.stack(parts), axis=0)

  def score(self, sde: LinearSDE) -> Score:
    """The exact score(x, t) = grad log p_t(x)."""
    return lambda x, t: jax.grad(lambda x: jnp.sum(self.log_density(sde, x, t)))(x)

  def posterior_mean(self, sde: LinearSDE, x: Array, t: Array) -> Array:
    """E[x_0 | x_t = x] = (x + sigma² score) / alpha, by Tweedie's formula."""
    return denoiser(sde, self.score(sde))(x, t)


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> GaussianMixture:
  """N(mean, covariance)."""
  return GaussianMixture(np.asarray(mean)[None], np.asarray(covariance)[None], np.ones(1))


def points(locations: np.ndarray) -> GaussianMixture:
  """Equally likely points (K, D)."""
  k, d = np.shape(locations)
  return GaussianMixture(np.asarray(locations), np.zeros((k, d, d)), np.ones(k))
