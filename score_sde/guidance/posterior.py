"""Scores of posteriors: grad log p_t(x | y) = score(x, t) + grad log p_t(y | x), for a measurement y = A x_0 + noise.

Each method approximates the likelihood of y given a noisy x, which needs p(x_0 | x_t), from D(x, t) = E[x_0 | x_t = x]:

    analytic   exact, for data that is a mixture of Gaussians
    tmpd       p(x_0 | x_t) ≈ N(D, C), C = σ²/α ∂D/∂x its true covariance. Boys et al. 2023; exact for a Gaussian
    pigdm      C ≈ r² I, r² what a Gaussian of `prior_variance` would have. Song et al. 2023 (ΠGDM)
    dps        A C Aᵀ ≈ r² I, so A may be nonlinear; or the published step. Chung et al. 2023

`METHOD(sde, ...)` returns `conditional(score, x, t, measurement)`, and `condition_on(score, conditional)` is a score
again, score(x, t, measurement): samplers and likelihoods take it with condition=measurement. The same settings return
the same function, so that nothing compiles twice.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.analytic import GaussianMixture
from score_sde.batch import Array, expand
from score_sde.guidance.operators import LinearOperator, Matrix, Measurement, conjugate_gradients, inner
from score_sde.sde import LinearSDE, Score, as_argument

Conditional = Callable[..., Array]


def condition_on(score: Score, conditional: Conditional, *parameters) -> jax.tree_util.Partial:
  """The score(x, t, condition) that `conditional(score, *parameters, x, t, condition)` makes of `score`."""
  return jax.tree_util.Partial(conditional, as_argument(score), *parameters)


def _denoised(sde: LinearSDE, score: Score, x: Array, t: Array) -> tuple[Array, Array]:
  """(D, score) from one evaluation."""
  s = score(x, t)
  return (x + expand(sde.sigma(t), x) ** 2 * s) / expand(sde.alpha(t), x), s


def _spread(sde: LinearSDE, t: Array, prior_variance: float) -> Array:
  """r²: the variance of x_0 given x_t, of N(0, prior_variance I)."""
  noise = (sde.sigma(t) / sde.alpha(t)) ** 2
  return noise * prior_variance / (noise + prior_variance)


def _check(sde: LinearSDE, **positive: float) -> None:
  if not isinstance(sde, LinearSDE):
    raise ValueError(f"Posterior sampling needs a linear SDE, not {type(sde).__name__}.")
  for name, value in positive.items():
    if not value > 0:
      raise ValueError(f"guidance.{name} must be positive, got {value}.")


def _need_linear(name: str, measurement: Measurement) -> None:
  if not isinstance(measurement.operator, LinearOperator):
    kind = type(measurement.operator).__name__
    raise ValueError(f"guidance.method={name!r} needs a linear operator, and {kind} is none: use 'dps'.")


@functools.cache
def analytic(sde: LinearSDE, prior: GaussianMixture) -> Conditional:
  """The exact one, for x_0 from `prior`: p(y | x_t) is a mixture of the components' own.

  Raises:
    ValueError: for an SDE that is not linear; an operator that is no `Matrix`.
  """
  _check(sde)

  def conditional(score: Score, x: Array, t: Array, measurement: Measurement) -> Array:
    if not isinstance(measurement.operator, Matrix):
      raise ValueError(f"The analytic likelihood needs a Matrix, not {type(measurement.operator).__name__}.")
    log_p = lambda x: jnp.sum(prior.log_likelihood(sde, x, t, measurement.operator.a, measurement.y, measurement.noise))
    return score(x, t) + jax.grad(log_p)(x)

  return conditional


@functools.cache
def tmpd(sde: LinearSDE, *, scale: float = 1.0, diagonal: bool = False, iterations: int = 20) -> Conditional:
  """∂D/∂xᵀ Aᵀ (A C Aᵀ + noise² I)⁻¹ (y - A D) with C = σ²/α ∂D/∂x. Boys et al. 2023, eq. (14).

  Args:
    sde: the forward SDE.
    scale: multiplies the guidance.
    diagonal: A C Aᵀ by the sums of its rows, as the paper does for images: one derivative; or else the equation is
      solved by `iterations` of conjugate gradients, a derivative each. A network's ∂D/∂x is only nearly symmetric.

  Raises:
    ValueError: for settings that cannot work; an operator that is not linear.
  """
  _check(sde, scale=scale, iterations=iterations)

  def conditional(score: Score, x: Array, t: Array, measurement: Measurement) -> Array:
    _need_linear("tmpd", measurement)
    operator, noise = measurement.operator, measurement.noise**2
    spread = expand(sde.sigma(t) ** 2 / sde.alpha(t), x)
    estimate = lambda x: _denoised(sde, score, x, t)
    denoised, pull, s = jax.vjp(estimate, x, has_aux=True)
    r = measurement.y - operator.apply(denoised)

    def uncertainty(v):
      """A C Aᵀ v."""
      slope = jax.jvp(lambda x: estimate(x)[0], (x,), (operator.transpose(v),))[1]
      return operator.apply(spread * slope)

    if diagonal:
      # No variance is below that of data as narrow as the noise itself: a network's slopes may be anything.
      sums = jnp.maximum(uncertainty(jnp.ones_like(r)).real, 1e-6 * expand(sde.sigma(t) ** 2, r))
      solved = r / (sums + expand(noise, r))
    else:
      solved = conjugate_gradients(lambda v: uncertainty(v) + expand(noise, v) * v, r, iterations)
    return s + scale * pull(operator.transpose(solved))[0]

  return conditional


@functools.cache
def pigdm(sde: LinearSDE, *, scale: float = 1.0, prior_variance: float = 1.0) -> Conditional:
  """∂D/∂xᵀ Aᵀ (r² A Aᵀ + noise² I)⁻¹ (y - A D). Song et al. 2023, eq. (7) and (8).

  Args:
    sde: the forward SDE.
    scale: multiplies the guidance.
    prior_variance: of the data in a dimension, as the model sees it; exact for data N(0, prior_variance I).

  Raises:
    ValueError: for settings that cannot work; an operator that is not linear.
  """
  _check(sde, scale=scale, prior_variance=prior_variance)

  def conditional(score: Score, x: Array, t: Array, measurement: Measurement) -> Array:
    _need_linear("pigdm", measurement)
    denoised, pull, s = jax.vjp(lambda x: _denoised(sde, score, x, t), x, has_aux=True)
    r = measurement.y - measurement.operator.apply(denoised)
    v = measurement.operator.solve(r, _spread(sde, t, prior_variance), measurement.noise**2)
    return s + scale * pull(v)[0]

  return conditional


@functools.cache
def dps(
  sde: LinearSDE, *, scale: float = 1.0, prior_variance: float = 1.0, paper_steps: int | None = None
) -> Conditional:
  """-grad ‖y - A(D)‖² / 2 (r² + noise²), A linear or not.

  Chung et al. 2023 keep the noise alone in the denominator, which without noise is infinite, and replace it by a step
  length: -scale grad ‖y - A(D)‖² / ‖y - A(D)‖ at each of their 1,000 steps. `paper_steps` asks for that, in a sampler
  of as many steps equal in time; as a score it is (paper_steps / T g²) times as much.

  Raises:
    ValueError: for settings that cannot work.
  """
  _check(sde, scale=scale, prior_variance=prior_variance)

  def conditional(score: Score, x: Array, t: Array, measurement: Measurement) -> Array:
    def half_square(x):
      denoised, s = _denoised(sde, score, x, t)
      r = measurement.y - measurement.operator.apply(denoised)
      square = inner(r, r)
      return jnp.sum(square) / 2, (square, s)

    slope, (square, s) = jax.grad(half_square, has_aux=True)(x)
    if paper_steps is None:
      weight = 1 / (_spread(sde, t, prior_variance) + measurement.noise**2)
    else:
      weight = 2 * paper_steps / (sde.T * sde.diffusion(x, t) ** 2 * jnp.sqrt(square + 1e-12))
    return s - expand(scale * weight, x) * slope

  return conditional


METHODS = {"analytic": analytic, "tmpd": tmpd, "pigdm": pigdm, "dps": dps}
