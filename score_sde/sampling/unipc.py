"""UniPC: a multistep predictor with a corrector. Each evaluation serves the corrector and the next step."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import STEEPEST, FewStep, Solver, Update, Updated, exact_step, half_log_snr
from score_sde.sde import SDE, Score, denoiser, linear


class UniPCState(NamedTuple):
  """State of `UniPC`: x and its mean; D now and at the two previous points; lambda (B,) of those two; steps so far."""

  x: Array
  mean: Array
  denoised: Array
  before: Array
  before2: Array
  lambda1: Array
  lambda2: Array
  taken: Array


def _bh_weights(places: list[Array], h: Array) -> Array:
  """Returns the weights (B, K) of UniPC's differences at K `places` (B,), in units of h. Zhao et al. 2023, eq. (5)."""
  powers = jnp.stack([jnp.stack([r**j for r in places], axis=-1) for j in range(len(places))], axis=-2)
  b_h, phi, right = jnp.expm1(-h), jnp.expm1(-h) / -h - 1, []
  for j in range(len(places)):
    right.append(math.factorial(j + 1) * phi / b_h)
    phi = phi / -h - 1 / math.factorial(j + 2)
  return jnp.linalg.solve(powers, jnp.stack(right, axis=-1)[..., None])[..., 0]


@dataclasses.dataclass(frozen=True)
class UniPC(FewStep):
  """UniPC-3: order 3, one evaluation per step and one at the start. Zhao et al. 2023, Algorithms 5 and 6.

  B(h) = exp(h) - 1. The first two steps have fewer previous points. Their orders are 1 and 2 before correction, and 2
  and 3 after it. These errors are made once, so the order of the whole is still 3. The order is also lower in a step
  that is more than `STEEPEST` times longer than the steps before it. The last step, to sigma = 0, reuses
  the evaluation that corrected the previous step. So n steps take n evaluations.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.UniPC(), steps=20).shape
    (4, 2)
  """

  # True if `finish` evaluates D again: an update has changed x since the last evaluation, or there was none.
  evaluates_last: bool = False

  def on(self, sde: SDE, grid: TimeGrid) -> "UniPC":
    super().on(sde, grid)
    return dataclasses.replace(self, evaluates_last=self.evaluates_last or not len(grid))

  def followed_by(self, update: Update) -> Solver:
    return Updated(
      noise_removal=self.noise_removal, solver=dataclasses.replace(self, evaluates_last=True), update=update
    )

  def init(self, sde: SDE, x: Batch, t: Time) -> UniPCState:
    empty, none = jnp.zeros_like(x), jnp.zeros_like(t)
    return UniPCState(x, x, empty, empty, empty, none, none, jnp.zeros((), jnp.int32))

  def step(self, sde: SDE, score: Score, keys: Keys, state: UniPCState, t: Time, start: Time, stop: Time) -> UniPCState:
    sde = linear(sde, "UniPC")
    x, denoise = state.x, denoiser(sde, score)
    denoised = jax.lax.cond(state.taken == 0, lambda: denoise(x, start), lambda: state.denoised)
    now = half_log_snr(sde, start)
    h = half_log_snr(sde, stop) - now
    base = exact_step(sde, x, denoised, start, stop)
    scale = -sde.alpha(stop) * jnp.expm1(-h)
    # Previous points in units of h (negative), and D at them.
    past = ((state.lambda1, state.before), (state.lambda2, state.before2))
    behind = [((place - now) / h, d) for place, d in past]

    def combine(count: int, ahead: Array | None) -> Array:
      places, changes = [r for r, _ in behind[:count]], [d - denoised for _, d in behind[:count]]
      if ahead is not None:
        places, changes = [*places, jnp.ones_like(h)], [*changes, ahead - denoised]
      if not places:
        return base
      weights = _bh_weights(places, h)
      parts = [expand(scale * weights[:, k] / r, x) * c for k, (r, c) in enumerate(zip(places, changes, strict=True))]
      return base + sum(parts)

    # The number of previous points that are far enough behind. All examples have the same times.
    near, far = (jnp.all(-place * STEEPEST >= distance) for distance, (place, _) in enumerate(behind, 1))
    known = jnp.minimum(state.taken, jnp.where(near, 1 + far, 0))
    guess = jax.lax.switch(known, [lambda k=k: combine(k, None) for k in range(3)])
    ahead = denoise(guess, stop)
    x = jax.lax.switch(known, [lambda k=k: combine(k, ahead) for k in range(3)])
    return UniPCState(x, x, ahead, denoised, state.before, now, state.lambda1, state.taken + 1)

  def finish(self, sde: SDE, score: Score, state: UniPCState, t: Time) -> Batch:
    if not self.noise_removal:
      return state.x
    return denoiser(sde, score)(state.x, t) if self.evaluates_last else state.denoised

  def evaluations(self, steps: int) -> int:
    return steps + (steps > 0) + (self.noise_removal and self.evaluates_last)
