"""Samplers for few steps, for any linear SDE through alpha(t) and sigma(t) alone.

All see the score as the denoiser D(x, t) = E[x_0 | x_t = x] = (x + sigma² score) / alpha, and time as the half log-SNR
lambda = log(alpha / sigma), from `start` to `stop` of a step with h = lambda(stop) - lambda(start) > 0. With D kept
fixed over a step the probability-flow ODE is solved exactly,

    x_stop = (sigma_stop / sigma_start) x + alpha_stop (1 - exp(-h)) D,

which is DDIM; the others extrapolate D.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import Array, expand, normal
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.loop import Constrain, Step, chained, constrained_step, loop
from score_sde.sde import LinearSDE, Score, denoiser


def _half_log_snr(sde: LinearSDE, t: Array) -> Array:
  return sde.log_snr(t) / 2


def _exact(sde: LinearSDE, x: Array, denoised: Array, start: Array, stop: Array) -> Array:
  """The solution of the ODE from `start` to `stop` with D fixed at `denoised`."""
  h = _half_log_snr(sde, stop) - _half_log_snr(sde, start)
  kept, gained = sde.sigma(stop) / sde.sigma(start), -sde.alpha(stop) * jnp.expm1(-h)
  return expand(kept, x) * x + expand(gained, x) * denoised


def ddim(sde: LinearSDE, grid: TimeGrid, *, eta: float = 0.0):
  """x_stop = alpha D + sqrt(sigma² - v) (x - alpha_start D) / sigma_start + sqrt(v) z, one evaluation a step.

  v = eta² times the variance of the posterior of x_stop given x and x_0 = D: eta = 0 is the ODE, 1 ancestral sampling.
  Song et al. 2021 (DDIM), eq. (12).
  """

  def make_step(score: Score) -> Step:
    denoise = denoiser(sde, score)

    def step(keys, i, carry, t, start, stop):
      x, denoised = carry[0], denoise(carry[0], t)
      ratio, std = sde.transition(stop, start)
      sigma = sde.sigma(start)
      v = (eta * std / (ratio * sigma)) ** 2 * jnp.maximum(sigma**2 - std**2, 0.0)
      noise = (x - expand(sde.alpha(start), x) * denoised) / expand(sigma, x)
      rest = jnp.sqrt(jnp.maximum(sde.sigma(stop) ** 2 - v, 0.0))
      x_mean = expand(sde.alpha(stop), x) * denoised + expand(rest, x) * noise
      return x_mean + expand(jnp.sqrt(v), x) * normal(keys, x) if eta else x_mean, x_mean

    return step

  return {"make_step": make_step, "evaluations": len(grid.t)}


def dpm_solver(sde: LinearSDE, grid: TimeGrid, *, stochastic: bool = False):
  """DPM-Solver++(2M): D extrapolated linearly in lambda from the step before, one evaluation a step.

  The first step is DDIM's. `stochastic` solves the reverse-time SDE. Lu et al. 2022b, Algorithm 2 and Section 5.
  """

  def make_step(score: Score) -> Step:
    denoise = denoiser(sde, score)

    def step(keys, i, carry, t, start, stop):
      x, _, before, lambda_before = carry
      denoised, now = denoise(x, t), _half_log_snr(sde, start)
      h = _half_log_snr(sde, stop) - now
      slope = jnp.where(i > 0, h / (2 * jnp.where(i > 0, now - lambda_before, 1.0)), 0.0)
      middle = denoised + expand(slope, x) * (denoised - before)
      if not stochastic:
        x = _exact(sde, x, middle, start, stop)
        return x, x, denoised, now
      kept = sde.sigma(stop) / sde.sigma(start) * jnp.exp(-h)
      gained = -jnp.expm1(-2 * h)
      x_mean = expand(kept, x) * x + expand(sde.alpha(stop) * gained, x) * middle
      noise = expand(sde.sigma(stop) * jnp.sqrt(gained), x) * normal(keys, x)
      return x_mean + noise, x_mean, denoised, now

    return step

  return {"make_step": make_step, "evaluations": len(grid.t), "memory": _one_before}


def _one_before(x: Array) -> tuple[Array, ...]:
  """D and lambda of the step before."""
  return jnp.zeros_like(x), jnp.zeros(x.shape[:1], x.dtype)


def _bh_weights(places: list[Array], h: Array) -> Array:
  """Weights (B, K) of UniPC's differences at `places` (B,), in units of h. Zhao et al. 2023, eq. (5)."""
  powers = jnp.stack([jnp.stack([r**j for r in places], axis=-1) for j in range(len(places))], axis=-2)
  b_h, phi, right = jnp.expm1(-h), jnp.expm1(-h) / -h - 1, []
  for j in range(len(places)):
    right.append(math.factorial(j + 1) * phi / b_h)
    phi = phi / -h - 1 / math.factorial(j + 2)
  return jnp.linalg.solve(powers, jnp.stack(right, axis=-1)[..., None])[..., 0]


