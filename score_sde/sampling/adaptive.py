"""The reverse-time SDE with steps that adapt to every sample by itself. Jolicoeur-Martineau et al. 2021.

A step of length h with Brownian increment w is taken twice, by Euler-Maruyama and by its improvement:

    x' = x - h f̄(x, t) + G(x, t) w
    x" = x - h/2 [f̄(x, t) + f̄(x', t - h)] + ½ [G(x, t) + G(x', t - h)] w

x" is kept where E = rms((x' - x") / max(atol, rtol max(|x'|, |previous x'|))) <= 1, and the next h is 0.9 h E^-0.9.
Their Algorithm 1 draws fresh noise after a rejection, which favours noises that are not rejected: on a Gaussian in two
dimensions the variance comes out 1.5 times too large. Here the increments belong to one Brownian path a sample. Such a
path is rough, and a step longer by a rounding error sees another one: lengths are rounded down to eighths of an octave.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand, fold, norm
from score_sde.run import devices
from score_sde.sampling.loop import CHUNK
from score_sde.sampling.sampler import STEPS, Sampler, all_finite, sampler
from score_sde.sde import SDE, LinearSDE, Reverse, Score, apply_diffusion, bind, denoiser

# Length of the first step, safety factor and exponent of the paper.
FIRST_STEP, SAFETY, EXPONENT = 0.01, 0.9, 0.9

# The Brownian paths are resolved to this time.
RESOLUTION = 1e-6


class _State(NamedTuple):
  """Arrays (devices, b, ...): the sample, the last x', time, next step, steps tried and rejected."""

  x: Array
  previous: Array
  t: Array
  h: Array
  tried: Array
  rejected: Array


def adaptive_sde(
  sde: SDE,
  *,
  eps: float,
  rtol: float = 0.05,
  atol: float = 2 / 256,
  denoise: bool = True,
  max_steps: int = 4096,
  start: float | None = None,
) -> Sampler:
  """Builds `sample(score, key, shape, ...) -> (x, info)` along the reverse-time SDE from `start` to `eps`.

  Args:
    sde: the forward SDE.
    eps: where time ends.
    rtol: relative tolerance; the paper's trade-off runs from 0.01 (as exact as 1,000 steps) to 0.1 (fast).
    atol: absolute tolerance, one gray level: 2 / 256 for data in [-1, 1], 1 / 256 in [0, 1].
    denoise: end on E[x_0 | x_eps] (Tweedie's formula), which takes one evaluation more.
    max_steps: steps a sample may try.
    start: where time begins, by default T.

  Returns:
    `sample` as that of `sampler`; `info` holds, each (B,): "nfe", "finite" (false for a sample out of steps, too), "t",
    the time it reached, and "rejected", its rejected steps.

  Raises:
    ValueError: for an eps outside (0, T), or a tolerance that is not positive.
  """
  begin = sde.T if start is None else start
  if not 0 < eps < begin <= sde.T:
    raise ValueError(f"sampling.eps must lie in (0, {begin}), so that time runs from noise to data; got {eps}.")
  if not (rtol > 0 and atol > 0):
    raise ValueError(f"sampling.sde_rtol and sampling.sde_atol must be positive, got {rtol} and {atol}.")

  def advance(score: Score, batch: tuple[Array, Any], state: _State, stop: Array) -> _State:
    """At most CHUNK tries of each sample on its way to time `stop`."""
    keys, condition = batch
    reverse = Reverse(sde, bind(score, condition))
    active = lambda s: (s.t > stop) & (s.tried < max_steps)

    def increment(key, like, t0, t1):
      shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
      return diffrax.VirtualBrownianTree(0.0, sde.T, RESOLUTION, shape, key).evaluate(t0, t1)

    def body(carry):
      i, s = carry
      going = active(s)
      h = jnp.where(going, jnp.minimum(s.h, s.t - stop), 0.0)
      t = jnp.where(going, jnp.where(s.h >= s.t - stop, stop, s.t - h), s.t)
      noise = jax.vmap(increment)(fold(keys, STEPS), s.x, t, s.t)
      move = lambda x, t: apply_diffusion(reverse.diffusion(x, t), noise) - expand(h, x) * reverse.drift(x, t)
      first = move(s.x, s.t)
      euler = sde.reflect(s.x + first)
      improved = sde.reflect(s.x + (first + move(euler, t)) / 2)
      tolerance = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(euler), jnp.abs(s.previous)))
      error = norm((euler - improved) / tolerance) / np.sqrt(euler[0].size)
      accepted = going & (error <= 1)
      # A NaN is never accepted; halving the step leads out of it, or to max_steps.
      longer = jnp.where(jnp.isfinite(error), SAFETY * h * jnp.maximum(error, 1e-10) ** -EXPONENT, h / 2)
      longer = jnp.exp2(jnp.floor(8 * jnp.log2(jnp.maximum(longer, RESOLUTION))) / 8)
      take = lambda new, old: jnp.where(expand(accepted, new), new, old)
      return i + 1, _State(
        take(improved, s.x), take(euler, s.previous), jnp.where(accepted, t, s.t), jnp.where(going, longer, s.h),
        s.tried + going, s.rejected + (going & ~accepted),
      )  # fmt: skip

    _, state = jax.lax.while_loop(lambda c: (c[0] < CHUNK) & jnp.any(active(c[1])), body, (0, state))
    return state

  def begin_at(x: Array) -> _State:
    time, count = jnp.full(x.shape[:1], begin, x.dtype), jnp.zeros(x.shape[:1], jnp.int32)
    return _State(x, x + 0, time, jnp.full(x.shape[:1], FIRST_STEP * sde.T, x.dtype), count, count + 0)

  def finish(score: Score, batch: tuple[Array, Any], state: _State) -> Array:
    t = jnp.full(state.t.shape, eps, state.x.dtype)
    return denoiser(sde, bind(score, batch[1]))(state.x, t)

  begin_at, advance = devices.map_batch(begin_at, (0,)), devices.map_batch(advance, (None, 0, 0, None), donate=(2,))
  finish = devices.map_batch(finish, (None, 0, 0))

  def run(score, batch, x, unshard, frames, progress):
    state = begin_at(x)
    host = lambda x: np.asarray(unshard(x))
    trajectory = [(begin, host(state.x), None)]
    for stop in np.linspace(begin, eps, max(frames, 1) + 1)[1:].astype(x.dtype):
      while np.any((host(state.t) > stop) & (host(state.tried) < max_steps)):
        state = advance(score, batch, state, stop)
        if progress:
          progress(round(1000 * float((begin - host(state.t).mean()) / (begin - eps))), 1000)
      trajectory.append((float(stop), host(state.x), None))
    x, t, tried, rejected = unshard((state.x, state.t, state.tried, state.rejected))
    nfe, finite = 2 * tried, t <= np.asarray(eps, t.dtype)
    if denoise and isinstance(sde, LinearSDE):
      x, nfe = unshard(finish(score, batch, state)), nfe + 1
    info = {"nfe": nfe, "finite": finite & all_finite(x), "t": t, "rejected": rejected}
    return x, info | ({"trajectory": trajectory} if frames else {})

  return sampler(sde, run)
