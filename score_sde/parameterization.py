"""Parameterizations: the quantity that a network predicts, its time input, and the conversion to a score.

With x_t = alpha x_0 + sigma z, Tweedie's formula relates all predictions:

    score = -E[z | x_t] / sigma = (alpha E[x_0 | x_t] - x_t) / sigma²
    velocity = alpha E[z | x_t] - sigma E[x_0 | x_t],    flow = E[z - x_0 | x_t]

Efron 2011, eq. (1.4); Salimans & Ho 2022, Appendix D, for the velocity; Liu et al. 2023 for the flow; Karras et al.
2022, Table 1, for "edm". Each conversion is written in the form that does not cancel at t -> 0 or t -> T.

A consistency model predicts something else: the end of the path of the probability-flow ODE through x_t.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from score_sde.batch import Array, Batch, PerExample, Time, expand, sum_over_dims
from score_sde.errors import InvalidArgument
from score_sde.options import Options, option
from score_sde.sde import SDE, linear

Params = Any
Network = Callable[..., Array]  # (params, x, labels, keys or None[, y]) -> like x


@dataclasses.dataclass(frozen=True)
class Level:
  """One noise level per example, x = alpha x_0 + sigma z, and its label, the network's time input; all are (B,)."""

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


def _flow_to_noise(out, x, alpha, sigma, sigma_data):
  return (x + alpha * out) / (alpha + sigma)


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


def _flow_to_data(out, x, alpha, sigma, sigma_data):
  return (x - sigma * out) / (alpha + sigma)


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


def _flow_error(out, x0, z, alpha, sigma, sigma_data):
  return (out - (z - x0)) * alpha / (alpha + sigma)


def _edm_error(out, x0, z, alpha, sigma, sigma_data):
  # F's target is (x_0 - c_skip x / alpha) / c_out. Written in x_0 and z, nothing cancels as sigma -> 0.
  spread = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
  target = (sigma * x0 - alpha * sigma_data**2 * z) / (sigma_data * spread)
  return (target - out) * alpha * sigma_data / spread


# name: (estimate of the noise, estimate of the data, error of the estimated noise)
PREDICTIONS = {
  "score": (_score_to_noise, _score_to_data, _score_error),
  "noise": (_noise_to_noise, _noise_to_data, _noise_error),
  "data": (_data_to_noise, _data_to_data, _data_error),
  "velocity": (_velocity_to_noise, _velocity_to_data, _velocity_error),
  "flow": (_flow_to_noise, _flow_to_data, _flow_error),
  "edm": (_edm_to_noise, _edm_to_data, _edm_error),
}

# The network's time input in a continuous model. The input of a discrete model is the index of its noise level.
CONDITIONINGS = {
  "sigma": lambda sde, t: sde.sigma(t) / sde.alpha(t),  # VE; the same noise-to-signal ratio for every other SDE
  "log_sigma": lambda sde, t: -0.125 * sde.log_snr(t),  # log(sigma / alpha) / 4, EDM's c_noise
  "time": lambda sde, t: 999.0 * t / sde.T,  # VP and sub-VP
}

# The same for an SDE without a closed-form kernel, which has a scale in place of sigma and alpha.
_SCALE_CONDITIONINGS = {
  "sigma": lambda sde, t, scale: scale,
  "log_sigma": lambda sde, t, scale: 0.25 * jnp.log(scale),
  "time": lambda sde, t, scale: 999.0 * t / sde.T,
}


