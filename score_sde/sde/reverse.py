"""Time reversed, from noise to data, once the score is known."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_sde.batch import Array, expand
from score_sde.sde.base import SDE, Score, apply_covariance
from score_sde.sde.linear import linear


def denoiser(sde: SDE, score: Score) -> Score:
  """Returns D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, by Tweedie's formula, of a linear SDE."""
  sde = linear(sde, "E[x_0 | x_t]")
  return lambda x, t: (x + expand(sde.sigma(t), x) ** 2 * score(x, t)) / expand(sde.alpha(t), x)


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
