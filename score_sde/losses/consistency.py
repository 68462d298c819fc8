"""Losses for samples in one or a few evaluations: consistency models, and progressive distillation.

All act on x / alpha. Its probability-flow ODE in s = sigma / alpha is dx/ds = (x - D(x, s)) / s for every linear SDE,
with the denoiser D. With x_0 from the data, z ~ N(0, I) and two noise levels r < s, most losses compare a consistency
function f at two points of one path,

    w(s, r) d(f_θ(x_s, s), f_θ⁻(x_r, r)),    x_s = x_0 + s z

and differ in x_r, in the levels, in the distance and in whose parameters θ⁻ are, which get no gradient:

    cd           x_r: a step of the ODE from x_s with a teacher's D; levels of a fixed grid; θ⁻ an average of θ
                 Song et al. 2023, Algorithm 2
    ct           x_r = x_0 + r z; levels of a grid that grows; θ⁻ an average of θ.  Song et al. 2023, Algorithm 3
    ict          the same with θ⁻ = θ, lognormal levels, pseudo-Huber distance, w = 1 / (s - r), a grid that doubles
                 Song & Dhariwal 2024, Table 2
    ect          the same with levels r = s (1 - n(s) / q^stage) that approach s; starts from a trained score model
                 Geng et al. 2024, Algorithm 1
    scm          the limit r -> s: a squared error whose gradient is that of the tangent df/ds
                 Lu & Song 2025, Algorithm 1
    progressive  no consistency function: the denoiser learns one step of the ODE from two of the teacher, at first a
                 trained model, then the student of the stage before.  Salimans & Ho 2022, Algorithm 2

Without a teacher, x_0 + r z lies on the path in expectation only: its mean given x_s is the Euler step of the ODE.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Index, Keys, PerExample, expand, fold, norm, normal, sum_over_dims
from score_sde.errors import InvalidArgument
from score_sde.losses.score_matching import DROPOUT, NOISE, draw_uniform
from score_sde.options import Options, option
from score_sde.parameterization import ConsistencyModel, Params, ScoreModel
from score_sde.sde import LinearSDE, linear

# Values of training.objective for consistency models, and the ones that compare two points of a path.
PAIRED = ("cd", "ct", "ict", "ect")
CONSISTENCY = (*PAIRED, "scm", "progressive")

# Constant c of the tangent's norm, Lu & Song 2025, Section 4.1.
TANGENT_NORM = 0.1

# n(s) = 1 + k sigmoid(-b s) of Geng et al. 2024, Section 3.
_K, _B = 8.0, 1.0


def has_target(objective: str, target_rate: float) -> bool:
  """Returns whether the targets of an objective come from parameters of their own."""
  return objective == "progressive" or (objective in ("cd", "ct") and target_rate > 0)


@dataclasses.dataclass(frozen=True)
class ConsistencyLoss(Options):
  """Training loss: `loss(params, keys, x0, index, batch_size, train, y, step=, target=, teacher=)` -> (B,).

  Attributes:
    model: the model to train: a ConsistencyModel, with end = 0 for "ect" and "scm"; or a ScoreModel for "progressive".
    teacher: the model of the teacher, a ScoreModel of the same SDE. "cd" and "progressive" need one. "scm" is
      distillation (sCD) with a teacher, and training (sCT) without one.
    objective: a name in CONSISTENCY.
    eps: smallest time. Noise levels s = sigma / alpha run from that of `eps` to that of T.
    total: number of training steps, over which grids grow and levels approach each other.
    first_scales, last_scales: number of noise levels of the grid (cd: last_scales; ct, ict: from first to last;
      progressive: the student's steps, from last_scales / 2 down to first_scales).
    rho: the grid is s_i^(1/rho) = linear, from smallest to largest noise.
    p_mean, p_std: mean and standard deviation of log s, for "ict", "ect" and "scm".
    distance: "l2", the mean square over dimensions; or "pseudo_huber", sqrt(‖·‖² + c²) - c.
    huber: c / sqrt(dimensions).
    ode_step: the teacher's step from s to r: "euler" or "heun".
    target_rate: "cd", "ct": decay rate of the average θ⁻ (for "ct" at first_scales levels, then it rises with their
      number). 0 is θ⁻ = θ.
    gap_factor, gap_stages: "ect": q, and the number of stages of equal length.
    tangent_warmup: "scm": steps over which the unstable part of the tangent is turned on.
    stratified: spread the noise levels of a batch evenly.

  Raises:
    InvalidArgument: for options that do not fit together.
  """

  model: ScoreModel
  teacher: ScoreModel | None = None
  objective: str = option("ict", "kind of consistency training", choices=CONSISTENCY)
  eps: float = option(1e-5, "smallest time of a continuous model", "(0, inf)")
  total: int = 1
  first_scales: int = option(
    10, "noise levels of the grid at the beginning; progressive: steps of the last student", "[1, inf)",
    needs={"objective": ("ct", "ict", "progressive")},
  )  # fmt: skip
  last_scales: int = option(
    1280, "noise levels of the grid at the end; cd: all the time; progressive: steps of the first teacher", "[2, inf)",
    needs={"objective": ("cd", "ct", "ict", "progressive")},
  )  # fmt: skip
  rho: float = option(
    7.0, "the grid is linear in (sigma / alpha)^(1 / rho)", "(0, inf)",
    needs={"objective": ("cd", "ct", "ict", "progressive")},
  )  # fmt: skip
  p_mean: float = option(-1.1, "mean of log(sigma / alpha)", "(-inf, inf)", needs={"objective": ("ict", "ect", "scm")})
  p_std: float = option(
    2.0, "standard deviation of log(sigma / alpha)", "(0, inf)", needs={"objective": ("ict", "ect", "scm")}
  )
  distance: str = option(
    "pseudo_huber", "distance of two estimates of x_0", choices=("l2", "pseudo_huber"), needs={"objective": PAIRED}
  )
  huber: float = option(
    0.00054, "pseudo_huber: distances below this, times sqrt(dimensions), count squared", "(0, inf)",
    needs={"distance": ("pseudo_huber",)},
  )  # fmt: skip
  ode_step: str = option("heun", "step of the teacher's ODE", choices=("euler", "heun"), needs={"objective": ("cd",)})
  target_rate: float = option(
    0.0, "decay rate of the average that gives the targets", "[0, 1)", needs={"objective": ("cd", "ct")}
  )
  gap_factor: float = option(2.0, "ect: each stage divides the distance of the levels by this", "(1, inf)",
    needs={"objective": ("ect",)})  # fmt: skip
  gap_stages: int = option(8, "ect: number of stages", "[1, inf)", needs={"objective": ("ect",)})
  tangent_warmup: int = option(
    10_000, "scm: steps over which the unstable part of the tangent is turned on", "[1, inf)",
    needs={"objective": ("scm",)},
  )  # fmt: skip
  stratified: bool = option(False, "spread the times of a batch evenly")

  def __post_init__(self) -> None:
    super().__post_init__()
    progressive = self.objective == "progressive"
    if progressive == isinstance(self.model, ConsistencyModel):
      raise InvalidArgument(
        f"objective={self.objective!r} trains a {'ScoreModel' if progressive else 'ConsistencyModel'}, not a "
        f"{type(self.model).__name__}.", "objective",
      )  # fmt: skip
    if self.objective in ("cd", "progressive") and self.teacher is None:
      raise InvalidArgument(f"objective={self.objective!r} needs a teacher, a trained score model.", "teacher")
    if self.teacher is not None and (isinstance(self.teacher, ConsistencyModel) or self.teacher.sde != self.model.sde):
      raise InvalidArgument(
        f"teacher={type(self.teacher).__name__} of {self.teacher.sde} must be a ScoreModel of {self.model.sde}.",
        "teacher",
      )
    if self.objective in ("ect", "scm") and getattr(self.model, "end", 0.0) != 0:
      raise InvalidArgument(f"objective={self.objective!r} needs a model with end=0.", "objective")
    if self.objective in ("ct", "ict", "progressive") and not self.first_scales < self.last_scales:
      raise InvalidArgument(
        f"first_scales={self.first_scales} must be smaller than last_scales={self.last_scales}.", "first_scales",
        "last_scales",
      )  # fmt: skip
    if progressive and not self._halvings.is_integer():
      raise InvalidArgument(
        f"last_scales={self.last_scales} must be first_scales={self.first_scales} times a power of two.", "last_scales"
      )
    if not self.eps < self.model.sde.T:
      raise InvalidArgument(f"eps={self.eps} must lie in (0, {self.model.sde.T}).", "eps")

  # --- schedules ------------------------------------------------------------------------------------------------------

  @property
  def has_target(self) -> bool:
    """Returns whether the targets come from parameters of their own, which follow `next_target`."""
    return has_target(self.objective, self.target_rate)

  @property
  def evaluates_teacher(self) -> bool:
    """Returns whether the loss needs the parameters of the teacher; those of "progressive" are the targets'."""
    return self.teacher is not None and self.objective != "progressive"

  @property
  def _halvings(self) -> float:
    return math.log2(self.last_scales / self.first_scales)

  def scales(self, step: Array | int) -> Array:
    """Returns the number of noise levels at a training step: N(k) of the papers; for "progressive" the student's steps.

    ct: Song et al. 2023, Appendix C. ict: Song & Dhariwal 2024, eq. (11).
    """
    share = jnp.clip(jnp.asarray(step, jnp.float32) / self.total, 0, 1)
    if self.objective == "ct":
      first, last = self.first_scales**2, (self.last_scales + 1) ** 2
      return jnp.maximum(jnp.ceil(jnp.sqrt(share * (last - first) + first) - 1), 1).astype(jnp.int32) + 1
    if self.objective == "ict":
      stages = math.log2(self.last_scales // self.first_scales) + 1
      return jnp.minimum(self.first_scales * 2 ** jnp.floor(share * stages), self.last_scales).astype(jnp.int32) + 1
    if self.objective == "progressive":
      return jnp.round(self.last_scales / 2 ** (self._stage(step) + 1)).astype(jnp.int32)
    return jnp.asarray(self.last_scales, jnp.int32)

  def _stage(self, step: Array | int) -> Array:
    """Returns the stage at a training step, from 0, of "ect" and "progressive"."""
    stages = round(self._halvings) if self.objective == "progressive" else self.gap_stages
    share = jnp.clip(jnp.asarray(step, jnp.float32) / self.total, 0, 1)
    return jnp.minimum(jnp.floor(share * stages), stages - 1)

  def next_target(self, step: Array, target: Params, params: Params, ema_params: Params) -> Params:
    """Returns the parameters of the targets after training step `step`, from 0, which gave `params` and `ema_params`.

    "progressive": at the end of a stage the averaged student becomes the teacher. Else they are an average.
    """
    if self.objective == "progressive":
      ends = self._stage(step + 1) != self._stage(step)
      return jax.tree.map(lambda new, old: jnp.where(ends, new, old), ema_params, target)
    rate: Any = self.target_rate
    if self.objective == "ct":  # by the number of intervals, as in the official code; the paper's N(k) are the levels
      rate = jnp.exp(self.first_scales * math.log(self.target_rate) / (self.scales(step) - 1))
    return jax.tree.map(lambda new, old: rate * old + (1 - rate) * new, params, target)

  # --- the loss -------------------------------------------------------------------------------------------------------

  def __call__(
    self,
    params: Params,
    keys: Keys,
    x0: Batch,
    index: Index,
    batch_size: int,
    train: bool = True,
    y: Any = None,
    *,
    step: Array | int = 0,
    target: Params | None = None,
    teacher: Params | None = None,
  ) -> PerExample:
    """Returns the losses (B,) of data `x0` (B, ...) with classes `y`.

    Args:
      params: parameters of `model`.
      keys: one per example, (B,).
      index: the position of each example in the global batch of `batch_size` examples, for `stratified`.
      train: whether dropout is on; the two evaluations of a pair share its mask.
      step: training steps done so far.
      target: parameters of the targets, see `has_target`; by default `params`.
      teacher: parameters of `teacher`.
    """
    u = draw_uniform(keys, x0, index, batch_size, self.stratified)
    z = normal(fold(keys, NOISE), x0)
    call = _Call(self, params, params if target is None else target, teacher, fold(keys, DROPOUT) if train else None, y)
    if self.objective == "scm":
      return self._continuous(call, x0, z, self._lognormal(u), step)
    if self.objective == "progressive":
      return self._progressive(call, x0, z, u, step)
    s, r = self._pair(u, step)
    return self._paired(call, x0, z, s, r)

  def _extremes(self, dtype: Any) -> tuple[Array, Array]:
    """Returns the smallest and the largest noise level s."""
    sde = linear(self.model.sde, "A consistency model")
    smallest, largest = (jnp.exp(-sde.log_snr(jnp.asarray(t, dtype)) / 2) for t in (self.eps, sde.T))
    return smallest, largest

  def _grid(self, i: Array, intervals: Array) -> Array:
    """Returns level i of the grid, from 0 for the smallest noise to `intervals` for the largest."""
    low, high = (end ** (1 / self.rho) for end in self._extremes(i.dtype))
    return (low + i / intervals * (high - low)) ** self.rho

  def _lognormal(self, u: Array) -> Array:
    """Maps u, uniform in [0, 1), to levels with log s ~ N(p_mean, p_std²), restricted to the SDE's levels."""
    normal_cdf, quantile = jax.scipy.special.ndtr, jax.scipy.special.ndtri
    low, high = (normal_cdf((jnp.log(end) - self.p_mean) / self.p_std) for end in self._extremes(u.dtype))
    smallest, largest = self._extremes(u.dtype)
    inner = jnp.clip(low + u * (high - low), 1e-6, 1 - 1e-6)
    return jnp.clip(jnp.exp(self.p_mean + self.p_std * quantile(inner)), smallest, largest)

  def _pair(self, u: Array, step: Array | int) -> tuple[Array, Array]:
    """Returns the two noise levels s > r of a pair, (B,) each."""
    smallest, _ = self._extremes(u.dtype)
    if self.objective == "ect":
      s = self._lognormal(u)
      gap = (1 + _K * jax.nn.sigmoid(-_B * s)) / self.gap_factor ** (self._stage(step) + 1)
      return s, jnp.maximum(s * (1 - gap), smallest)
    intervals = (self.scales(step) - 1).astype(u.dtype)
    if self.objective == "ict":
      low, high = (end ** (1 / self.rho) for end in self._extremes(u.dtype))
      place = (self._lognormal(u) ** (1 / self.rho) - low) / (high - low) * intervals
    else:
      place = u * intervals
    i = jnp.clip(jnp.floor(place), 0, intervals - 1)
    return self._grid(i + 1, intervals), self._grid(i, intervals)

  def _paired(self, call: "_Call", x0: Array, z: Array, s: Array, r: Array) -> Array:
    x = x0 + expand(s, x0) * z
    if self.objective == "cd":
      before = call.ode_step(x, s, r)
    else:
      before = x0 + expand(r, x0) * z
    goal = call.data(call.target, before, r)
    gap = s - r
    if self.objective == "ect":  # r = 0 at the smallest level: without noise, f is known
      clean = r <= self._extremes(r.dtype)[0]
      goal, gap = jnp.where(expand(clean, x0), x0, goal), jnp.where(clean, s, gap)
    error = call.data(call.params, x, s) - jax.lax.stop_gradient(goal)
    weight = 1 / gap if self.objective in ("ict", "ect") else jnp.ones_like(s)
    return weight * self._distance(error)

  def _distance(self, error: Array) -> Array:
    dims = math.prod(error.shape[1:])
    if self.distance == "l2":
      return sum_over_dims(error**2) / dims
    c = self.huber * math.sqrt(dims)
    return jnp.sqrt(sum_over_dims(error**2) + c**2) - c

  def _progressive(self, call: "_Call", x0: Array, z: Array, u: Array, step: Array | int) -> Array:
    """Returns max(1, 1 / s²) times the mean squared error of x_0. Its target makes one Euler step of the two."""
    steps = self.scales(step).astype(u.dtype)
    i = jnp.clip(jnp.floor(u * steps), 0, steps - 1)
    s, middle, r = (self._grid(i + share, steps) for share in (1.0, 0.5, 0.0))
    x = x0 + expand(s, x0) * z
    end = x
    for start, stop in ((s, middle), (middle, r)):
      slope = (end - call.data(call.target, end, start, trains=False)) / expand(start, x)
      end = end + expand(stop - start, x) * slope
    goal = jax.lax.stop_gradient(x - expand(s / (r - s), x) * (end - x))
    error = call.data(call.params, x, s) - goal
    return jnp.maximum(1 / s**2, 1) * sum_over_dims(error**2) / math.prod(x0.shape[1:])

  def _continuous(self, call: "_Call", x0: Array, z: Array, s: Array, step: Array | int) -> Array:
    """Returns ‖F_θ - F_θ⁻ + g / (‖g‖ + c)‖², with g = cos φ df_θ⁻/dφ along the path and tan φ = s / sigma_data.

    With v = cos φ x / alpha, f = cos φ v + sin φ sigma_data F(v / sigma_data). Lu & Song 2025, eq. (6) and Section 4.1,
    where F has the other sign. Their learned weights of the noise levels are left out.
    """
    width = self.model.sigma_data
    phi = jnp.arctan(s / width)
    cos, sin = (expand(f(phi), x0) for f in (jnp.cos, jnp.sin))
    x = x0 + expand(s, x0) * z
    v = cos * x
    if self.teacher is None:
      slope = cos * z - sin * x0 / width  # of v / sigma_data in φ, for this pair of data and noise
    else:
      slope = (cos * v - call.teachers_data(x, s)) / (sin * width)
    t = call.time(s)
    per_log_s = -2 / call.sde.dlog_snr(t)  # dt / d log s; and dφ / d log s = sin φ cos φ
    output = lambda params: lambda v, t: call.network(params, v, t)
    value, turned = jax.jvp(output(call.target), (v / width, t), (sin * cos * slope, per_log_s))
    value, turned = jax.lax.stop_gradient((value, turned))
    ramp = jnp.minimum((jnp.asarray(step, x0.dtype) + 1) / self.tangent_warmup, 1.0)
    g = width * (cos**2 * (value + slope) + ramp * (turned - sin * cos * v / width))
    g = jax.lax.stop_gradient(g / expand(norm(g) + TANGENT_NORM, g))
    return sum_over_dims((call.network(call.params, v / width, t) - value + g) ** 2)


@dataclasses.dataclass(frozen=True)
class _Call:
  """Arguments of one call of a loss, and the estimates of x_0 that it needs. Here x is x / alpha, at level s (B,)."""

  loss: ConsistencyLoss
  params: Params
  target: Params
  teacher: Params | None
  dropout: Array | None
  y: Any

  @property
  def sde(self) -> LinearSDE:
    return linear(self.loss.model.sde, "A consistency model")

  def time(self, s: Array) -> Array:
    """Returns the time of noise level s."""
    return jnp.clip(self.sde.time_of_log_snr(-2 * jnp.log(s)), 0, self.sde.T)

  def data(self, params: Params, x: Array, s: Array, trains: bool = True) -> Array:
    """Returns the model's estimate of x_0, with dropout if it is trained."""
    return self._estimate(self.loss.model, params, x, s, self.dropout if trains else None)

  def teachers_data(self, x: Array, s: Array) -> Array:
    """Returns the teacher's estimate of x_0."""
    model = self.loss.teacher
    if model is None or self.teacher is None:
      raise InvalidArgument("teacher=None, but the loss has a teacher: give its parameters.", "teacher")
    return self._estimate(model, self.teacher, x, s, None)

  def _estimate(self, model: ScoreModel, params: Params, x: Array, s: Array, dropout: Array | None) -> Array:
    level = model.level(self.time(s), x)
    return model.data_of_level(params, expand(level.alpha, x) * x, level, dropout, self.y)

  def network(self, params: Params, x: Array, t: Array) -> Array:
    """Returns the network's output for its own input `x`, at time t."""
    label = self.loss.model.level(t, x).label
    return self.loss.model.network(params, x, label, self.dropout, *([] if self.y is None else [self.y])).astype(
      x.dtype
    )

  def ode_step(self, x: Array, s: Array, r: Array) -> Array:
    """Returns x_r, after a step of the teacher's ODE from x_s."""
    slope = (x - self.teachers_data(x, s)) / expand(s, x)
    end = x + expand(r - s, x) * slope
    if self.loss.ode_step == "heun":
      after = (end - self.teachers_data(end, r)) / expand(r, x)
      end = x + expand((r - s) / 2, x) * (slope + after)
    return end
