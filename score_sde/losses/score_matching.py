"""Objectives of score matching, and the training loss `ScoreMatching`.

For a score s and data x, all have the expectation ½ E‖s(x) - grad log p(x)‖² up to a constant that is independent of s:

    explicit             ½ ‖s(x) - grad log p(x)‖²                           where the score of the data is known
    implicit             tr grad s(x) + ½ ‖s(x)‖²                            Hyvärinen 2005, Theorem 1
    sliced               vᵀ grad s(x) v + ½ (vᵀ s(x))²,  v a random probe    Song et al. 2019, eq. (7)
    variance-reduced     vᵀ grad s(x) v + ½ ‖s(x)‖²                          Song et al. 2019, eq. (8)
    finite differences   the same with central differences along v           Pang et al. 2020, Section 3
    denoising            ½ ‖s(x_t) + z / sigma‖²,  x_t = alpha x + sigma z   Vincent 2011, eq. (9), for the score of x_t

Training applies one of them to x_t at random times t or noise levels. With the weight, each is in expectation

    L = E_t E_x0 E_z  w(t) ‖ z_θ(x_t, t) - z ‖²,        x_t = alpha x_0 + sigma z,  score_θ = -z_θ / sigma

(explicit score matching: without the variance of z given x_t). w = 1 is the weighting lambda = sigma² of NCSN,
lambda(t) = 1 / E‖grad log p(x_t | x_0)‖² of Song et al. 2021, eq. (7), and DDPM's simple loss. w = g² / sigma² =
-d log_snr / dt is likelihood weighting. It bounds the KL divergence and the negative log-likelihood from above (Song et
al. 2021b, Theorems 1 and 3). Drawing t in proportion to this w makes log-SNR uniform and lowers the variance of the
loss (Section 4.4).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import (
  Array,
  Batch,
  Index,
  Keys,
  PerExample,
  Probes,
  Time,
  expand,
  fold,
  normal,
  sum_over_dims,
  uniform,
)
from score_sde.errors import InvalidArgument
from score_sde.options import Options, option
from score_sde.parameterization import Level, Params, ScoreModel
from score_sde.sde import SDE, LinearSDE, Score, linear, simulate
from score_sde.trace import PROBES, basis, value_and_jvps

# Streams of an example's key, one for each purpose.
TIME, NOISE, DROPOUT, PROBE, PATH = range(5)

Field = Callable[[Array], Array]  # x (B, ...) -> like x


# --- objectives of a score given as a plain function, one value per example -------------------------------------------


def explicit(score: Field, target: Field, x: Batch) -> PerExample:
  """Returns ½ ‖s(x) - target(x)‖², (B,)."""
  return 0.5 * sum_over_dims((score(x) - target(x)) ** 2)


def denoising(score: Field, x0: Batch, z: Batch, sigma: Array, alpha: Array | float = 1.0) -> PerExample:
  """Returns ½ ‖s(alpha x_0 + sigma z) + z / sigma‖², (B,). alpha and sigma are (B,) or one number for all."""
  sigma = expand(sigma, x0)
  return 0.5 * sum_over_dims((score(expand(alpha, x0) * x0 + sigma * z) + z / sigma) ** 2)


def _slopes(score: Field, x: Array, probes: Array, interior: Field | None) -> tuple[Array, Array]:
  """Returns s(x), and vᵀ grad(h s) v (P, B) for every probe. h is `interior`, or 1 if that is None."""

  def both(x):
    s = score(x)
    return (s, s) if interior is None else (s, interior(x) * s)

  (value, _), (_, products) = value_and_jvps(both, x, probes)
  return value, _dot(products, probes)


def _dot(a: Array, b: Array) -> Array:
  """Returns the inner products (P, B) of the examples of two arrays (P, B, ...)."""
  return jnp.sum((a * b).reshape(*a.shape[:2], -1), axis=-1)


def _root(x: Array, interior: Field | None) -> Any:
  return 1.0 if interior is None else jnp.sqrt(jnp.maximum(interior(x), 0))


def implicit(score: Field, x: Batch, interior: Field | None = None) -> PerExample:
  """Returns tr grad s(x) + ½ ‖s(x)‖², (B,). The exact trace takes one derivative per dimension.

  In a domain with a boundary, `interior` is a weight h(x) that vanishes there, and the objective is tr grad(h s) +
  ½ Σ h s² (Hyvärinen 2007, Section 3). The objectives below use h in the same way.
  """
  value, slopes = _slopes(score, x, basis(x, math.prod(x.shape[1:])), interior)
  return jnp.sum(slopes, axis=0) + 0.5 * sum_over_dims((_root(x, interior) * value) ** 2)


def sliced(score: Field, x: Batch, probes: Probes, interior: Field | None = None) -> PerExample:
  """Returns the mean of vᵀ grad s(x) v + ½ (vᵀ s(x))², (B,), over probes v (P, B, ...) of unit covariance."""
  value, slopes = _slopes(score, x, probes, interior)
  return jnp.mean(slopes + 0.5 * _dot(jnp.broadcast_to(_root(x, interior) * value, probes.shape), probes) ** 2, axis=0)


def sliced_variance_reduced(score: Field, x: Batch, probes: Probes, interior: Field | None = None) -> PerExample:
  """Returns the mean of vᵀ grad s(x) v + ½ ‖s(x)‖², (B,), over probes v (P, B, ...) of unit covariance."""
  value, slopes = _slopes(score, x, probes, interior)
  return jnp.mean(slopes, axis=0) + 0.5 * sum_over_dims((_root(x, interior) * value) ** 2)


def finite_difference(
  score: Field, x: Batch, probes: Probes, interior: Field | None = None, *, step: Array | float
) -> PerExample:
  """Returns vᵀ [s(x + h v) - s(x - h v)] / 2h + ½ ‖[s(x + h v) + s(x - h v)] / 2‖², (B,), its mean over probes v.

  h is `step`, (B,) or a number. Takes two evaluations of s per probe and no derivative. The error is O(h²).
  """
  h = expand(jnp.asarray(step, x.dtype), x)

  def one(v):
    above, below = score(x + h * v), score(x - h * v)
    weighted = (above - below) if interior is None else interior(x + h * v) * above - interior(x - h * v) * below
    middle = _root(x, interior) * (above + below) / 2
    return sum_over_dims(v * weighted / (2 * h)) + 0.5 * sum_over_dims(middle**2)

  return sum((one(v) for v in probes), jnp.zeros(())) / len(probes)


# Values of training.objective. Those in IMPLICIT need only samples and the score; "dsm" and "esm" need more.
IMPLICIT = {
  "ism": lambda score, x, probes, interior, step: implicit(score, x, interior),
  "ssm": lambda score, x, probes, interior, step: sliced(score, x, probes, interior),
  "ssm_vr": lambda score, x, probes, interior, step: sliced_variance_reduced(score, x, probes, interior),
  "fd_ssm": lambda score, x, probes, interior, step: finite_difference(score, x, probes, interior, step=step),
}
OBJECTIVES = ("dsm", "esm", *IMPLICIT)
SLICED = ("ssm", "ssm_vr", "fd_ssm")

# Limit for "ism", which takes one derivative per dimension.
MAX_EXACT_DIMS = 1024

# Below this step, central differences are rounding noise in float32.
SMALLEST_STEP = 1e-4


# --- weightings and times ---------------------------------------------------------------------------------------------


def reduce(error: Array, reduce_mean: bool) -> Array:
  """Returns the squared error, (B,): the mean over dimensions, or half the sum (`reduce_mean` of the official code)."""
  return _scaled(sum_over_dims(error**2), error, reduce_mean)


def _scaled(total: Array, x: Array, reduce_mean: bool) -> Array:
  return total / math.prod(x.shape[1:]) if reduce_mean else 0.5 * total


# name: w(loss, t, level), (B,).
WEIGHTINGS = {
  "simple": lambda loss, t, level: jnp.ones_like(level.sigma),
  "likelihood": lambda loss, t, level: -loss.model.sde.dlog_snr(t),
  # 1 / c_out² times the squared error of the data: the plain squared error of the output F of an "edm" network.
  "edm": lambda loss, t, level: 1 + (level.sigma / (level.alpha * loss.model.sigma_data)) ** 2,
  # The loss of flow matching: the squared error of z - x_0.
  "flow": lambda loss, t, level: (1 + level.sigma / level.alpha) ** 2,
  # lambda(sigma) = sigma^(2 + k): k = 0 is "simple", k = -2 is the squared error of the score.
  "power": lambda loss, t, level: level.sigma**loss.weighting_power,
  # min(SNR, gamma) / SNR: less weight at low noise. Hang et al. 2023, eq. (10).
  "min_snr": lambda loss, t, level: jnp.minimum(1, loss.snr_gamma * (level.sigma / level.alpha) ** 2),
}


def draw_uniform(keys: Keys, x0: Batch, index: Index, batch_size: int, stratified: bool) -> PerExample:
  """Draws a number in [0, 1) per example, (B,), for its time. If `stratified`, those of a batch are spread evenly."""
  u = uniform(fold(keys, TIME), jnp.zeros_like(x0, shape=x0.shape[:1]))
  return (u + index) / batch_size if stratified else u


def uniform_times(sde: SDE, u: Array, eps: float) -> Array:
  """Maps u (B,), uniform in [0, 1), to times uniform in [eps, T]."""
  return eps + u * (sde.T - eps)


def importance_times(sde: LinearSDE, u: Array, eps: float) -> tuple[Array, Array]:
  """Maps u (B,), uniform in [0, 1), to times in [eps, T] that are uniform in log-SNR. Returns (times, normalizer).

  The density of the times is (-d log_snr/dt) / normalizer.
  """
  first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (eps, sde.T))
  return jnp.clip(sde.time_of_log_snr(first + u * (last - first)), eps, sde.T), first - last


def _normal_quantile(u: Array) -> Array:
  return jax.scipy.special.ndtri(jnp.clip(u, 1e-6, 1 - 1e-6))


def lognormal_times(sde: LinearSDE, u: Array, eps: float, mean: float, std: float) -> Array:
  """Maps u (B,), uniform in [0, 1), to times in [eps, T] with log(sigma / alpha) ~ N(mean, std²), clipped.

  Karras et al. 2022, Table 1.
  """
  log_ratio = mean + std * _normal_quantile(u)
  first, last = (sde.log_snr(jnp.asarray(t, u.dtype)) for t in (eps, sde.T))
  return jnp.clip(sde.time_of_log_snr(jnp.clip(-2 * log_ratio, last, first)), eps, sde.T)


def _lognormal_scales(x: Array, sde: SDE, u: Array, eps: float, mean: float, std: float) -> Array:
  """Does the same as `lognormal_times` for an SDE without a closed-form kernel, with its scale as sigma / alpha."""
  first, last = (sde.scale(x, jnp.full_like(u, t)) for t in (eps, sde.T))
  scale = jnp.clip(jnp.exp(mean + std * _normal_quantile(u)), first, last)
  return jnp.clip(sde.time_of_scale(x, scale), eps, sde.T)


def _given(value: Any, name: str) -> Any:
  """Checks that an argument needed by the objective was given, and returns it. Raises InvalidArgument if it is None."""
  if value is None:
    raise InvalidArgument(f"{name}=None, but this objective needs it.", name)
  return value


TIME_SAMPLINGS = ("uniform", "importance", "lognormal", "single")


@dataclasses.dataclass(frozen=True)
class ScoreMatching(Options):
  """Training loss of a score model: `loss(params, keys, x0, index, batch_size, train, y)` -> (B,).

  Attributes:
    model: the model to train; discrete if its `num_scales` is set, continuous otherwise.
    objective: a name in OBJECTIVES: "dsm" (denoising), "esm" (explicit), "ism" (implicit, exact trace), "ssm", "ssm_vr"
      (sliced, and with its variance reduced), "fd_ssm" (finite differences). All but "esm" agree in expectation. Under
      an SDE without a closed-form kernel x_t is simulated, and only the last four are defined.
    target: the exact score(x, t) of the noisy data, for "esm".
    eps: smallest time, for a continuous model.
    weighting: a name in WEIGHTINGS: "simple" (1), "likelihood" (g² / sigma²), "edm" (1 + (sigma / alpha sigma_data)²),
      "flow" ((1 + sigma / alpha)²), "power" (sigma^weighting_power), "min_snr" (min(1, snr_gamma / SNR)); or a function
      (loss, t (B,), level) -> weight (B,).
    weighting_power, snr_gamma: parameters of "power" and "min_snr".
    time_sampling: how t is drawn, a name in TIME_SAMPLINGS: "uniform", "importance" (in proportion to the weight; for
      likelihood weighting), "lognormal", or "single" (one noise level).
    p_mean, p_std: mean and standard deviation of log(sigma / alpha), for "lognormal".
    single_sigma: sigma / alpha of the one noise level, for "single".
    reduce_mean: mean over dimensions instead of half their sum.
    stratified: spread the times of a batch evenly, with (u_i + i) / batch size in place of u_i. This lowers the
      variance of the loss.
    probe, num_probes: kind of the probes (a name in PROBES) and number per example, for sliced score matching.
    fd_step: the step of finite differences, in units of sigma.
    path_steps: Euler-Maruyama steps of a simulated path.

  Raises:
    InvalidArgument: for options that do not fit together.
  """

  model: ScoreModel
  target: Score | None = None
  objective: str = option(
    "dsm", "score matching: denoising, explicit, implicit (exact trace), sliced, its variance reduced, by differences",
    choices=OBJECTIVES,
  )  # fmt: skip
  eps: float = option(1e-5, "smallest time of a continuous model", "(0, inf)")
  weighting: str | Callable[..., Array] = option("simple", "weight of the noise levels", choices=tuple(WEIGHTINGS))
  weighting_power: float = option(
    0.0, "sigma^power times the squared error of the noise; -2 weights the score's", "(-inf, inf)",
    needs={"weighting": ("power",)},
  )  # fmt: skip
  snr_gamma: float = option(
    5.0, "largest signal-to-noise ratio that counts", "(0, inf)", needs={"weighting": ("min_snr",)}
  )
  time_sampling: str = option("uniform", "how times are drawn", choices=TIME_SAMPLINGS)
  p_mean: float = option(
    -1.2, "mean of log(sigma / alpha)", "(-inf, inf)", needs={"time_sampling": ("lognormal",)}
  )  # fmt: skip
  p_std: float = option(
    1.2, "standard deviation of log(sigma / alpha)", "(0, inf)", needs={"time_sampling": ("lognormal",)}
  )  # fmt: skip
  single_sigma: float = option(
    0.1, "sigma / alpha of the one noise level", "(0, inf)", needs={"time_sampling": ("single",)}
  )
  reduce_mean: bool = option(True, "mean over dimensions instead of half their sum")
  stratified: bool = option(False, "spread the times of a batch evenly")
  probe: str = option(
    "rademacher", "probes of sliced score matching", choices=tuple(PROBES), needs={"objective": SLICED}
  )
  num_probes: int = option(1, "probes per example", "[1, inf)", needs={"objective": SLICED})
  fd_step: float = option(
    0.05, "step of finite differences, in units of sigma", "(0, inf)", needs={"objective": ("fd_ssm",)}
  )
  path_steps: int = option(
    128, "Euler-Maruyama steps of a simulated path", "[1, inf)", needs={"the SDE": ("without a closed-form kernel",)}
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    discrete = self.model.num_scales is not None
    if not self.model.sde.is_linear:
      self._check_simulated()
    if self.objective == "esm" and self.target is None:
      raise InvalidArgument("objective='esm' needs target, the exact score of the noisy data: use 'dsm'.", "objective")
    if self.objective == "esm" and discrete:
      raise InvalidArgument(
        "objective='esm' needs a continuous model, because target(x, t) takes a time: use 'dsm'.", "objective"
      )
    if self.time_sampling == "importance" and self.weighting != "likelihood":
      raise InvalidArgument(
        f"time_sampling='importance' draws times for weighting='likelihood', not for weighting={self.weighting!r}: set "
        "both or none.", "time_sampling", "weighting",
      )  # fmt: skip
    if discrete and (self.weighting == "likelihood" or self.time_sampling != "uniform"):
      raise InvalidArgument(
        f"weighting={self.weighting!r} with time_sampling={self.time_sampling!r} needs a continuous model: a discrete "
        "one has levels, not times.", "weighting", "time_sampling",
      )  # fmt: skip
    if not self.eps < self.model.sde.T:
      raise InvalidArgument(f"eps={self.eps} must lie in (0, {self.model.sde.T}).", "eps")
    if self.time_sampling == "single":
      first, last = self._extremes()
      if not first <= self.single_sigma <= last:
        raise InvalidArgument(
          f"single_sigma={self.single_sigma} must be a noise level of the SDE: its sigma / alpha runs from {first:.3g} "
          f"(at the smallest time) to {last:.3g}.", "single_sigma",
        )  # fmt: skip

  def _check_simulated(self) -> None:
    name = type(self.model.sde).__name__
    if self.objective not in IMPLICIT:
      raise InvalidArgument(
        f"objective={self.objective!r} needs a closed-form kernel, and {name} has none: choose one of "
        f"{', '.join(IMPLICIT)}.", "objective",
      )  # fmt: skip
    if self.weighting == "likelihood" or self.time_sampling not in ("uniform", "lognormal"):
      raise InvalidArgument(
        f"weighting={self.weighting!r} with time_sampling={self.time_sampling!r} needs a closed-form kernel, and "
        f"{name} has none: use another weighting, and 'uniform' or 'lognormal'.", "weighting", "time_sampling",
      )  # fmt: skip

  def _extremes(self) -> tuple[float, float]:
    sde = linear(self.model.sde, "time_sampling='single'")
    first, last = (float(jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2)) for t in (self.eps, sde.T))
    return first, last

  def __call__(
    self,
    params: Params,
    keys: Keys,
    x0: Batch,
    index: Index,
    batch_size: int,
    train: bool = True,
    y: Any = None,
  ) -> PerExample:
    """Returns the losses (B,) of data `x0` (B, ...) with classes `y`.

    `index` (B,) is the position of each example in the global batch of `batch_size` examples, for `stratified`.
    """
    u = draw_uniform(keys, x0, index, batch_size, self.stratified)
    z = normal(fold(keys, NOISE), x0)
    options = {"keys": keys, "train": train, "y": y}
    if self.model.num_scales is not None:
      number = jnp.clip((u * self.model.num_scales).astype(jnp.int32), 0, self.model.num_scales - 1)
      return self.at_level(params, x0, self.model.level_of_index(number, x0.dtype), None, z, **options)
    t, normalizer = self._times(u, x0)
    if normalizer is None:
      return self.at_time(params, x0, t, z, **options)
    return normalizer * dataclasses.replace(self, weighting="simple", time_sampling="uniform").at_time(
      params, x0, t, z, **options
    )

  def _times(self, u: Array, x: Array) -> tuple[Array, Array | None]:
    """Maps `u` to times in [eps, T]. Under importance sampling, also returns the factor that replaces the weight."""
    sde = self.model.sde
    if self.time_sampling == "lognormal" and not sde.is_linear:
      return _lognormal_scales(x, sde, u, self.eps, self.p_mean, self.p_std), None
    if self.time_sampling == "uniform":
      return uniform_times(sde, u, self.eps), None
    sde = linear(sde, f"time_sampling={self.time_sampling!r}")
    if self.time_sampling == "importance":
      return importance_times(sde, u, self.eps)
    if self.time_sampling == "lognormal":
      return lognormal_times(sde, u, self.eps, self.p_mean, self.p_std), None
    return jnp.full_like(u, sde.time_of_log_snr(jnp.asarray(-2 * math.log(self.single_sigma), u.dtype))), None

  def at_time(self, params: Params, x0: Batch, t: Time, z: Batch, **options) -> PerExample:
    """Returns the weighted objective (B,) at times `t` with noise `z`. Takes the options of `at_level`."""
    return self.at_level(params, x0, self.model.level(t, x0), t, z, **options)

  def at_level(
    self,
    params: Params,
    x0: Array,
    level: Level,
    t: Array | None,
    z: Array,
    *,
    keys: Array | None = None,
    train: bool = False,
    y: Any = None,
  ) -> Array:
    """Returns the weighted objective (B,) at a noise `level` with noise `z`. `t` is its time in a continuous model.

    `keys` (B,), one per example, draw the probes and the simulated path. If `train`, they also drive dropout.
    """
    model = self.model
    weigh = self.weighting if callable(self.weighting) else WEIGHTINGS[self.weighting]
    weight = weigh(self, t, level)
    drawn = lambda stream: fold(_given(keys, "keys"), stream)
    dropout = drawn(DROPOUT) if train else None
    if self.objective == "dsm":
      return weight * reduce(model.noise_error(params, x0, z, level, dropout, y), self.reduce_mean)
    score = lambda x: model.score_of_level(params, x, level, dropout, y)
    interior = None
    if model.sde.is_linear:
      x = expand(level.alpha, x0) * x0 + expand(level.sigma, x0) * z
    else:
      x = simulate(model.sde, drawn(PATH), x0, _given(t, "t"), self.path_steps)
      interior = model.sde.interior if model.sde.interior(x) is not None else None
    if self.objective == "esm":
      target, time = _given(self.target, "target"), _given(t, "t")
      value = 2 * explicit(score, lambda x: target(x, time), x)
      return weight * _scaled(level.sigma**2 * value, x, self.reduce_mean)
    draw = PROBES[self.probe]
    one = lambda key: draw(key, (self.num_probes, *x.shape[1:]), x.dtype)
    probes = None if self.objective == "ism" else jnp.moveaxis(jax.vmap(one)(drawn(PROBE)), 1, 0)
    step = jnp.maximum(self.fd_step * level.sigma, SMALLEST_STEP)
    value = 2 * IMPLICIT[self.objective](score, x, probes, interior, step)
    # Adding E‖z‖² = D gives the squared error of the noise, the same expectation as "dsm".
    return weight * _scaled(level.sigma**2 * value + math.prod(x.shape[1:]), x, self.reduce_mean)
