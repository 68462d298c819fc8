"""The reverse-time SDE, the probability-flow ODE and the denoiser, which follow from an SDE and a score."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Time, expand
from score_sde.sde.base import SDE, Score, apply_covariance
from score_sde.sde.linear import linear


def denoiser(sde: SDE, score: Score) -> Score:
  """Returns D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, Tweedie's formula, for a linear SDE.

  Without noise, at sigma = 0, it is x / alpha, whatever the score: that of a network is infinite there.
  """
  sde = linear(sde, "E[x_0 | x_t]")

  def denoise(x: Batch, t: Time) -> Batch:
    sigma = expand(sde.sigma(t), x)
    return (x + jnp.where(sigma > 0, sigma**2 * score(x, t), 0.0)) / expand(sde.alpha(t), x)

  return denoise


def covariance_divergence(sde: SDE, x: Batch, t: Time) -> Array | float:
  """Returns div(G Gᵀ), like `x`: entry i is the sum over j of ∂(G Gᵀ)ᵢⱼ/∂xⱼ. Song et al. 2021, Appendix A.

  It is zero if the diffusion is one number per example. Otherwise it takes one forward derivative per dimension.
  """
  g = jax.eval_shape(sde.diffusion, x, t)
  if isinstance(g, jax.ShapeDtypeStruct) and g.ndim <= 1:
    return 0.0
  dims = math.prod(x.shape[1:])

  def column(j):
    basis = jnp.broadcast_to(jax.nn.one_hot(j, dims, dtype=x.dtype).reshape(x.shape[1:]), x.shape)
    return jax.jvp(lambda x: apply_covariance(sde.diffusion(x, t), basis), (x,), (basis,))[1]

  return jnp.sum(jax.lax.map(column, jnp.arange(dims)), axis=0)


def covariance_pull(sde: SDE, score: Score, x: Batch, t: Time, g: Array, h: Time) -> Batch:
  """Returns G Gᵀ score + h div(G Gᵀ), like `x`, for a step of length h (B,) of a chain that adds the noise G z.

  A linear SDE has no divergence.
  """
  pull = apply_covariance(g, score(x, t))
  return pull if sde.is_linear else pull + expand(h, x) * covariance_divergence(sde, x, t)


@dataclasses.dataclass(frozen=True)
class Reverse:
  """The reverse-time SDE of `sde` under `score`, or its probability-flow ODE, as functions of the forward time t.

  Song et al. 2021, eq. (6), (13) and Appendix A.

  Attributes:
    sde: the forward SDE.
    score: (x, t) -> grad log p_t(x), like `x`.
    probability_flow: True gives the deterministic ODE with the same marginals, instead of the SDE.
  """

  sde: SDE
  score: Score
  probability_flow: bool = False

  @property
  def _share(self) -> float:
    return 0.5 if self.probability_flow else 1.0

  def drift(self, x: Batch, t: Time) -> Batch:
    g = self.sde.diffusion(x, t)
    pull = apply_covariance(g, self.score(x, t)) + covariance_divergence(self.sde, x, t)
    return self.sde.drift(x, t) - self._share * pull

  def diffusion(self, x: Batch, t: Time) -> Array:
    return jnp.zeros_like(t) if self.probability_flow else self.sde.diffusion(x, t)

  def discretize(self, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Array, Array]:
    """Returns (f, G) of the reversed chain, x_stop = x_start - f + G z. Song et al. 2021, eq. (46)."""
    f, g = self.sde.discretize(x, t, start, stop)
    f = f - self._share * covariance_pull(self.sde, self.score, x, t, g, start - stop)
    return f, jnp.zeros_like(g) if self.probability_flow else g
