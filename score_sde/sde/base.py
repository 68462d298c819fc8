"""Base class of the SDEs, and the type of a score function."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, Keys, Numbers, PerExample, Time, expand, sum_over_dims
from score_sde.options import Options

Score = Callable[[Array, Array], Array]


def as_argument(score: Score) -> jax.tree_util.Partial:
  """Returns `score` as a pytree, so that a compiled function can take it as an argument.

  A Partial(function, params) stays as it is, and new parameters do not recompile. Each new plain function recompiles.
  """
  return score if isinstance(score, jax.tree_util.Partial) else jax.tree_util.Partial(score)


def bind(score: Callable[..., Array], condition: Any) -> Score:
  """Returns score(x, t) with `condition` (one entry per example) filled in. None leaves `score` as it is."""
  return score if condition is None else lambda x, t: score(x, t, condition)


@dataclasses.dataclass(frozen=True)
class SDE(Options):
  """An SDE on t in [0, T]. Frozen and hashable, so that it is a static argument of compiled functions.

  `diffusion` may return one number per example (B,), an array like `x` (a diagonal), or a linear operator: a pytree
  with `matvec(v)` and `rmatvec(v)` (its transpose) on arrays like `x`.
  """

  # True if x_t given x_0 is normal with known mean and variance, see `LinearSDE` and `linear`.
  is_linear: ClassVar[bool] = False

  # The default time at which sampling ends.
  eps: ClassVar[float] = 1e-3

  # True if the published code has a table for ancestral sampling on its own grid.
  has_table: ClassVar[bool] = False

  @property
  def T(self) -> float:
    """Returns the time at which data has become noise."""
    return 1.0

  @property
  def has_prior(self) -> bool:
    """Tells whether the prior is known in closed form. Otherwise sampling starts from simulated end points."""
    return type(self).prior_sample is not SDE.prior_sample

  @property
  def why_no_likelihood(self) -> str | None:
    """Returns the reason why the probability-flow ODE gives no likelihood under this SDE, or None if it gives one."""
    if self.has_prior:
      return None
    return (
      "it has no closed-form prior: sampling starts from simulated end points. Give it prior_sample and prior_logp."
    )

  def drift(self, x: Batch, t: Time) -> Batch:
    """Returns the drift f(x, t), like `x`."""
    raise TypeError(f"{type(self).__name__} must define drift(x, t).")

  def diffusion(self, x: Batch, t: Time) -> Array:
    """Returns the diffusion G(x, t): (B,), like `x`, or a linear operator."""
    raise TypeError(f"{type(self).__name__} must define diffusion(x, t).")

  def dlog_alpha(self, t: Numbers) -> Numbers:
    """Returns d log alpha / dt, like `t`, or 0 if the SDE has no alpha. Correctors shorten their steps by it."""
    return jnp.zeros_like(t)

  def table_steps(self, index: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (start, stop), each (N,): the official samplers' steps from entries `index` (N,) of a table of `n`."""
    start = index * self.T / (n - 1)
    return start, start - self.T / n

  def prior_sample(self, keys: Keys, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Batch:
    """Draws samples of shape `shape` = (B, ...) from the prior, where sampling starts at t = T; one key per example."""
    raise TypeError(f"{type(self).__name__} has no closed-form prior to sample from: simulate end points of data.")

  def prior_logp(self, z: Batch) -> PerExample:
    """Returns the log-density (B,), in nats, of `z` under the prior."""
    raise TypeError(f"{type(self).__name__} has no closed-form prior density.")

  def scale(self, x: Batch, t: Time) -> PerExample:
    """Returns the approximate noise level of x_t, (B,). It scales a network's output and weights its loss.

    The default is sqrt(∫₀ᵗ G² ds) at x = 0, with G² averaged over dimensions, by the midpoint rule.
    """

    def variance(share):
      g = apply_diffusion(self.diffusion(jnp.zeros_like(x), share * t), jnp.ones_like(x))
      return sum_over_dims(g**2) / math.prod(x.shape[1:])

    shares = (jnp.arange(16, dtype=t.dtype) + 0.5) / 16
    return jnp.sqrt(t * jnp.mean(jnp.stack([variance(s) for s in shares]), axis=0))

  def time_of_scale(self, x: Batch, scale: PerExample) -> PerExample:
    """Returns the t (B,) in [0, T] at which `scale(x, t)` reaches `scale` (B,): bisects log t down to 1e-8 T."""

    def halve(_, bracket):
      low, high = bracket
      middle = (low + high) / 2
      below = self.scale(x, jnp.exp(middle)) < scale
      return jnp.where(below, middle, low), jnp.where(below, high, middle)

    last = jnp.full_like(scale, math.log(self.T))
    low, high = jax.lax.fori_loop(0, 40, halve, (last + math.log(1e-8), last))
    return jnp.exp((low + high) / 2)

  def reflect(self, x: Batch) -> Batch:
    """Returns x moved back into the domain, after a step of a simulation. The default domain is all of space."""
    return x

  def interior(self, x: Batch) -> Array | None:
    """Returns weights h like `x`, positive inside the domain and zero at its boundary, or None without a boundary.

    Implicit score matching integrates by parts. This weight removes the boundary term: E[½ h s² + d(h s)/dx].
    Hyvärinen 2007, Section 3.
    """
    return None

  def discretize(self, x: Batch, t: Time, start: Time, stop: Time) -> tuple[Array, Array]:
    """Returns (f, G) of one step of the forward chain, x_start = x_stop + f + G z, evaluated at (x, t).

    The default is Euler-Maruyama: f = drift (start - stop), G = diffusion sqrt(start - stop). Song et al. 2021, (45).
    """
    h = start - stop
    g = self.diffusion(x, t)
    if not isinstance(g, jax.Array):
      raise TypeError("A diffusion that is an operator has no tabulated chain; use the Euler-Maruyama predictor.")
    return self.drift(x, t) * expand(h, x), g * jnp.sqrt(expand(h, g))


def apply_diffusion(g: Array, v: Array) -> Array:
  """Returns G v for each of the three kinds of diffusion."""
  return expand(g, v) * v if isinstance(g, jax.Array) else g.matvec(v)


def apply_covariance(g: Array, v: Array) -> Array:
  """Returns G Gᵀ v for each of the three kinds of diffusion."""
  return expand(g, v) ** 2 * v if isinstance(g, jax.Array) else g.matvec(g.rmatvec(v))
