"""Denoising score matching: the losses that networks are trained with.

    L = E_t E_x0 E_z  w(t) ‖ z_θ(x_t, t) - z ‖²,        x_t = alpha x_0 + sigma z,  score_θ = -z_θ / sigma

w = 1 is the weighting lambda(t) = 1 / E‖grad log p(x_t | x_0)‖² of Song et al. 2021, eq. (7), NCSN's sigma² and
DDPM's simple loss. w = g² / sigma² = -d log_snr / dt is likelihood weighting, an upper bound of the negative
log-likelihood (Song et al. 2021b, Theorem 1); drawing t in proportion to it, so that log-SNR is uniform, lowers its
variance (Song et al. 2021b, Section 4.4).
"""

import dataclasses

import jax
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


# name: w(t), (B,).
WEIGHTINGS = {
  "simple": lambda model, t, level: jnp.ones_like(t),
  "likelihood": lambda model, t, level: -model.sde.dlog_snr(t),
  # 1 / c_out² of the data's error: equal at all times for a network whose output is scaled to unit variance.
  "edm": lambda model, t, level: 1 + (level.sigma / (level.alpha * model.sigma_data)) ** 2,
}


def continuous_loss(
  model: ScoreModel,
  params: Params,
  x0: Array,
  t: Array,
  z: Array,
  *,
  weighting: str = "simple",
  reduce_mean: bool = True,
  keys: Array | None = None,
  y: Array | None = None,
) -> Array:
  """Denoising score matching at times `t` with noise `z`, weighted by WEIGHTINGS: (B,). Song et al. 2021, eq. (7)."""
  level = model.level(t)
  return WEIGHTINGS[weighting](model, t, level) * reduce(model.noise_error(params, x0, z, level, keys, y), reduce_mean)


def discrete_loss(
  model: ScoreModel,
  params: Params,
  x0: Array,
  index: Array,
  z: Array,
  *,
  reduce_mean: bool = True,
  keys: Array | None = None,
  y: Array | None = None,
) -> Array:
  """The loss of NCSN (VE; Song & Ermon 2019, eq. (6)) and DDPM (VP; Ho et al. 2020, eq. (14)) at `index`: (B,)."""
  return reduce(model.noise_error(params, x0, z, model.level_of_index(index, x0.dtype), keys, y), reduce_mean)


def uniform_times(sde: LinearSDE, u: Array, eps: float) -> Array:
  """Maps u (B,), uniform in [0, 1), to times uniform in [eps, T]."""
  return eps + u * (sde.T - eps)


def importance_times(sde: LinearSDE, u: Array, eps: float) -> tuple[Array, Array]:
  """Maps u (B,) to (times in [eps, T], normalizer), of density (-d log_snr/dt) / normalizer: uniform in log-SNR."""
  first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (eps, sde.T))
  return jnp.clip(sde.time_of_log_snr(first + u * (last - first)), eps, sde.T), first - last


def lognormal_times(sde: LinearSDE, u: Array, eps: float, mean: float, std: float) -> Array:
  """Maps u (B,) to times in [eps, T] where log(sigma / alpha) ~ N(mean, std²), clipped. Karras et al. 2022, Table 1."""
  log_ratio = mean + std * jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))
  first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (eps, sde.T))
  return jnp.clip(sde.time_of_log_snr(jnp.clip(-2 * log_ratio, last, first)), eps, sde.T)


TIME_SAMPLINGS = ("uniform", "importance", "lognormal")


@dataclasses.dataclass(frozen=True)
class DenoisingScoreMatching:
  """The training loss: `loss(params, keys, x0, index, batch_size, train, y)` -> (B,).

  Attributes:
    model: what is trained; discrete if its `num_scales` is set, continuous otherwise.
    eps: smallest time, for a continuous model.
    weighting: a name in WEIGHTINGS: "simple" (1), "likelihood" (g² / sigma²), "edm" (1 + (sigma / alpha sigma_data)²).
    time_sampling: how t is drawn, a name in TIME_SAMPLINGS: "uniform", "importance" (with likelihood weighting, in
      proportion to the weight) or "lognormal".
    p_mean, p_std: mean and standard deviation of log(sigma / alpha), for "lognormal".
    reduce_mean: mean over dimensions instead of half their sum.
    stratified: spread the times of a batch evenly, t_i = (u_i + i) / batch size, which lowers the loss's variance.

  Raises:
    ValueError: for options that cannot work together.
  """

  model: ScoreModel
  eps: float = 1e-5
  weighting: str = "simple"
  time_sampling: str = "uniform"
  p_mean: float = -1.2
  p_std: float = 1.2
  reduce_mean: bool = True
  stratified: bool = False

  def __post_init__(self):
    for key, name, known in (
      ("weighting", self.weighting, tuple(WEIGHTINGS)),
      ("time_sampling", self.time_sampling, TIME_SAMPLINGS),
    ):
      if name not in known:
        raise ValueError(f"training.{key}={name!r} is unknown; choose one of {', '.join(known)}.")
    if self.time_sampling == "importance" and self.weighting != "likelihood":
      raise ValueError("training.importance_sampling draws times for training.likelihood_weighting: set both or none.")
    if (self.weighting, self.time_sampling) != ("simple", "uniform") and self.model.num_scales is not None:
      raise ValueError(
        f"training.weighting={self.weighting!r} with training.time_sampling={self.time_sampling!r} needs "
        "training.continuous=True: a discrete model has levels, not times."
      )
    if not self.p_std > 0:
      raise ValueError(f"training.p_std must be positive, got {self.p_std}.")
    if not 0 < self.eps < self.model.sde.T:
      raise ValueError(f"training.eps must lie in (0, {self.model.sde.T}), got {self.eps}.")

  def __call__(
    self,
    params: Params,
    keys: Array,
    x0: Array,
    index: Array,
    batch_size: int,
    train: bool = True,
    y: Array | None = None,
  ) -> Array:
    """Losses (B,) of data `x0` of classes `y`; the examples stand at `index` (B,) of a global batch of `batch_size`."""
    z = normal(fold(keys, NOISE), x0)
    u = uniform(fold(keys, TIME), jnp.zeros_like(x0, shape=x0.shape[:1]))
    if self.stratified:
      u = (u + index) / batch_size
    options = {"reduce_mean": self.reduce_mean, "keys": fold(keys, DROPOUT) if train else None, "y": y}
    if self.model.num_scales is not None:
      level = jnp.clip((u * self.model.num_scales).astype(jnp.int32), 0, self.model.num_scales - 1)
      return discrete_loss(self.model, params, x0, level, z, **options)
    if self.time_sampling == "importance":
      t, normalizer = importance_times(self.model.sde, u, self.eps)
      return normalizer * continuous_loss(self.model, params, x0, t, z, **options)
    if self.time_sampling == "lognormal":
      t = lognormal_times(self.model.sde, u, self.eps, self.p_mean, self.p_std)
    else:
      t = uniform_times(self.model.sde, u, self.eps)
    return continuous_loss(self.model, params, x0, t, z, weighting=self.weighting, **options)