@dataclasses.dataclass(frozen=True)
class ScoreModel(Options):
  """A network as a model of the score of `sde`. It is hashable, and its methods are pure functions of the parameters.

  Under an SDE without a closed-form kernel, x_0 and z are undefined. Then alpha is 1, sigma is `sde.scale`, and the
  network predicts one of three: "score"; "noise", which is -scale * score; or "edm", which predicts x + scale² score.

  Attributes:
    sde: the SDE that diffuses the data.
    network: (params, x, labels, keys[, y]) -> output like x. `keys` (B,) drive dropout, and None turns it off. Classes
      `y` (B,) are passed only if the caller gives them.
    parameterization: what the network predicts, a name in PREDICTIONS. "edm" is data prediction with the network's
      input and output scaled to unit variance at every noise level: D = c_skip x / alpha + c_out F(c_in x / alpha).
    conditioning: the network's time input in a continuous model, a name in CONDITIONINGS.
    num_scales: the number of noise levels of a discrete model (SMLD, DDPM); None for a continuous one.
    sigma_data: standard deviation of the data, for "edm".
    potential: (params, x, labels, keys[, y]) -> (B,), for an energy-based model. `network` is its gradient in x.

  Raises:
    InvalidArgument: for a parameterization that the SDE does not support.
  """

  sde: SDE
  network: Network
  parameterization: str = option("score", "what the network predicts", choices=tuple(PREDICTIONS))
  conditioning: str = option("sigma", "how a continuous model sees time", choices=tuple(CONDITIONINGS))
  num_scales: int | None = option(None, "noise levels of a discrete model; steps of the published samplers", "[1, inf)")
  sigma_data: float = option(
    0.5,
    "standard deviation of the data",
    "(0, inf)",
    needs=({"parameterization": ("edm",)}, {"training.weighting": ("edm",)}),
  )
  potential: Network | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.sde.is_linear:
      return
    name = type(self.sde).__name__
    if self.parameterization not in ("score", "noise", "edm"):
      raise InvalidArgument(
        f"parameterization={self.parameterization!r} needs a closed-form kernel, and {name} has none: use 'edm', "
        "'noise' (minus the score times the SDE's scale) or 'score'.", "parameterization",
      )  # fmt: skip
    if self.num_scales is not None:
      raise InvalidArgument(f"{name} has no discrete noise levels: train it as a continuous model.")

  def level(self, t: Array, x: Array) -> Level:
    """Returns the noise level of x at time t (B,). For a discrete model it is an entry of its table."""
    if not self.sde.is_linear:
      scale = self.sde.scale(x, t)
      return Level(jnp.ones_like(t), scale, _SCALE_CONDITIONINGS[self.conditioning](self.sde, t, scale))
    sde = linear(self.sde, "A noise level")
    if self.num_scales is None:
      return Level(sde.alpha(t), sde.sigma(t), CONDITIONINGS[self.conditioning](sde, t))
    label, index = sde.level(t, self.num_scales)
    return dataclasses.replace(self.level_of_index(index, t.dtype), label=label)

  def level_of_index(self, index: Array, dtype: jnp.dtype = jnp.float32) -> Level:
    """Returns the noise levels of a discrete model at `index` (B,), as training uses them."""
    tables = linear(self.sde, "A discrete model").levels(self.num_scales or 0)
    alpha, sigma = (jnp.asarray(table, dtype)[index] for table in tables)
    return Level(alpha, sigma, index)

  def output(self, params: Params, x: Batch, level: Level, keys: Array | None = None, y: Any = None) -> Batch:
    """Returns the raw output of the network at `x` (B, ...), like `x`."""
    if self.parameterization == "edm":
      x = expand(self._input_scale(level), x) * x
    return self.network(params, x, level.label, keys, *([] if y is None else [y])).astype(x.dtype)

  def noise(self, params: Params, x: Batch, t: Time, y: Any = None) -> Batch:
    """Returns E[z | x_t = x, y], like `x`."""
    return self._estimate(0, params, x, self.level(t, x), y=y)

  def data(self, params: Params, x: Batch, t: Time, y: Any = None) -> Batch:
    """Returns E[x_0 | x_t = x, y], like `x`."""
    return self._estimate(1, params, x, self.level(t, x), y=y)

  def data_of_level(self, params: Params, x: Array, level: Level, keys: Array | None = None, y: Any = None) -> Array:
    """Returns the same as `data`, at a noise level. `keys` (B,) drive dropout."""
    return self._estimate(1, params, x, level, keys, y)

  def score(self, params: Params, x: Batch, t: Time, y: Any = None) -> Batch:
    """Returns grad log p_t(x | y), like `x`. Samplers and likelihoods take Partial(model.score, params) as score."""
    return self.score_of_level(params, x, self.level(t, x), y=y)

  def score_of_level(self, params: Params, x: Array, level: Level, keys: Array | None = None, y: Any = None) -> Array:
    """Returns the score at a noise level, like `x`. `keys` (B,) drive dropout."""
    if self.parameterization == "score":
      return self.output(params, x, level, keys, y)
    return -self._estimate(0, params, x, level, keys, y) / expand(level.sigma, x)

  def log_density(self, params: Params, x: Batch, t: Time, y: Any = None) -> PerExample:
    """Returns log p_t(x | y) of an energy-based model, (B,), up to a constant for each t. Its gradient is `score`.

    Every parameterization is linear in x and the network's output: score = a x + b ∇φ(c x) gives ½ a |x|² + b/c φ(c x).

    Raises:
      InvalidArgument: if the model has no `potential`.
    """
    if self.potential is None:
      raise InvalidArgument("Only an energy-based model has a density: this network is the gradient of no potential.")
    level = self.level(t, x)
    scale = self._input_scale(level)
    to_noise = PREDICTIONS[self.parameterization][0]
    a, b = (-to_noise(*v, level.alpha, level.sigma, self.sigma_data) / level.sigma for v in ((0.0, 1.0), (1.0, 0.0)))
    potential = self.potential(params, expand(scale, x) * x, level.label, None, *([] if y is None else [y]))
    return a / 2 * sum_over_dims(x**2) + b / scale * potential

  def _input_scale(self, level):
    if self.parameterization == "edm":
      return 1 / jnp.sqrt(level.sigma**2 + (level.alpha * self.sigma_data) ** 2)
    return jnp.ones_like(level.sigma)

  def _estimate(self, kind, params, x, level, keys=None, y=None):
    out = self.output(params, x, level, keys, y)
    alpha, sigma = expand(level.alpha, x), expand(level.sigma, x)
    return PREDICTIONS[self.parameterization][kind](out, x, alpha, sigma, self.sigma_data)

  def noise_error(
    self, params: Params, x0: Array, z: Array, level: Level, keys: Array | None = None, y: Any = None
  ) -> Array:
    """Returns ±(E[z | x_t] - z), like `x0`: sigma times the error of the score, in a form that does not cancel."""
    alpha, sigma = expand(level.alpha, x0), expand(level.sigma, x0)
    out = self.output(params, alpha * x0 + sigma * z, level, keys, y)
    return PREDICTIONS[self.parameterization][2](out, x0, z, alpha, sigma, self.sigma_data)