def unipc(sde: LinearSDE, grid: TimeGrid):
  """UniPC-3: a multistep predictor of order 3, corrected with the very evaluation that the next step needs anyway.

  Zhao et al. 2023, Algorithms 5 and 6 with B(h) = exp(h) - 1. The first two steps have fewer points behind them: of
  order 1 and 2 before correction, 2 and 3 after, whose errors, made once, leave the whole at order 3.
  """

  def make_step(score: Score) -> Step:
    denoise = denoiser(sde, score)

    def step(keys, i, carry, t, start, stop):
      x, _, denoised, before, before2, lambda1, lambda2 = carry
      denoised = jax.lax.cond(i == 0, lambda: denoise(x, start), lambda: denoised)
      now = _half_log_snr(sde, start)
      h = _half_log_snr(sde, stop) - now
      base = _exact(sde, x, denoised, start, stop)
      scale = -sde.alpha(stop) * jnp.expm1(-h)
      # Past points in units of h (negative), and what D changed by, over that distance.
      behind = [((past - now) / h, d) for past, d in ((lambda1, before), (lambda2, before2))]

      def combine(count: int, ahead: Array | None) -> Array:
        places, changes = [r for r, _ in behind[:count]], [d - denoised for _, d in behind[:count]]
        if ahead is not None:
          places, changes = [*places, jnp.ones_like(h)], [*changes, ahead - denoised]
        if not places:
          return base
        weights = _bh_weights(places, h)
        parts = [expand(scale * weights[:, k] / r, x) * c for k, (r, c) in enumerate(zip(places, changes, strict=True))]
        return base + sum(parts)

      known = jnp.minimum(i, 2)
      guess = jax.lax.switch(known, [lambda k=k: combine(k, None) for k in range(3)])
      ahead = denoise(guess, stop)
      x = jax.lax.switch(known, [lambda k=k: combine(k, ahead) for k in range(3)])
      return x, x, ahead, denoised, before, now, lambda1

    return step

  memory = lambda x: (*(jnp.zeros_like(x) for _ in range(3)), *(jnp.zeros(x.shape[:1], x.dtype) for _ in range(2)))
  return {"make_step": make_step, "evaluations": len(grid.t) + 1, "memory": memory}


def heun(
  sde: LinearSDE,
  grid: TimeGrid,
  *,
  churn: float = 0.0,
  churn_min: float = 0.0,
  churn_max: float = math.inf,
  churn_noise: float = 1.0,
):
  """Heun's method for dy/ds = (y - D) / s with y = x / alpha, s = sigma / alpha; two evaluations a step.

  With `churn` noise is added first, up to s (1 + min(churn / N, sqrt(2) - 1)), where churn_min <= s <= churn_max, of
  standard deviation `churn_noise`. Karras et al. 2022, Algorithms 1 and 2.
  """
  gamma = min(churn / len(grid.t), math.sqrt(2) - 1)

  def make_step(score: Score) -> Step:
    denoise = denoiser(sde, score)

    def slope(y, s, t):
      return (y - denoise(expand(sde.alpha(t), y) * y, t)) / expand(s, y)

    def step(keys, i, carry, t, start, stop):
      x = carry[0]
      y = x / expand(sde.alpha(start), x)
      s, s_stop = (jnp.exp(-_half_log_snr(sde, time)) for time in (start, stop))
      if gamma:
        largest = jnp.exp(-_half_log_snr(sde, jnp.full_like(start, sde.T)))
        raised = jnp.where((s >= churn_min) & (s <= churn_max), jnp.minimum(s * (1 + gamma), largest), s)
        added = churn_noise * jnp.sqrt(jnp.maximum(raised**2 - s**2, 0.0))
        y, s = y + expand(added, y) * normal(keys, y), raised
        start = jnp.where(added > 0, sde.time_of_log_snr(-2 * jnp.log(raised)), start)
      first = slope(y, s, start)
      ds = expand(s_stop - s, y)
      second = slope(y + ds * first, s_stop, stop)
      x = expand(sde.alpha(stop), y) * (y + ds * (first + second) / 2)
      return x, x

    return step

  return {"make_step": make_step, "evaluations": 2 * len(grid.t)}


FEW_STEP = {
  "ddim": ddim,
  "dpm_solver": dpm_solver,
  "dpm_solver_sde": lambda sde, grid: dpm_solver(sde, grid, stochastic=True),
  "unipc": unipc,
  "heun": heun,
}


def few_step(
  sde: LinearSDE,
  grid: TimeGrid,
  method: str,
  *,
  denoise: bool = True,
  constrain: Callable[[Any], Constrain] | None = None,
  differentiated: bool = False,
  **options,
) -> Callable:
  """Builds `sample(score, key, shape, ...) -> (x, info)`, see `sampler`, by a `method` in FEW_STEP with its `options`.

  `constrain` makes of the batch's condition what acts on the state after every step (`guidance.constraints`); the
  score does not see the condition then. `differentiated` as for `loop`.

  Raises:
    ValueError: for an unknown method, an SDE that is not linear, or a grid whose steps do not chain.
  """
  if method not in FEW_STEP:
    raise ValueError(f"sampling.method={method!r} is unknown; choose one of {', '.join(FEW_STEP)}.")
  chained(method, sde, grid)
  settings = FEW_STEP[method](sde, grid, **options)
  settings["make_step"] = constrained_step(settings["make_step"], constrain)
  constrained = constrain is not None
  return loop(sde, grid, **settings, denoise=denoise, constrained=constrained, differentiated=differentiated)
