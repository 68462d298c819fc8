"""Adaptive solver of the probability-flow ODE, which runs inside jit. Song et al. 2021, eq. (13) and Section 4.3."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, sum_over_dims
from score_sde.options import Options, option
from score_sde.sampling.predictor_corrector import batch_mean
from score_sde.sampling.solver import all_finite
from score_sde.sde import SDE, Reverse, Score, bind, denoiser

# Both evaluate the field once at the start and six times per step, rejected steps included.
METHODS = {"dopri5": diffrax.Dopri5, "tsit5": diffrax.Tsit5}


def solve(
  field: Callable[[Any, Any, Any], Any],
  y: Any,
  args: Any,
  start: float,
  stop: float,
  *,
  rtol: float,
  atol: float,
  solver: str = "dopri5",
  max_steps: int = 4096,
  times: Sequence[float] | None = None,
  norm: Callable[[Any], Array] | None = None,
  adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[Any, Array, Array]:
  """Integrates dy/dt = field(t, y, args) from `start` to `stop` for one sample. Use vmap for a batch.

  `norm` measures the error of a step, by default as its root mean square. The default `adjoint` supports forward
  derivatives. diffrax.RecursiveCheckpointAdjoint() supports backward derivatives.

  Returns:
    y at `stop` (or y stacked at `times`), the number of evaluations, and the time reached: `stop`, or the time after
    `max_steps`.
  """
  subs = [diffrax.SubSaveAt(t1=True)]
  if times is not None:
    subs.append(diffrax.SubSaveAt(ts=jnp.asarray(times, jnp.result_type(*jax.tree.leaves(y)))))
  if norm is None:
    controller = diffrax.PIDController(rtol=rtol, atol=atol)
  else:
    controller = diffrax.PIDController(rtol=rtol, atol=atol, norm=norm)
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(field),
    METHODS[solver](),
    t0=start,
    t1=stop,
    dt0=(stop - start) * 1e-3,
    y0=y,
    args=args,
    saveat=diffrax.SaveAt(subs=subs),
    stepsize_controller=controller,
    max_steps=max_steps,
    adjoint=adjoint or diffrax.ForwardMode(),
    throw=False,
  )
  ys, ts = solution.ys, solution.ts
  assert ys is not None
  assert ts is not None
  y = ys[1] if times is not None else jax.tree.map(lambda a: a[0], ys[0])
  return y, 1 + 6 * solution.stats["num_steps"], ts[0][0]


@dataclasses.dataclass(frozen=True)
class AdaptiveODE(Options):
  """Solver of the probability-flow ODE by a Runge-Kutta method of order 5 with adaptive steps.

  Song et al. 2021, Section 4.3. Works under every SDE. Under a linear SDE, `noise_removal` ends on E[x_0 | x_eps]
  (Tweedie's formula), with one more evaluation. By default each sample has its own steps and does not depend on its
  batch. With norms="batch" all samples share steps, chosen by the error over the whole batch, as in the paper. `sample`
  can be differentiated through this solver.

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.AdaptiveODE(rtol=1e-3, atol=1e-3)
    >>> x, info = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=solver, return_info=True)
    >>> x.shape, info["nfe"].shape
    ((4, 2), (4,))
  """

  rtol: float = option(1e-5, "relative tolerance of the ODE", "(0, inf)")
  atol: float = option(1e-5, "absolute tolerance of the ODE", "(0, inf)")
  solver: str = option("dopri5", "Runge-Kutta method", choices=tuple(METHODS))
  norms: str = option("sample", "error of a step: of each sample, or of the batch", choices=("sample", "batch"))
  temperature: float = option(1.0, "scale of the noise that the ODE starts from (Appendix D.5)", "(0, inf)")
  noise_removal: bool = option(True, "end on E[x_0 | x_eps], one evaluation")
  max_steps: int = option(4096, "steps of an adaptive solve, after which it fails", "[1, inf)")
  # For norms="batch". axis_name: mapped axis (for example of pmap) over which the batch is spread. real: (B,) False for
  # copies that only fill up a spread batch; None if there are none.
  axis_name: str | None = None
  real: Array | None = None

  default_steps: ClassVar[int] = 0  # unused: the steps are adaptive

  def move(
    self,
    sde: SDE,
    score: Score,
    x: Batch,
    start: float,
    stop: float,
    *,
    condition: Any = None,
    times: Sequence[float] | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
  ) -> tuple[Array, Array, Array]:
    """Solves from x (B, ...) at time `start` to `stop`, forwards or backwards in time. Returns (y, nfe, t).

    y is like x, or with `times` (K,) the path (B, K, ...). nfe and t, the time reached, are (B,). With a `condition`, a
    pytree of (B, ...) arrays, the score is score(x, t, condition).
    """
    options = {"rtol": self.rtol, "atol": self.atol, "solver": self.solver, "max_steps": self.max_steps}
    options |= {"times": times, "adjoint": adjoint}

    def drift(t: Array, x: Array, condition: Any) -> Array:
      reverse = Reverse(sde, bind(score, condition), probability_flow=True)
      return reverse.drift(x, jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype))

    if self.norms == "batch":
      size = math.prod(x.shape[1:])
      norm = lambda error: jnp.sqrt(batch_mean(sum_over_dims(error**2) / size, self.axis_name, self.real))
      y, nfe, t = solve(drift, x, condition, start, stop, norm=norm, **options)
      y = y if times is None else jnp.moveaxis(y, 0, 1)
      return y, jnp.broadcast_to(nfe, x.shape[:1]), jnp.broadcast_to(t, x.shape[:1])

    alone = lambda tree: jax.tree.map(lambda a: a[None], tree)
    field = lambda t, x, condition: drift(t, x[None], alone(condition))[0]
    return jax.vmap(lambda x, c: solve(field, x, c, start, stop, **options))(x, condition)

  def solve(
    self,
    sde: SDE,
    score: Score,
    keys: Array,
    x: Array,
    *,
    start: float,
    eps: float,
    condition: Any = None,
    times: Sequence[float] | None = None,
  ) -> tuple[Array, dict[str, Array]]:
    """Solves from noise `x` at time `start` to `eps`. Returns samples and {"nfe", "finite", "t"}, each (B,).

    "finite" is also false for a sample that ran out of steps. "t" is the time that the sample reached. With `times`
    (K,) the dictionary also has "path", (B, K, ...). `keys` are unused.
    """
    adjoint = diffrax.RecursiveCheckpointAdjoint()
    options = {"condition": condition, "times": times, "adjoint": adjoint}
    path, nfe, t = self.move(sde, score, self.temperature * x, start, eps, **options)
    x = path if times is None else path[:, -1]
    if self.noise_removal and sde.is_linear:
      x, nfe = denoiser(sde, bind(score, condition))(x, jnp.full(x.shape[:1], eps, x.dtype)), nfe + 1
    info = {"nfe": nfe, "finite": (t <= jnp.asarray(eps, t.dtype)) & all_finite(x), "t": t}
    return x, info if times is None else info | {"path": path}
