"""Scores of posteriors: grad log p_t(x | y) = score(x, t) + grad log p_t(y | x), for a measurement y = A x_0 + noise.

The likelihood of y given a noisy x needs p(x_0 | x_t). Each method approximates it with D(x, t) = E[x_0 | x_t = x]:

    Analytic   exact, for data from a mixture of Gaussians
    TMPD       p(x_0 | x_t) ≈ N(D, C), C = σ²/α ∂D/∂x its true covariance. Boys et al. 2023; exact for a Gaussian
    PiGDM      C ≈ r² I, r² the value for Gaussian data of variance `prior_variance`. Song et al. 2023 (ΠGDM)
    DPS        A C Aᵀ ≈ r² I, so A may be nonlinear; or the published step. Chung et al. 2023

A method is called as method(score, x, t, measurement). `condition_on(score, method)` returns score(x, t, measurement).
Samplers and likelihoods take this score with condition=measurement.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.analytic import GaussianMixture
from score_sde.batch import Array, Batch, Time, expand
from score_sde.errors import InvalidArgument
from score_sde.guidance.operators import LinearOperator, Matrix, Measurement, conjugate_gradients, inner
from score_sde.options import Options, option
from score_sde.sde import SDE, LinearSDE, Score, as_argument, linear

Conditional = Callable[..., Array]


def condition_on(score: Score, conditional: Conditional, *parameters: Any) -> jax.tree_util.Partial:
  """Returns the score(x, t, condition) = conditional(score, *parameters, x, t, condition).

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> y = ss.guidance.inpaint(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]))
    >>> score = ss.guidance.condition_on(lambda x, t: -x, ss.guidance.PiGDM(ss.VP()))
    >>> ss.sample(jax.random.key(0), ss.VP(), score, (1, 2), condition=y, solver=ss.DDIM(), steps=10).shape
    (1, 2)
  """
  return jax.tree_util.Partial(conditional, as_argument(score), *parameters)


def _denoised(sde: LinearSDE, score: Score, x: Array, t: Array) -> tuple[Array, Array]:
  """Returns (D, score) from one evaluation."""
  s = score(x, t)
  return (x + expand(sde.sigma(t), x) ** 2 * s) / expand(sde.alpha(t), x), s


def _spread(sde: LinearSDE, t: Array, prior_variance: float) -> Array:
  """Returns r², the variance of x_0 given x_t for x_0 ~ N(0, prior_variance I), (B,)."""
  noise = (sde.sigma(t) / sde.alpha(t)) ** 2
  return noise * prior_variance / (noise + prior_variance)


def _need_linear(name: str, measurement: Measurement) -> None:
  if not isinstance(measurement.operator, LinearOperator):
    kind = type(measurement.operator).__name__
    raise InvalidArgument(f"method={name!r} needs a linear operator, and {kind} is none: use 'dps'.", "method")


@dataclasses.dataclass(frozen=True)
class Posterior(Options):
  """Base of the approximate methods. It holds the linear `sde` and the strength of the guidance."""

  sde: SDE
  scale: float = option(1.0, "strength of guidance: 0 is none, 1 Bayes' rule", "[0, inf)")

  def __post_init__(self) -> None:
    super().__post_init__()
    linear(self.sde, "Posterior sampling")

  @property
  def _linear(self) -> LinearSDE:
    return linear(self.sde, "Posterior sampling")


@dataclasses.dataclass(frozen=True)
class Analytic:
  """Exact score of the posterior for x_0 ~ `prior`: p(y | x_t) is a mixture over the components of `prior`.

  Attributes:
    sde: a linear SDE.
    prior: the mixture from which the data is drawn.

  Raises:
    InvalidArgument: in the call, for an operator that is not a `Matrix`.
  """

  sde: SDE
  prior: GaussianMixture

  def __call__(self, score: Score, x: Batch, t: Time, measurement: Measurement) -> Batch:
    sde, operator = linear(self.sde, "Posterior sampling"), measurement.operator
    if not isinstance(operator, Matrix):
      raise InvalidArgument(
        f"The analytic likelihood needs a Matrix as operator, not {type(operator).__name__}: use `operators.matrix`."
      )
    log_p = lambda x: jnp.sum(self.prior.log_likelihood(sde, x, t, operator.a, measurement.y, measurement.noise))
    return score(x, t) + jax.grad(log_p)(x)


@dataclasses.dataclass(frozen=True)
class TMPD(Posterior):
  """TMPD: adds ∂D/∂xᵀ Aᵀ (A C Aᵀ + noise² I)⁻¹ (y - A D) with C = σ²/α ∂D/∂x. Boys et al. 2023, eq. (14).

  covariance="diagonal" replaces A C Aᵀ by the sums of its rows, as the paper does for images. It takes one derivative.
  "full" solves the equation by `iterations` steps of conjugate gradients, with one derivative each. The ∂D/∂x of a
  network is only nearly symmetric.
  """

  covariance: str = option("diagonal", "A C Aᵀ by the sums of its rows, or in full", choices=("diagonal", "full"))
  iterations: int = option(20, "steps of conjugate gradients", "[1, inf)", needs={"covariance": ("full",)})

  def __call__(self, score: Score, x: Batch, t: Time, measurement: Measurement) -> Batch:
    _need_linear("tmpd", measurement)
    sde, operator, noise = self._linear, measurement.operator, measurement.noise**2
    spread = expand(sde.sigma(t) ** 2 / sde.alpha(t), x)
    estimate = lambda x: _denoised(sde, score, x, t)
    denoised, pull, s = jax.vjp(estimate, x, has_aux=True)
    r = measurement.y - operator.apply(denoised)

    def uncertainty(v: Array) -> Array:
      """Returns A C Aᵀ v."""
      slope = jax.jvp(lambda x: estimate(x)[0], (x,), (operator.transpose(v),))[1]
      return operator.apply(spread * slope)

    if self.covariance == "diagonal":
      # A lower limit for the variances: the ∂D/∂x of a network can give values that are zero or negative.
      sums = jnp.maximum(uncertainty(jnp.ones_like(r)).real, 1e-6 * expand(sde.sigma(t) ** 2, r))
      solved = r / (sums + expand(noise, r))
    else:
      solved = conjugate_gradients(lambda v: uncertainty(v) + expand(noise, v) * v, r, self.iterations)
    return s + self.scale * pull(operator.transpose(solved))[0]


@dataclasses.dataclass(frozen=True)
class PiGDM(Posterior):
  """PiGDM: adds ∂D/∂xᵀ Aᵀ (r² A Aᵀ + noise² I)⁻¹ (y - A D). Song et al. 2023, eq. (7) and (8).

  It is exact for data from N(0, prior_variance I).
  """

  prior_variance: float = option(1.0, "variance of the data per dimension, as the model sees it", "(0, inf)")

  def __call__(self, score: Score, x: Batch, t: Time, measurement: Measurement) -> Batch:
    _need_linear("pigdm", measurement)
    sde = self._linear
    denoised, pull, s = jax.vjp(lambda x: _denoised(sde, score, x, t), x, has_aux=True)
    r = measurement.y - measurement.operator.apply(denoised)
    v = measurement.operator.solve(r, _spread(sde, t, self.prior_variance), measurement.noise**2)
    return s + self.scale * pull(v)[0]


@dataclasses.dataclass(frozen=True)
class DPS(Posterior):
  """DPS: adds -grad ‖y - A(D)‖² / 2 (r² + noise²), for linear and nonlinear A.

  Chung et al. 2023 have only noise² in the denominator, which is zero without noise. So they use a step instead:
  -scale grad ‖y - A(D)‖² / ‖y - A(D)‖ at each of their 1,000 steps. `paper_steps` selects this. The sampler must then
  make that many steps, equal in time. To act as a score, the step is multiplied by paper_steps / T g².
  """

  prior_variance: float = option(1.0, "variance of the data per dimension, as the model sees it", "(0, inf)")
  paper_steps: int | None = option(None, "the published step, in as many steps equal in time", "[1, inf)")

  def __call__(self, score: Score, x: Batch, t: Time, measurement: Measurement) -> Batch:
    sde = self._linear

    def half_square(x: Array) -> tuple[Array, tuple[Array, Array]]:
      denoised, s = _denoised(sde, score, x, t)
      r = measurement.y - measurement.operator.apply(denoised)
      square = inner(r, r)
      return jnp.sum(square) / 2, (square, s)

    slope, (square, s) = jax.grad(half_square, has_aux=True)(x)
    if self.paper_steps is None:
      weight = 1 / (_spread(sde, t, self.prior_variance) + measurement.noise**2)
    else:
      weight = 2 * self.paper_steps / (sde.T * sde.diffusion(x, t) ** 2 * jnp.sqrt(square + 1e-12))
    return s - expand(self.scale * weight, x) * slope


METHODS = {"tmpd": TMPD, "pigdm": PiGDM, "dps": DPS}
