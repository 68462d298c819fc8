"""The probability-flow ODE, solved adaptively inside jit. Song et al. 2021, eq. (13) and Section 4.3."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde import parallel
from score_sde.batch import Array, example_keys, fold
from score_sde.sampling.loop import PRIOR
from score_sde.sde import SDE, LinearSDE, Reverse, Score, as_argument, bind, denoiser

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
) -> tuple[Any, Array, Array]:
  """Integrates dy/dt = field(t, y, args) from `start` to `stop` for one sample; vmap over a batch.

  Returns:
    y at `stop` (or stacked at `times`), the number of evaluations, and whether the solve ended within `max_steps`.
  """
  save = diffrax.SaveAt(t1=True) if times is None else diffrax.SaveAt(ts=jnp.asarray(times, jnp.float32))
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(field),
    SOLVERS[solver](),
    t0=start,
    t1=stop,
    dt0=(stop - start) * 1e-3,
    y0=y,
    args=args,
    saveat=save,
    stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
    max_steps=max_steps,
    adjoint=diffrax.ForwardMode(),
    throw=False,
  )
  y = solution.ys if times is not None else jax.tree.map(lambda a: a[0], solution.ys)
  return y, 1 + 6 * solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful


def ode_sampler(
  sde: SDE,
  *,
  eps: float,
  rtol: float = 1e-5,
  atol: float = 1e-5,
  solver: str = "dopri5",
  denoise: bool = True,
  max_steps: int = 4096,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """Builds `sample(score, key, shape, ...) -> (x, info)` along the probability-flow ODE from T to `eps`.

  Steps are chosen for every sample by itself, so that a sample does not depend on its batch; `rtol` and `atol` of 1e-5
  are the paper's. `denoise` ends on E[x_0 | x_eps] (Tweedie's formula), which takes one evaluation more.

  Returns:
    `sample` as that of `loop`; `info["nfe"]` is (B,), and `info["finite"]` is false for a sample that
    ran into `max_steps`.

  Raises:
    ValueError: for an unknown solver or an eps outside (0, T).
  """
  if solver not in SOLVERS:
    raise ValueError(f"sampling.solver={solver!r} is unknown; choose one of {', '.join(SOLVERS)}.")
  if not 0 < eps < sde.T:
    raise ValueError(f"sampling.eps must lie in (0, {sde.T}), so that time runs from noise to data; got {eps}.")

  def integrate(score: Score, batch: tuple[Array, Array, Any], times: np.ndarray | None):
    keys, like, condition = batch
    x = sde.prior_sample(fold(keys, PRIOR), like.shape, like.dtype)

    def field(t, x, condition):
      flow = Reverse(sde, bind(score, jax.tree.map(lambda c: c[None], condition)), probability_flow=True)
      return flow.drift(x[None], jnp.reshape(t, (1,)).astype(x.dtype))[0]

    options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps, "times": times}
    y, nfe, success = jax.vmap(lambda x, c: solve(field, x, c, sde.T, eps, **options))(x, condition)
    x = y if times is None else y[:, -1]
    if denoise and isinstance(sde, LinearSDE):
      t = jnp.full(x.shape[:1], eps, x.dtype)
      x, nfe = denoiser(sde, bind(score, condition))(x, t), nfe + 1
    finite = success & jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1)
    return x, nfe, finite, y

  compiled = {}

  def sample(
    score: Score,
    key: Array,
    shape: tuple[int, ...],
    *,
    first: int = 0,
    frames: int = 0,
    progress: Callable[[int, int], None] | None = None,
    condition: Any = None,
  ) -> tuple[Array, dict[str, Any]]:
    if frames not in compiled:
      times = np.linspace(sde.T, eps, frames + 1) if frames else None
      compiled[frames] = parallel.map_batch(lambda s, b: integrate(s, b, times), (None, 0))
    score = as_argument(score)
    keys = example_keys(key, first + jnp.arange(shape[0]))
    out = compiled[frames](score, parallel.shard((keys, jnp.zeros(shape, jnp.float32), condition)))
    x, nfe, finite, path = parallel.unshard(out, shape[0])
    if progress:
      progress(1, 1)
    info = {"nfe": nfe, "finite": finite}
    if frames:
      times = np.linspace(sde.T, eps, frames + 1)
      info["trajectory"] = [(t, np.asarray(path[:, i]), None) for i, t in enumerate(times)]
    return x, info

  return sample
