"""Posterior sampling by acting on the state: what is measured of x_t is put into it after every update.

A constraint is `constrain(keys, x, x_mean, t) -> (x, x_mean)`, made of the batch's measurement; predictor-corrector and
few-step samplers take its maker. These are no scores: no likelihood comes of them. DDRM's update is so much a sampler's
own that it is one.
"""

from collections.abc import Callable

import jax.numpy as jnp

from score_sde.batch import Array, expand, normal
from score_sde.guidance.operators import Measurement
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.loop import Constrain, Sampler, Step, chained, loop
from score_sde.sde import LinearSDE, Score, denoiser


def projection(sde: LinearSDE, *, strength: float = 1.0) -> Callable[[Measurement], Constrain]:
  """x̄ <- (1 - strength) x̄ + strength (α ȳ + std z̄) in every measured direction, x̄ = Vᵀ x and ȳ = Vᵀ A⁺ y.

  std² = σ² - (α noise / S)², so that with the measurement's own noise the sum has the noise of time t; where that
  alone is more than σ(t), the measurement says less than x_t does, and x̄ stays. x_mean gets α ȳ. With strength 1 the
  measured part is replaced: inpainting and colorization of Song et al. 2021, Appendix I; below, and for any A, the
  projection of Song et al. 2022 (medical imaging), eq. (9).

  Raises:
    ValueError: for a strength outside (0, 1], or an SDE that is not linear; an operator without an SVD.
  """
  if not 0 < strength <= 1:
    raise ValueError(f"guidance.strength must lie in (0, 1], got {strength}.")
  if not isinstance(sde, LinearSDE):
    raise ValueError(f"Posterior sampling needs a linear SDE, not {type(sde).__name__}.")

  def make(measurement: Measurement) -> Constrain:
    operator = measurement.operator
    known, reached = _in_basis(measurement)

    def constrain(keys: Array, x: Array, x_mean: Array, t: Array) -> tuple[Array, Array]:
      alpha, sigma = expand(sde.alpha(t), x), expand(sde.sigma(t), x)
      variance = sigma**2 - (alpha * reached) ** 2
      share = jnp.where(variance > 0, strength, 0.0)  # reached is infinite where nothing is measured
      std = jnp.sqrt(jnp.maximum(variance, 0.0))
      z = operator.rotate(normal(keys, x))
      mix = lambda x, y: operator.unrotate((1 - share) * operator.rotate(x) + share * y)
      return mix(x, alpha * known + std * z), mix(x_mean, alpha * known)

    return constrain

  return make


def _in_basis(measurement: Measurement) -> tuple[Array, Array]:
  """(ȳ, noise / S): the measurement in the directions of V, and its standard deviation there, infinite where none."""
  operator = measurement.operator
  if not getattr(operator, "has_svd", False):
    raise ValueError(
      f"Replacement, projection and DDRM need an operator with an SVD, and {type(operator).__name__} has none: use "
      "'pigdm', 'tmpd' or 'dps'."
    )
  pulled = operator.pinv(measurement.y)
  s = operator.singular(pulled)
  noise = expand(measurement.noise, s)
  return operator.rotate(pulled), jnp.where(s > 0, noise / jnp.where(s > 0, s, 1), jnp.inf)


def ddrm(sde: LinearSDE, grid: TimeGrid, *, eta: float = 0.85, eta_b: float = 1.0, denoise: bool = True) -> Sampler:
  """Builds `sample(score, key, shape, condition=measurement)`, one evaluation a step; the score is score(x, t).

  In the directions of V, with s = σ/α at the end of the step, e = noise / S and d = Vᵀ D(x, t), x̄ / α becomes

      d + sqrt(1 - eta²) s (x̄ / α - d) / s_start + eta s z      where nothing is measured
      d + sqrt(1 - eta²) s (ȳ - d) / e + eta s z                where s < e
      (1 - eta_b) d + eta_b ȳ + sqrt(s² - e² eta_b²) z          where s >= e

  Kawar et al. 2022, eq. (7) and (8).

  Raises:
    ValueError: for an eta outside [0, 1], a grid whose steps do not chain, an SDE that is not linear.
  """
  chained("ddrm", sde, grid)
  for name, value in (("eta", eta), ("eta_b", eta_b)):
    if not 0 <= value <= 1:
      raise ValueError(f"guidance.{name} must lie in [0, 1], got {value}.")

  def make_step(score: Score, measurement: Measurement) -> Step:
    operator = measurement.operator
    known, reached = _in_basis(measurement)
    denoised_at = denoiser(sde, score)
    rest = (1 - eta**2) ** 0.5

    def step(keys, i, carry, t, start, stop):
      x = carry[0]
      ratio = lambda t: expand(sde.sigma(t) / sde.alpha(t), x)
      s, s_start = ratio(stop), ratio(start)
      d, before = operator.rotate(denoised_at(x, t)), operator.rotate(x / expand(sde.alpha(start), x))
      z = operator.rotate(normal(keys, x))
      measured = jnp.isfinite(reached)
      e = jnp.where(measured, reached, 1.0)
      free = d + rest * s * (before - d) / s_start
      vague = d + rest * s * (known - d) / jnp.maximum(e, s)
      clear = (1 - eta_b) * d + eta_b * known
      precise = measured & (s >= e)
      mean = jnp.where(measured, jnp.where(precise, clear, vague), free)
      std = jnp.where(precise, jnp.sqrt(jnp.maximum(s**2 - (e * eta_b) ** 2, 0.0)), eta * s)
      back = lambda z: expand(sde.alpha(stop), x) * operator.unrotate(z)
      return back(mean + std * z), back(mean)

    return step

  return loop(sde, grid, make_step, evaluations=len(grid.t), denoise=denoise, constrained=True)


def put_in(measurement: Measurement, x: Array) -> Array:
  """x with what was measured without noise put in: known pixels equal the input's to the last bit."""
  exact = expand(measurement.noise == 0, x)
  return jnp.where(exact, measurement.operator.put_in(x, measurement.y), x)
