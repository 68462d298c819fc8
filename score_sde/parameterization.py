"""What a network predicts, how it sees time, and the score that follows.

With x_t = alpha x_0 + sigma z, Tweedie's formula makes the four predictions one:

    score = -E[z | x_t] / sigma = (alpha E[x_0 | x_t] - x_t) / sigma²
    velocity = alpha E[z | x_t] - sigma E[x_0 | x_t]

Efron 2011, eq. (1.4); Salimans & Ho 2022, Appendix D, for the velocity; Karras et al. 2022, Table 1, for "edm".
Each conversion is made once, in the form that does not cancel at either end of time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from score_sde.batch import Array, expand
from score_sde.sde import LinearSDE

Params = Any
Network = Callable[..., Array]  # (params, x, labels, keys or None[, y]) -> like x


@dataclasses.dataclass(frozen=True)
class Level:
  """One noise level a example: x = alpha x_0 + sigma z, and the label under which a network knows it; all (B,)."""

  alpha: Array
  sigma: Array
  label: Array


def _score_to_noise(out, x, alpha, sigma, sigma_data):
  return -sigma * out


def _noise_to_noise(out, x, alpha, sigma, sigma_data):
  return out


def _data_to_noise(out, x, alpha, sigma, sigma_data):
  return (x - alpha * out) / sigma


def _velocity_to_noise(out, x, alpha, sigma, sigma_data):
  return (sigma * x + alpha * out) / (alpha**2 + sigma**2)


def _edm_to_noise(out, x, alpha, sigma, sigma_data):
  variance = sigma**2 + (alpha * sigma_data) ** 2
  return sigma * x / variance - alpha * sigma_data / jnp.sqrt(variance) * out


def _score_to_data(out, x, alpha, sigma, sigma_data):
  return (x + sigma**2 * out) / alpha


def _noise_to_data(out, x, alpha, sigma, sigma_data):
  return (x - sigma * out) / alpha


def _data_to_data(out, x, alpha, sigma, sigma_data):
  return out


def _velocity_to_data(out, x, alpha, sigma, sigma_data):
  return (alpha * x - sigma * out) / (alpha**2 + sigma**2)


def _edm_to_data(out, x, alpha, sigma, sigma_data):
  variance = sigma**2 + (alpha * sigma_data) ** 2
  return alpha * sigma_data**2 * x / variance + sigma * sigma_data / jnp.sqrt(variance) * out


def _score_error(out, x0, z, alpha, sigma, sigma_data):
  return -sigma * out - z


def _noise_error(out, x0, z, alpha, sigma, sigma_data):
  return out - z


def _data_error(out, x0, z, alpha, sigma, sigma_data):
  return (x0 - out) * alpha / sigma


def _velocity_error(out, x0, z, alpha, sigma, sigma_data):
  return (out - (alpha * z - sigma * x0)) * alpha / (alpha**2 + sigma**2)


def _edm_error(out, x0, z, alpha, sigma, sigma_data):
  # F's target is (x_0 - c_skip x / alpha) / c_out; in terms of x_0 and z nothing cancels as sigma -> 0.
  spread = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
  target = (sigma * x0 - alpha * sigma_data**2 * z) / (sigma_data * spread)
  return (target - out) * alpha * sigma_data / spread


# name: (estimate of the noise, estimate of the data, error of the estimated noise)
PREDICTIONS = {
  "score": (_score_to_noise, _score_to_data, _score_error),
  "noise": (_noise_to_noise, _noise_to_data, _noise_error),
  "data": (_data_to_noise, _data_to_data, _data_error),
  "velocity": (_velocity_to_noise, _velocity_to_data, _velocity_error),
  "edm": (_edm_to_noise, _edm_to_data, _edm_error),
}

# How a network sees time in a continuous model; a discrete one sees the index of its noise level.
CONDITIONINGS = {
  "sigma": lambda sde, t: sde.sigma(t) / sde.alpha(t),  # VE; the same noise-to-signal ratio for every other SDE
  "log_sigma": lambda sde, t: -0.125 * sde.log_snr(t),  # log(sigma / alpha) / 4, EDM's c_noise
  "time": lambda sde, t: 999.0 * t / sde.T,  # VP and sub-VP
}


@dataclasses.dataclass(frozen=True)
class ScoreModel:
  """A network as a model of the score of `sde`: hashable, without parameters, every method a pure function of them.

  Attributes:
    sde: the SDE that the data is diffused by.
    network: (params, x, labels, keys[, y]) -> output like x; keys (B,) drive dropout, None turns it off; classes y
      (B,) come only where there are any.
    prediction: a name in PREDICTIONS. "edm" is data prediction with the network's input and output scaled to unit
      variance at every noise level: D = c_skip x / alpha + c_out F(c_in x / alpha).
    conditioning: a name in CONDITIONINGS, for a continuous model.
    num_scales: the number of noise levels of a discrete model (SMLD, DDPM); None for a continuous one.
    sigma_data: standard deviation of the data, for "edm".
  """

  sde: LinearSDE
  network: Network
  prediction: str
  conditioning: str = "sigma"
  num_scales: int | None = None
  sigma_data: float = 0.5

  def level(self, t: Array) -> Level:
    """The noise level at time t; for a discrete model the entry of its table."""
    if self.num_scales is None:
      return Level(self.sde.alpha(t), self.sde.sigma(t), CONDITIONINGS[self.conditioning](self.sde, t))
    label, index = self.sde.level(t, self.num_scales)
    return dataclasses.replace(self.level_of_index(index, t.dtype), label=label)

  def level_of_index(self, index: Array, dtype: jnp.dtype = jnp.float32) -> Level:
    """The `index`-th noise level of a discrete model, as in its training."""
    alpha, sigma = (jnp.asarray(table, dtype)[index] for table in self.sde.levels(self.num_scales))
    return Level(alpha, sigma, index)

  def output(self, params: Params, x: Array, level: Level, keys: Array | None = None, y: Array | None = None) -> Array:
    """What the network itself returns at `x`."""
    if self.prediction == "edm":
      x = x / expand(jnp.sqrt(level.sigma**2 + (level.alpha * self.sigma_data) ** 2), x)
    return self.network(params, x, level.label, keys, *([] if y is None else [y])).astype(x.dtype)

  def noise(self, params: Params, x: Array, t: Array, y: Array | None = None) -> Array:
    """E[z | x_t = x, y]."""
    return self._estimate(0, params, x, t, y)[0]

  def data(self, params: Params, x: Array, t: Array, y: Array | None = None) -> Array:
    """E[x_0 | x_t = x, y]."""
    return self._estimate(1, params, x, t, y)[0]

  def score(self, params: Params, x: Array, t: Array, y: Array | None = None) -> Array:
    """grad log p_t(x | y). Partial(model.score, params) is the score(x, t) that samplers and likelihoods take."""
    if self.prediction == "score":
      return self.output(params, x, self.level(t), y=y)
    noise, level = self._estimate(0, params, x, t, y)
    return -noise / expand(level.sigma, x)

  def _estimate(self, kind, params, x, t, y):
    level = self.level(t)
    out = self.output(params, x, level, y=y)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    return PREDICTIONS[self.prediction][kind](out, x, alpha, sigma, self.sigma_data), level

  def noise_error(
    self, params: Params, x0: Array, z: Array, level: Level, keys: Array | None = None, y: Array | None = None
  ) -> Array:
    """E[z | x_t] - z, up to sign, like `x0`: sigma times the error of the score. Written so that nothing cancels."""
    alpha, sigma = expand(level.alpha, x0), expand(level.sigma, x0)
    out = self.output(params, alpha * x0 + sigma * z, level, keys, y)
    return PREDICTIONS[self.prediction][2](out, x0, z, alpha, sigma, self.sigma_data)