@dataclasses.dataclass(frozen=True)
class ConsistencyModel(ScoreModel):
  """A network as a consistency function f(x, t): the point x_0 at which the path of the ODE through x at time t ends.

  All of it is in terms of x / alpha and s = sigma / alpha, so it is the same for VE, VP and rectified flow:

      f(x, t) = c_skip x / alpha + c_out F(c_in x / alpha, t),    d = s - s(end)
      c_skip = sigma_data² / (d² + sigma_data²),  c_out = d sigma_data / sqrt(s² + sigma_data²),
      c_in = 1 / sqrt(s² + sigma_data²)

  so that f(x, end) = x / alpha for any output of the network. Song et al. 2023 (consistency models), Appendix C. With
  end = 0, f has the form of an "edm" score model, and training starts well from the parameters of one.

  `data` returns f. `score` returns (alpha f - x) / sigma², from which the solver `Consistency` takes f back. It is not
  the score of a density: other solvers and likelihoods make no sense with it.

  Attributes:
    end: the time at which f is x / alpha.

  Raises:
    InvalidArgument: for an SDE without a closed-form kernel, a discrete model, or another parameterization than "edm".

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> model = ss.ConsistencyModel(ss.VP(), lambda params, x, labels, keys: params * x, "edm", end=1e-3)
    >>> x = jnp.ones((4, 2))
    >>> model.data(1.0, x, jnp.full(4, 1e-3)).round(3).tolist()[0]
    [1.0, 1.0]
  """

  end: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    linear(self.sde, "A consistency model")
    if self.parameterization != "edm" or self.num_scales is not None:
      raise InvalidArgument(
        f"parameterization={self.parameterization!r} with num_scales={self.num_scales}: a consistency model needs "
        "'edm' and a continuous model (num_scales=None).", "parameterization",
      )  # fmt: skip
    if not 0 <= self.end < self.sde.T:
      raise InvalidArgument(f"end={self.end} must lie in [0, {self.sde.T}).", "end")

  def _estimate(self, kind, params, x, level, keys=None, y=None):
    out = self.output(params, x, level, keys, y)
    ratio, variance = level.sigma / level.alpha, self.sigma_data**2
    gap = ratio
    if self.end > 0:
      end = jnp.full_like(ratio, self.end)
      gap = ratio - self.sde.sigma(end) / self.sde.alpha(end)  # type: ignore[attr-defined]
    skip, scale = variance / (gap**2 + variance), gap * self.sigma_data / jnp.sqrt(ratio**2 + variance)
    found = expand(skip / level.alpha, x) * x + expand(scale, x) * out
    return found if kind == 1 else (x - expand(level.alpha, x) * found) / expand(level.sigma, x)
