"""Multistep solvers of the denoiser: a polynomial through earlier evaluations, and a corrector that costs none."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, expand, normal
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.solver import STEEPEST, FewStep, Solver, Update, Updated, half_log_snr
from score_sde.sde import SDE, LinearSDE, Score, denoiser, linear


class MultistepState(NamedTuple):
  """State of a `Multistep` solver.

  Attributes:
    x, mean: the samples, and the samples without the noise of the last step.
    denoised: D near x, where the corrector evaluated it; None without a corrector.
    before: D at the previous points, from the newest.
    places: half log-SNR of these points, each (B,).
    taken: the number of steps so far.
    path: the keys of the samples' Brownian paths; None if each step draws its own noise.
  """

  x: Array
  mean: Array
  denoised: Array | None
  before: tuple[Array, ...]
  places: tuple[Array, ...]
  taken: Array
  path: Array | None = None


class Transition(NamedTuple):
  """Step of a solver: x_stop = kept x + gained D + sum_k weights_k (D_k - D) + std z.

  Attributes:
    kept, gained: (B,).
    weights: from the places of other points, (D_k is at start + place · h, in lambda), to their weights, each (B,).
    std: standard deviation of the noise, (B,); None for an ODE.
  """

  kept: Array
  gained: Array
  weights: Callable[[list[Array]], list[Array]]
  std: Array | None = None


def through(places: list[Array], right: Array) -> Array:
  """Returns the weights w (B, K) with sum_k w_k place_k^j = right_j for j = 1 to K, from K `places` (B,)."""
  powers = jnp.stack([jnp.stack([r**j for r in places], axis=-1) for j in range(1, len(places) + 1)], axis=-2)
  return jnp.linalg.solve(powers, right[..., None])[..., 0]


@dataclasses.dataclass(frozen=True)
class Multistep(FewStep):
  """Base of solvers that keep D of earlier steps. A subclass defines `transition`, and `uses` and `corrects` if needed.

  The first steps have fewer previous points, and a lower order. These errors are made once, so the order of the whole
  is not lower. Previous points are also left out in a step that is more than `STEEPEST` times longer than the steps
  before it.

  With a corrector, D is evaluated at the predicted x, the step is repeated with that point, and the next step uses the
  same D. So n steps take n evaluations and one at the start; the last step, to sigma = 0, takes none.
  """

  # True if `finish` evaluates D even after a corrector: an update has changed x since then, or there was no step.
  evaluates_last: bool = False

  @property
  def uses(self) -> int:
    """Returns the largest number of previous points in a step, at most 2. The order without corrector is one more."""
    return 2

  @property
  def corrects(self) -> bool:
    """Returns whether steps are corrected."""
    return True

  def transition(self, sde: LinearSDE, start: Time, stop: Time, h: Array) -> Transition:
    """Returns the step from `start` to `stop`, whose length in lambda is `h` (B,)."""
    raise TypeError(f"{type(self).__name__} must define transition(sde, start, stop, h).")

  def noise(self, sde: LinearSDE, keys: Keys, x: Batch, start: Time, stop: Time, path: Array | None) -> Array:
    """Returns standard normal noise of a step, like `x`."""
    return normal(keys, x)

  def on(self, sde: SDE, grid: TimeGrid) -> "Multistep":
    super().on(sde, grid)
    return dataclasses.replace(self, evaluates_last=self.evaluates_last or not len(grid))

  def followed_by(self, update: Update) -> Solver:
    return Updated(
      noise_removal=self.noise_removal, solver=dataclasses.replace(self, evaluates_last=True), update=update
    )

  def init(self, sde: SDE, x: Batch, t: Time) -> MultistepState:
    empty, none = jnp.zeros_like(x), jnp.zeros_like(t)
    return MultistepState(
      x, x, empty if self.corrects else None, (empty,) * self.uses, (none,) * self.uses, jnp.zeros((), jnp.int32)
    )  # fmt: skip

  def step(
    self, sde: SDE, score: Score, keys: Keys, state: MultistepState, t: Time, start: Time, stop: Time
  ) -> MultistepState:
    sde = linear(sde, type(self).__name__)
    x, denoise = state.x, denoiser(sde, score)
    if self.corrects:
      denoised = jax.lax.cond(state.taken == 0, lambda: denoise(x, start), lambda: state.denoised)
    else:
      denoised = denoise(x, t)
    now = half_log_snr(sde, start)
    h = half_log_snr(sde, stop) - now
    move = self.transition(sde, start, stop, h)
    base = expand(move.kept, x) * x + expand(move.gained, x) * denoised
    # Previous points in units of h (negative), and D at them.
    behind = [((place - now) / h, d) for place, d in zip(state.places, state.before, strict=True)]

    def combine(count: int, ahead: Array | None) -> Array:
      places, changes = [r for r, _ in behind[:count]], [d - denoised for _, d in behind[:count]]
      if ahead is not None:
        places, changes = [*places, jnp.ones_like(h)], [*changes, ahead - denoised]
      weights = move.weights(places) if places else []
      return base + sum(expand(w, x) * change for w, change in zip(weights, changes, strict=True))

    # The number of previous points that are far enough behind. All examples have the same times.
    known = jnp.zeros((), jnp.int32)
    for distance, (place, _) in enumerate(behind, 1):
      near = jnp.all(-place * STEEPEST >= distance) & (state.taken >= distance)
      known = jnp.where((known == distance - 1) & near, distance, known)
    noise, path = jnp.zeros_like(x), state.path
    if move.std is not None:
      noise = expand(move.std, x) * self.noise(sde, keys, x, start, stop, path)
    branches = lambda ahead: [lambda k=k: combine(k, ahead) for k in range(self.uses + 1)]
    mean, ahead = jax.lax.switch(known, branches(None)), state.denoised
    if self.corrects:
      ahead = denoise(mean + noise, stop)
      mean = jax.lax.switch(known, branches(ahead))
    before, places = ((new, *old)[: self.uses] for new, old in ((denoised, state.before), (now, state.places)))
    return MultistepState(mean + noise, mean, ahead, before, places, state.taken + 1, path)

  def finish(self, sde: SDE, score: Score, state: MultistepState, t: Time) -> Batch:
    if not self.noise_removal:
      return state.x
    if state.denoised is None or self.evaluates_last:
      return denoiser(sde, score)(state.x, t)
    return state.denoised

  def evaluations(self, steps: int) -> int:
    first, last = self.corrects and steps > 0, self.evaluates_last or not self.corrects
    return steps + first + (self.noise_removal and last)
