"""The reverse-time SDE with steps that adapt to every sample by itself. Jolicoeur-Martineau et al. 2021.

A step of length h with Brownian increment w is taken twice, by Euler-Maruyama and by its improvement:

    x' = x - h f̄(x, t) + G(x, t) w
    x" = x - h/2 [f̄(x, t) + f̄(x', t - h)] + ½ [G(x, t) + G(x', t - h)] w

x" is kept where E = rms((x' - x") / max(atol, rtol max(|x'|, |previous x'|))) <= 1, and the next h is 0.9 h E^-0.9.
Their Algorithm 1 draws fresh noise after a rejection, which favours noises that are not rejected: on a Gaussian in two
dimensions the variance comes out 1.5 times too large. Here the increments belong to one Brownian path a sample. Such a
path is rough, and a step longer by a rounding error sees another one: lengths are rounded down to eighths of an octave.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple, cast

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import STEPS, Array, expand, fold, norm
from score_sde.options import Options, option
from score_sde.sampling.solver import all_finite
from score_sde.sde import SDE, Reverse, Score, apply_diffusion, bind, denoiser

# Length of the first step, safety factor and exponent of the paper.
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9

# The Brownian paths are resolved to this time.
RESOLUTION = 1e-6


class AdaptiveState(NamedTuple):
  """The sample and the last x', (B, ...); time, next step, steps tried and rejected, each (B,)."""

  x: Array
  previous: Array
  t: Array
  h: Array
  tried: Array
  rejected: Array


@dataclasses.dataclass(frozen=True)
class AdaptiveSDE(Options):
  """The reverse-time SDE by steps that adapt to every sample by itself. Jolicoeur-Martineau et al. 2021.

  Works under every SDE. The paper's trade-off of `rtol` runs from 0.01 (as exact as 1,000 steps) to 0.1 (fast). `atol`
  is one gray level: 2 / 256 for data in [-1, 1], 1 / 256 in [0, 1].

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

  default_steps: ClassVar[int] = 0  # it finds its own

  def init(self, sde: SDE, x: Array, start: float) -> AdaptiveState:
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
    """Returns the state after at most `tries` tried steps of each sample on its way to time `stop`."""
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
      # A NaN is never accepted; halving the step leads out of it, or to max_steps.
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

    "finite" is false for a sample that ran out of steps, and "t" is the time it reached.
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
    """Returns samples at `eps` and what `finish` says of them, from noise `x` at time `start`."""
    stop = jnp.asarray(eps, x.dtype)
    state = self.advance(sde, score, keys, self.init(sde, x, start), stop, self.max_steps, condition)
    return self.finish(sde, score, state, eps, condition)
