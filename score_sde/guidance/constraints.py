"""Posterior sampling that changes the state of a solver: the measured part of x_t is replaced after every update.

A constraint is a function from a solver to a solver. It defines no score and therefore no likelihood. DDRM replaces the
whole update of a solver, so it is a solver itself.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand, normal
from score_sde.errors import InvalidArgument
from score_sde.guidance.operators import Measurement
from score_sde.options import Options, option
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import Solver, State
from score_sde.sde import SDE, Score, denoiser, linear

Constraint = Callable[[Solver], Solver]


@dataclasses.dataclass(frozen=True)
class Projection(Options):
  """Projection: x̄ <- (1 - strength) x̄ + strength (α ȳ + std z̄) in measured directions, x̄ = Vᵀ x and ȳ = Vᵀ A⁺ y.

  std² = σ² - (α noise / S)², so that z̄ and the noise of the measurement together have the noise of time t. A direction
  with α noise / S > σ(t) stays as it is, because x_t is less noisy there than the measurement. The mean gets α ȳ. With
  strength 1 the measured part is replaced: inpainting and colorization of Song et al. 2021, Appendix I. With strength
  below 1, and for any A, this is the projection of Song et al. 2022 (medical imaging), eq. (9).

  Projection(strength)(measurement) is a constraint. It needs an operator with an SVD and a linear SDE.

  Raises:
    InvalidArgument: for an operator without an SVD.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> y = ss.guidance.inpaint(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]))
    >>> solver = ss.guidance.Projection()(y)(ss.DPMSolverSDE())
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (1, 2), solver=solver, steps=10).shape
    (1, 2)
  """

  strength: float = option(1.0, "share of the measured part that is replaced", "(0, 1]")

  def __call__(self, measurement: Measurement) -> Constraint:
    operator = measurement.operator
    known, measured_std = _in_basis(measurement)

    def update(sde: SDE, keys: Array, x: Array, mean: Array, t: Array) -> tuple[Array, Array]:
      sde, t = linear(sde, "A constraint"), jnp.maximum(t, 0)  # the last step of grid='official' ends below 0
      alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
      variance = sigma**2 - (alpha * measured_std) ** 2
      share = jnp.where(variance >= 0, self.strength, 0.0)  # 0 if not measured, with infinite measured_std
      std = jnp.sqrt(jnp.maximum(variance, 0.0))
      z = operator.rotate(normal(keys, x))
      mix = lambda x, y: operator.unrotate((1 - share) * operator.rotate(x) + share * y)
      return mix(x, alpha * known + std * z), mix(mean, alpha * known)

    return lambda solver: solver.followed_by(update)


def _in_basis(measurement: Measurement) -> tuple[Array, Array]:
  """Returns (ȳ, noise / S): the measurement on the basis V, and its standard deviation, infinite if not measured."""
  operator = measurement.operator
  if not getattr(operator, "has_svd", False):
    raise InvalidArgument(
      f"Replacement, projection and DDRM need an operator with an SVD, and {type(operator).__name__} has none: use "
      "'pigdm', 'tmpd' or 'dps'."
    )
  pulled = operator.pinv(measurement.y)
  s = operator.singular(pulled)
  noise = expand(measurement.noise, s)
  return operator.rotate(pulled), jnp.where(s > 0, noise / jnp.where(s > 0, s, 1), jnp.inf)


@dataclasses.dataclass(frozen=True)
class DDRM(Solver):
  """DDRM, denoising diffusion restoration: draws from the posterior given a `measurement`, one evaluation per step.

  Let s = σ/α at the end of the step, e = noise / S and d = Vᵀ D(x, t). In the directions of V, x̄ / α becomes

      d + sqrt(1 - eta²) s (x̄ / α - d) / s_start + eta s z      where nothing is measured
      d + sqrt(1 - eta²) s (ȳ - d) / e + eta s z                where s < e
      (1 - eta_b) d + eta_b ȳ + sqrt(s² - e² eta_b²) z          where s >= e

  Kawar et al. 2022, eq. (7) and (8). It needs an operator with an SVD, a linear SDE and the score of the prior.
  `DDRM().given(measurement)` is the solver for one measurement.
  """

  default_grid: ClassVar[str] = "log_snr"
  default_steps: ClassVar[int] = 20

  eta: float = option(0.85, "noise of a step", "[0, 1]")
  eta_b: float = option(1.0, "share of the measurement in a step", "[0, 1]")
  measurement: Any = None

  def given(self, measurement: Measurement) -> "DDRM":
    """Returns the solver for this measurement."""
    return dataclasses.replace(self, measurement=measurement)

  def on(self, sde: SDE, grid: TimeGrid) -> "DDRM":
    linear(sde, "DDRM")
    grid.need_chain("DDRM")
    return self

  def init(self, sde: SDE, x: Batch, t: Time) -> State:
    if self.measurement is None:
      raise InvalidArgument("DDRM samples from a measurement: use `DDRM().given(measurement)`.", "measurement")
    return super().init(sde, x, t)

  def step(self, sde: SDE, score: Score, keys: Keys, state: State, t: Time, start: Time, stop: Time) -> State:
    sde, operator, x = linear(sde, "DDRM"), self.measurement.operator, state.x
    known, measured_std = _in_basis(self.measurement)
    ratio = lambda t: expand(sde.sigma(t) / sde.alpha(t), x)
    s, s_start = ratio(stop), ratio(start)
    d = operator.rotate(denoiser(sde, score)(x, t))
    before = operator.rotate(x / expand(sde.alpha(start), x))
    z = operator.rotate(normal(keys, x))
    rest = (1 - self.eta**2) ** 0.5
    measured = jnp.isfinite(measured_std)
    e = jnp.where(measured, measured_std, 1.0)
    free = d + rest * s * (before - d) / s_start
    vague = d + rest * s * (known - d) / jnp.maximum(e, s)
    clear = (1 - self.eta_b) * d + self.eta_b * known
    precise = measured & (s >= e)
    mean = jnp.where(measured, jnp.where(precise, clear, vague), free)
    std = jnp.where(precise, jnp.sqrt(jnp.maximum(s**2 - (e * self.eta_b) ** 2, 0.0)), self.eta * s)
    back = lambda z: expand(sde.alpha(stop), x) * operator.unrotate(z)
    return State(back(mean + std * z), back(mean))


def put_in(measurement: Measurement, x: Batch) -> Batch:
  """Puts noiseless measurements into x (B, ...) and returns it. Known pixels then equal the measured ones exactly."""
  exact = expand(measurement.noise == 0, x)
  return jnp.where(exact, measurement.operator.put_in(x, measurement.y), x)
