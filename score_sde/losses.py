"""Denoising score matching: the losses that networks are trained with.

    L = E_t E_x0 E_z  w(t) ‖ z_θ(x_t, t) - z ‖²,        x_t = alpha x_0 + sigma z,  score_θ = -z_θ / sigma

w = 1 is the weighting lambda(t) = 1 / E‖grad log p(x_t | x_0)‖² of Song et al. 2021, eq. (7), NCSN's sigma² and
DDPM's simple loss. w = g² / sigma² = -d log_snr / dt is likelihood weighting, an upper bound of the negative
log-likelihood (Song et al. 2021b, Theorem 1); drawing t in proportion to it, so that log-SNR is uniform, lowers its
variance (Song et al. 2021b, Section 4.4).
"""

import dataclasses

import jax.numpy as jnp

from score_sde.batch import Array, fold, normal, sum_over_dims, uniform
from score_sde.parameterization import Params, ScoreModel
from score_sde.sde import LinearSDE

# Streams of an example's key, one for each purpose.
TIME, NOISE, DROPOUT = range(3)


def reduce(error: Array, reduce_mean: bool) -> Array:
  """Squared error an example, (B,): the mean over dimensions, or half their sum (the official `reduce_mean`)."""
  total = sum_over_dims(error**2)
  return total / (error.size // error.shape[0]) if reduce_mean else 0.5 * total


def continuous_loss(
  model: ScoreModel,
  params: Params,
  x0: Array,
  t: Array,
  z: Array,
  *,
  likelihood_weighting: bool = False,
  reduce_mean: bool = True,
  keys: Array | None = None,
) -> Array:
  """Denoising score matching at times `t` with noise `z`: (B,). Song et al. 2021, eq. (7)."""
  loss = reduce(model.noise_error(params, x0, z, model.level(t), keys), reduce_mean)
  return -model.sde.dlog_snr(t) * loss if likelihood_weighting else loss


def discrete_loss(
  model: ScoreModel,
  params: Params,
  x0: Array,
  index: Array,
  z: Array,
  *,
  reduce_mean: bool = True,
  keys: Array | None = None,
) -> Array:
  """The loss of NCSN (VE; Song & Ermon 2019, eq. (6)) and DDPM (VP; Ho et al. 2020, eq. (14)) at `index`: (B,)."""
  return reduce(model.noise_error(params, x0, z, model.level_of_index(index, x0.dtype), keys), reduce_mean)


def times(sde: LinearSDE, u: Array, eps: float, importance: bool) -> tuple[Array, Array | float]:
  """Maps u (B,), uniform in [0, 1), to times in [eps, T]: (t, normalizer).

  Uniform in t; or, with `importance`, with density (-d log_snr/dt) / normalizer, that is uniform in log-SNR.
  """
  if not importance:
    return eps + u * (sde.T - eps), 1.0
  first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (eps, sde.T))
  return jnp.clip(sde.time_of_log_snr(first + u * (last - first)), eps, sde.T), first - last


@dataclasses.dataclass(frozen=True)
class DenoisingScoreMatching:
  """The training loss: `loss(params, keys, x0, index, batch_size, train)` -> (B,).

  Attributes:
    model: what is trained; discrete if its `num_scales` is set, continuous otherwise.
    eps: smallest time, for a continuous model.
    likelihood_weighting: weight by g² / sigma².
    importance_sampling: with likelihood weighting, draw t in proportion to the weight.
    reduce_mean: mean over dimensions instead of half their sum.
    stratified: spread the times of a batch evenly, t_i = (u_i + i) / batch size, which lowers the loss's variance.

  Raises:
    ValueError: for options that cannot work together.
  """

  model: ScoreModel
  eps: float = 1e-5
  likelihood_weighting: bool = False
  importance_sampling: bool = False
  reduce_mean: bool = True
  stratified: bool = False

  def __post_init__(self):
    if self.importance_sampling and not self.likelihood_weighting:
      raise ValueError("training.importance_sampling draws times for training.likelihood_weighting: set both or none.")
    if self.likelihood_weighting and self.model.num_scales is not None:
      raise ValueError("training.likelihood_weighting needs training.continuous=True: discrete models have no g(t).")
    if not 0 < self.eps < self.model.sde.T:
      raise ValueError(f"training.eps must lie in (0, {self.model.sde.T}), got {self.eps}.")

  def __call__(
    self, params: Params, keys: Array, x0: Array, index: Array, batch_size: int, train: bool = True
  ) -> Array:
    """Losses (B,) of data `x0`, whose examples stand at `index` (B,) of a global batch of `batch_size`."""
    z = normal(fold(keys, NOISE), x0)
    u = uniform(fold(keys, TIME), jnp.zeros_like(x0, shape=x0.shape[:1]))
    if self.stratified:
      u = (u + index) / batch_size
    options = {"reduce_mean": self.reduce_mean, "keys": fold(keys, DROPOUT) if train else None}
    if self.model.num_scales is not None:
      level = jnp.clip((u * self.model.num_scales).astype(jnp.int32), 0, self.model.num_scales - 1)
      return discrete_loss(self.model, params, x0, level, z, **options)
    t, normalizer = times(self.model.sde, u, self.eps, self.importance_sampling)
    if self.importance_sampling:
      return normalizer * continuous_loss(self.model, params, x0, t, z, **options)
    options["likelihood_weighting"] = self.likelihood_weighting
    return continuous_loss(self.model, params, x0, t, z, **options)
