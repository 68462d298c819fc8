"""Solver of the reverse-time SDE with adaptive steps for each sample. Jolicoeur-Martineau et al. 2021.

A step of length h with Brownian increment w is computed twice, by Euler-Maruyama (x') and by its improvement (x"):

    x' = x - h f̄(x, t) + G(x, t) w
    x" = x - h/2 [f̄(x, t) + f̄(x', t - h)] + ½ [G(x, t) + G(x', t - h)] w

x" is accepted if E = rms((x' - x") / max(atol, rtol max(|x'|, |previous x'|))) <= 1. The next h is 0.9 h E^-0.9.

Algorithm 1 of the paper draws new noise after a rejection. This favours noise that is not rejected: on a Gaussian in
two dimensions the variance is 1.5 times too large. Here all increments of a sample come from one Brownian path. A path
is rough: a rounding error in h changes the increment. So h is rounded down to a power of 2^(1/8).
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import STEPS, Array, Batch, expand, fold, norm
from score_sde.options import Options, option
from score_sde.sampling.solver import all_finite
from score_sde.sde import SDE, Reverse, Score, apply_diffusion, bind, denoiser

# Values of the paper: length of the first step in units of T, safety factor and exponent.
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9

# Time resolution of the Brownian paths.
RESOLUTION = 1e-6


class AdaptiveState(NamedTuple):
  """State of `AdaptiveSDE`: x and the last x', (B, ...); time, next step, steps tried and rejected, each (B,)."""

  x: Array
  previous: Array
  t: Array
  h: Array
  tried: Array
  rejected: Array


@dataclasses.dataclass(frozen=True)
class AdaptiveSDE(Options):
  """Solver of the reverse-time SDE with adaptive steps for each sample. Jolicoeur-Martineau et al. 2021.

  Works under every SDE. The paper uses `rtol` from 0.01 (as exact as 1,000 steps) to 0.1 (fast). `atol` is one gray
  level: 2 / 256 for data in [-1, 1], 1 / 256 for data in [0, 1].

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.AdaptiveSDE(rtol=0.1)
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=solver).shape
    (4, 2)
  """

  rtol: float = option(0.05, "relative tolerance of the adaptive SDE", "(0, inf)", key="sde_rtol")
  atol: float = option(2 / 256, "absolute tolerance of the adaptive SDE", "(0, inf)", key="sde_atol")
  noise_removal: bool = option(True, "end on E[x_0 | x_eps], one evaluation")
  max_steps: int = option(4096, "steps of an adaptive solve, after which it fails", "[1, inf)")

  default_steps: ClassVar[int] = 0  # unused: the steps are adaptive

  def init(self, sde: SDE, x: Batch, start: float) -> AdaptiveState:
    """Returns the state at time `start`."""
    time, count = jnp.full(x.shape[:1], start, x.dtype), jnp.zeros(x.shape[:1], jnp.int32)
    return AdaptiveState(x, x + 0, time, jnp.full(x.shape[:1], FIRST_STEP * sde.T, x.dtype), count, count + 0)

  def advance(
    self,
    sde: SDE,
    score: Score,
    keys: Array,
    state: AdaptiveState,
    stop: Array | float,
    tries: int,
    condition: Any = None,
  ) -> AdaptiveState:
    """Moves each sample towards time `stop`, by at most `tries` tried steps, and returns the new state."""
    reverse = Reverse(sde, bind(score, condition))
    active = lambda s: (s.t > stop) & (s.tried < self.max_steps)

    def increment(key: Array, like: Array, t0: Array, t1: Array) -> Array:
      shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
      path = diffrax.VirtualBrownianTree(0.0, sde.T, RESOLUTION, shape, key)
      return cast(Array, path.evaluate(t0, t1))

    def body(carry: tuple[Array, AdaptiveState]) -> tuple[Array, AdaptiveState]:
      i, s = carry
      going = active(s)
      h = jnp.where(going, jnp.minimum(s.h, s.t - stop), 0.0)
      t = jnp.where(going, jnp.where(s.h >= s.t - stop, stop, s.t - h), s.t)
      noise = jax.vmap(increment)(fold(keys, STEPS), s.x, t, s.t)
      move = lambda x, t: apply_diffusion(reverse.diffusion(x, t), noise) - expand(h, x) * reverse.drift(x, t)
      first = move(s.x, s.t)
      euler = sde.reflect(s.x + first)
      improved = sde.reflect(s.x + (first + move(euler, t)) / 2)
      tolerance = jnp.maximum(self.atol, self.rtol * jnp.maximum(jnp.abs(euler), jnp.abs(s.previous)))
      error = norm((euler - improved) / tolerance) / np.sqrt(euler[0].size)
      accepted = going & (error <= 1)
      # A NaN is never accepted: the step is halved until the error is finite or max_steps is reached.
      longer = jnp.where(jnp.isfinite(error), SAFETY * h * jnp.maximum(error, 1e-10) ** -EXPONENT, h / 2)
      longer = jnp.exp2(jnp.floor(8 * jnp.log2(jnp.maximum(longer, RESOLUTION))) / 8)
      take = lambda new, old: jnp.where(expand(accepted, new), new, old)
      return i + 1, AdaptiveState(
        take(improved, s.x), take(euler, s.previous), jnp.where(accepted, t, s.t), jnp.where(going, longer, s.h),
        s.tried + going, s.rejected + (going & ~accepted),
      )  # fmt: skip

    going_on = lambda carry: (carry[0] < tries) & jnp.any(active(carry[1]))
    return jax.lax.while_loop(going_on, body, (jnp.zeros((), jnp.int32), state))[1]

  def finish(
    self, sde: SDE, score: Score, state: AdaptiveState, eps: float, condition: Any = None
  ) -> tuple[Array, dict[str, Array]]:
    """Returns samples and {"nfe", "finite", "t", "rejected"}, each (B,).

    "finite" is also false for a sample that ran out of steps. "t" is the time that the sample reached.
    """
    x, nfe = state.x, 2 * state.tried
    if self.noise_removal and sde.is_linear:
      x = denoiser(sde, bind(score, condition))(x, jnp.full(state.t.shape, eps, x.dtype))
      nfe = nfe + 1
    finite = (state.t <= jnp.asarray(eps, state.t.dtype)) & all_finite(x)
    return x, {"nfe": nfe, "finite": finite, "t": state.t, "rejected": state.rejected}

  def solve(
    self, sde: SDE, score: Score, keys: Array, x: Array, *, start: float, eps: float, condition: Any = None
  ) -> tuple[Array, dict[str, Array]]:
    """Solves from noise `x` at time `start` to `eps`. Returns samples and information, as `finish` does."""
    stop = jnp.asarray(eps, x.dtype)
    state = self.advance(sde, score, keys, self.init(sde, x, start), stop, self.max_steps, condition)
    return self.finish(sde, score, state, eps, condition)
