"""The probability-flow ODE, solved adaptively inside jit. Song et al. 2021, eq. (13) and Section 4.3."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, sum_over_dims
from score_sde.run import devices
from score_sde.sampling.sampler import Sampler, all_finite, sampler
from score_sde.sde import SDE, LinearSDE, Reverse, Score, bind, denoiser

# Both evaluate the field once at the start and six times a step, rejected steps included.
SOLVERS = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}


def solve(
  field: Callable[[Array, Any, Any], Any],
  y: Any,
  args: Any,
  start: float,
  stop: float,
  *,
  rtol: float,
  atol: float,
  solver: str = "dopri5",
  max_steps: int = 4096,
  times: np.ndarray | None = None,
  norm: Callable[[Any], Array] | None = None,
) -> tuple[Any, Array, Array]:
  """Integrates dy/dt = field(t, y, args) from `start` to `stop` for one sample; vmap over a batch.

  Returns:
    y at `stop` (or stacked at `times`), the number of evaluations, and the time reached: `stop`, or where it stood
    after `max_steps`. `norm` measures the error of a step, by default its root mean square.
  """
  subs = [diffrax.SubSaveAt(t1=True)]
  if times is not None:
    subs.append(diffrax.SubSaveAt(ts=jnp.asarray(times, jnp.float32)))
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(field),
    SOLVERS[solver](),
    t0=start,
    t1=stop,
    dt0=(stop - start) * 1e-3,
    y0=y,
    args=args,
    saveat=diffrax.SaveAt(subs=subs),
    stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, **({"norm": norm} if norm else {})),
    max_steps=max_steps,
    adjoint=diffrax.ForwardMode(),
    throw=False,
  )
  y = solution.ys[1] if times is not None else jax.tree.map(lambda a: a[0], solution.ys[0])
  return y, 1 + 6 * solution.stats["num_steps"], solution.ts[0][0]


def flow(
  sde: SDE,
  *,
  start: float,
  stop: float,
  rtol: float = 1e-5,
  atol: float = 1e-5,
  solver: str = "dopri5",
  max_steps: int = 4096,
  batch_norm: bool = False,
  times: np.ndarray | None = None,
) -> Callable[[Score, Array, Any], tuple[Array, Array, Array]]:
  """Builds `move(score, x, condition) -> (y, nfe, t)`, for use inside `devices.map_batch`.

  The probability-flow ODE from x (B, ...) at `start` to y at `stop`, or to y (B, len(times), ...); nfe and the time
  reached are (B,). Steps are chosen for every sample by itself, so that a sample does not depend on its batch, or
  with `batch_norm` for all together by the error over the whole batch, as the paper does.

  Raises:
    ValueError: for an unknown solver.
  """
  if solver not in SOLVERS:
    raise ValueError(f"sampling.solver={solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
  options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps, "times": times}

  def drift(score: Score, t: Array, x: Array, condition: Any) -> Array:
    reverse = Reverse(sde, bind(score, condition), probability_flow=True)
    return reverse.drift(x, jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype))

  def together(score: Score, x: Array, condition: Any) -> tuple[Array, Array, Array]:
    field = lambda t, x, condition: drift(score, t, x, condition)
    norm = lambda error: jnp.sqrt(devices.batch_mean(sum_over_dims(error**2) / error[0].size))
    y, nfe, t = solve(field, x, condition, start, stop, norm=norm, **options)
    y = y if times is None else jnp.moveaxis(y, 0, 1)
    return y, jnp.broadcast_to(nfe, x.shape[:1]), jnp.broadcast_to(t, x.shape[:1])

  def apart(score: Score, x: Array, condition: Any) -> tuple[Array, Array, Array]:
    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    field = lambda t, x, condition: drift(score, t, x[None], alone(condition))[0]
    return jax.vmap(lambda x, c: solve(field, x, c, start, stop, **options))(x, condition)

  return together if batch_norm else apart


def ode_sampler(
  sde: SDE,
  *,
  eps: float,
  rtol: float = 1e-5,
  atol: float = 1e-5,
  solver: str = "dopri5",
  denoise: bool = True,
  max_steps: int = 4096,
  batch_norm: bool = False,
  temperature: float = 1.0,
  start: float | None = None,
) -> Sampler:
  """Builds `sample(score, key, shape, ...) -> (x, info)` along the probability-flow ODE to `eps`, see `flow`.

  It runs from time `start`, by default T.

  `rtol` and `atol` of 1e-5 are the paper's. `denoise` ends on E[x_0 | x_eps] (Tweedie's formula), which takes one
  evaluation more; `temperature` scales the noise that the flow starts from (Song et al. 2021, Appendix D.5).

  Returns:
    `sample` as that of `sampler`; `info["nfe"]` is (B,), `info["t"]` (B,) is the time reached, and `info["finite"]` is
    false for a sample that ran into `max_steps`.

  Raises:
    ValueError: for an unknown solver or an eps outside (0, T).
  """
  start = sde.T if start is None else start
  if not 0 < eps < start <= sde.T:
    raise ValueError(f"sampling.eps must lie in (0, {start}), so that time runs from noise to data; got {eps}.")
  options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps, "batch_norm": batch_norm}
  flow(sde, start=start, stop=eps, **options)

  def integrate(score: Score, batch: tuple[Array, Any], x: Array, times: np.ndarray | None):
    condition = batch[1]
    path, nfe, t = flow(sde, start=start, stop=eps, times=times, **options)(score, temperature * x, condition)
    x = path if times is None else path[:, -1]
    if denoise and isinstance(sde, LinearSDE):
      x, nfe = denoiser(sde, bind(score, condition))(x, jnp.full(x.shape[:1], eps, x.dtype)), nfe + 1
    return x, nfe, (t <= jnp.asarray(eps, t.dtype)) & all_finite(x), t, path

  compiled = {}

  def run(score, batch, x, unshard, frames, progress):
    times = np.linspace(start, eps, frames + 1) if frames else None
    if frames not in compiled:
      compiled[frames] = devices.map_batch(lambda s, b, x: integrate(s, b, x, times), (None, 0, 0))
    x, nfe, finite, t, path = unshard(compiled[frames](score, batch, x))
    if progress:
      progress(1, 1)
    info = {"nfe": nfe, "finite": finite, "t": t}
    if frames:
      info["trajectory"] = [(t, np.asarray(path[:, i]), None) for i, t in enumerate(times)]
    return x, info

  return sampler(sde, run)
