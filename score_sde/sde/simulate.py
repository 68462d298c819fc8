"""Simulated forward paths, for SDEs without a closed-form kernel, and SDEs reflected at a boundary."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, PerExample, Time, expand, fold, normal, uniform
from score_sde.errors import InvalidArgument
from score_sde.sde.base import SDE, apply_diffusion


def simulate(sde: SDE, keys: Keys, x0: Batch, t: Time, steps: int) -> Batch:
  """Simulates x_t (B, ...) at times `t` (B,), from `x0` at time 0, by `steps` Euler-Maruyama steps of length t / steps.

      x <- reflect(x + f(x, t') h + G(x, t') sqrt(h) z),    t' the middle of the step

  With t' in the middle, the variance of noise that depends only on time is right to second order. `keys` (B,) has one
  key per example.
  """
  h = t / steps

  def step(i, x):
    now = (i + 0.5) * h
    noise = apply_diffusion(sde.diffusion(x, now), expand(jnp.sqrt(h), x) * normal(fold(keys, i), x))
    return sde.reflect(x + sde.drift(x, now) * expand(h, x) + noise)

  return jax.lax.fori_loop(0, steps, step, x0)


@dataclasses.dataclass(frozen=True)
class Reflected(SDE):
  """SDE that follows `sde` and is reflected at the faces of the box [low, high]^D. Lou & Ermon 2023.

  Attributes:
    sde: the SDE inside the box. Only its drift, diffusion, T and scale are used.
    low, high: the box that contains the data.
    uniform_prior: True starts sampling from the uniform distribution. Without drift, x_T tends to it if the noise is
      large compared with the box. False starts from simulated end points.

  Raises:
    InvalidArgument: unless low < high.
  """

  sde: SDE
  low: float = -1.0
  high: float = 1.0
  uniform_prior: bool = False

  def __post_init__(self) -> None:
    super().__post_init__()
    if not -math.inf < self.low < self.high < math.inf:
      raise InvalidArgument(f"low={self.low} and high={self.high} must satisfy low < high.", "low", "high")

  @property
  def T(self) -> float:
    return self.sde.T

  @property
  def has_prior(self) -> bool:
    return self.uniform_prior

  def drift(self, x: Batch, t: Time) -> Batch:
    return self.sde.drift(x, t)

  def diffusion(self, x: Batch, t: Time) -> Array:
    return self.sde.diffusion(x, t)

  def scale(self, x: Batch, t: Time) -> PerExample:
    """Returns the scale of `sde`, kept below the standard deviation of the uniform distribution on the box."""
    free, most = self.sde.scale(x, t), (self.high - self.low) / math.sqrt(12)
    return free / jnp.sqrt(1 + (free / most) ** 2)

  def reflect(self, x: Batch) -> Batch:
    width = self.high - self.low
    return self.low + width - jnp.abs((x - self.low) % (2 * width) - width)

  def interior(self, x: Batch) -> Array:
    """Returns 1 - r⁴, r the distance from the middle in units of half the width: flat inside, zero at the faces."""
    r = (2 * x - self.low - self.high) / (self.high - self.low)
    return 1 - r**4

  def prior_sample(self, keys: Keys, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Batch:
    if not self.uniform_prior:
      return super().prior_sample(keys, shape, dtype)
    return self.low + (self.high - self.low) * uniform(keys, jax.ShapeDtypeStruct(shape, dtype))

  @property
  def why_no_likelihood(self) -> str:
    return "the probability-flow ODE of a learned score may leave the box, because it is not reflected."
