"""`sample`, the pure function that draws samples with any solver, and the checks of its arguments."""

import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import PRIOR, STEPS, Array, Batch, Keys, as_key, example_keys, fold
from score_sde.errors import InvalidArgument
from score_sde.sampling.adaptive import AdaptiveSDE
from score_sde.sampling.grids import TimeGrid, make_grid
from score_sde.sampling.ode import AdaptiveODE
from score_sde.sampling.predictor_corrector import PredictorCorrector
from score_sde.sampling.solver import Solver, all_finite
from score_sde.sde import SDE, VE, Score, bind, check_kernel, linear

AnySolver = Solver | AdaptiveODE | AdaptiveSDE


def papers_solver(sde: SDE) -> PredictorCorrector:
  """Returns the predictor-corrector sampler of Song et al. 2021 (Appendix G) for the type of `sde`."""
  if isinstance(sde, VE):
    return PredictorCorrector(predictor="reverse_diffusion", corrector="langevin")
  return PredictorCorrector(predictor="euler_maruyama", corrector="none")


def sample(
  key: Array,
  sde: SDE,
  score: Callable[..., Array],
  shape: tuple[int, ...],
  *,
  solver: AnySolver | None = None,
  steps: int | None = None,
  grid: str | TimeGrid | None = None,
  eps: float | None = None,
  t_start: float | None = None,
  x_T: Array | None = None,
  condition: Any = None,
  first: int | Array = 0,
  dtype: Any = jnp.float32,
  return_info: bool = False,
) -> Any:
  """Draws samples: solves the reverse-time SDE or the probability-flow ODE of `score` from noise at time T to data.

  A pure function: it works under jit, vmap (over keys and conditions), grad, pmap and shard_map. grad can be with
  respect to parameters of the score, the condition and x_T, but not through AdaptiveSDE, a loop of unknown length. Each
  step is rematerialized, so that memory grows with the size of x and not with the activations of a network. Outside of
  jit each call traces again.

  Args:
    key: one random key. Sample i draws from fold_in(key, first + i), so that it does not depend on its batch.
    sde: the forward SDE.
    score: grad log p_t(x), any function (x (B, ...), t (B,)) -> like x. With a `condition` it takes (x, t, condition).
    shape: (B, ...).
    solver: the solver; by default the papers' predictor-corrector sampler.
    steps: number of steps, by default the solver's own. Adaptive solvers ignore it, and take no `grid`.
    grid: name of the time grid (see `make_grid`), by default the solver's own; or a `TimeGrid`, which replaces `steps`,
      `eps` and `t_start`.
    eps: the time at which sampling ends, in (0, t_start); by default sde.eps (VE 1e-5, others 1e-3).
    t_start: the time at which sampling starts, in (0, T]; by default T.
    x_T: the state at which sampling starts, of `shape`; by default drawn from the SDE's prior, or for a start below T
      normal noise with the standard deviation sigma of that time.
    condition: a pytree of (B, ...) arrays, passed to the score.
    first: the index of the first sample.
    dtype: dtype of the samples; float64 needs jax_enable_x64.
    return_info: True returns (samples, info).

  Returns:
    Samples of `shape`. With `return_info` also {"nfe": evaluations of the score per sample, "finite": (B,) True for a
    finite sample, and for adaptive solvers "t": (B,) the time that each sample reached}.

  Raises:
    InvalidArgument: for invalid arguments, before anything is compiled.

  Example:
    >>> import jax, score_sde as ss
    >>> x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (16, 2), solver=ss.UniPC(), steps=20)
    >>> x.shape
    (16, 2)
  """
  key, dtype = as_key(key), _as_dtype(dtype)
  check_shape(shape)
  check_parts(sde, solver)
  if solver is None:
    solver = papers_solver(sde)
  eps, start = sde.eps if eps is None else eps, sde.T if t_start is None else t_start
  if eps > 0 and start > 0:
    check_kernel(sde, [start, eps], dtype)
  keys = example_keys(key, first + jnp.arange(shape[0]))
  x = start_from(sde, keys, shape, x_T, dtype)
  begin = grid.begin if isinstance(grid, TimeGrid) and isinstance(solver, Solver) else start
  if x_T is None:
    x = noise_of(sde, x, begin)
  check_condition(condition, shape[0])
  check_score(score, x, condition)
  if isinstance(solver, AdaptiveODE | AdaptiveSDE):
    if grid is not None:
      raise InvalidArgument(
        f"grid={grid if isinstance(grid, str) else type(grid).__name__}: {type(solver).__name__} chooses its own "
        "steps. Leave it unset; `t_start` and `eps` are the times at which it begins and ends.", "grid",
      )  # fmt: skip
    check_times(sde, eps, start)
    x, info = solver.solve(sde, score, keys, x, start=start, eps=eps, condition=condition)
    return (x, info) if return_info else x
  grid = grid_for(solver, sde, steps, grid, eps, t_start)
  solver = solver.on(sde, grid)
  x = scan(solver, sde, bind(score, condition), keys, x, grid)
  info = {"nfe": solver.evaluations(len(grid)), "finite": all_finite(x)}
  return (x, info) if return_info else x


def scan(solver: Solver, sde: SDE, score: Score, keys: Keys, x: Batch, grid: TimeGrid) -> Batch:
  """Runs all steps of `grid` from noise `x` (B, ...), with keys (B,), one per example. Returns samples like `x`."""
  per_example = lambda time: jnp.full(x.shape[:1], time, x.dtype)

  @jax.checkpoint
  def body(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, None]:
    i, times = inputs
    step_keys = fold(fold(keys, STEPS), i)
    return solver.step(sde, score, step_keys, state, *(per_example(times[j]) for j in range(3))), None

  state = solver.init(sde, x, per_example(grid.begin))
  if len(grid):
    state, _ = jax.lax.scan(body, state, (jnp.arange(len(grid)), jnp.asarray(grid.rows, x.dtype)))
  return solver.finish(sde, score, state, per_example(grid.end))


def grid_for(
  solver: Solver, sde: SDE, steps: int | None, grid: str | TimeGrid | None, eps: float, t_start: float | None = None
) -> TimeGrid:
  """Returns the grid for `steps` steps of `solver`, see `sample`. Raises InvalidArgument for invalid arguments."""
  if isinstance(grid, TimeGrid):
    if not 0 <= grid.end <= grid.begin <= sde.T + 1e-12:
      raise InvalidArgument(
        f"grid={grid.begin} to {grid.end} must run from noise to data, within [0, T] = [0, {sde.T}].", "grid"
      )
    return solver.schedule(sde, grid)
  if steps is None:
    steps = getattr(solver, "num_scales", None) if solver.default_grid == "official" else solver.default_steps
  if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
    raise InvalidArgument(f"steps={steps!r} must be an integer, at least 1.", "steps")
  tabulated = getattr(solver, "predictor", "") != "euler_maruyama"
  intervals = solver.intervals(int(steps))
  found = make_grid(grid or solver.default_grid, sde, intervals, eps, tabulated=tabulated, t_start=t_start)
  return solver.schedule(sde, found)


# --- checks of arguments, before anything is compiled -----------------------------------------------------------------


def start_from(sde: SDE, keys: Keys, shape: tuple[int, ...], x_T: Array | None, dtype: Any) -> Batch:
  """Returns the start of the samples: `x_T`, or draws from the prior. Raises InvalidArgument if there is neither."""
  if x_T is None:
    if not sde.has_prior:
      raise InvalidArgument(
        f"x_T=None, but {type(sde).__name__} has no closed-form prior: give x_T, end points of paths that `simulate` "
        "draws from data.", "x_T",
      )  # fmt: skip
    return sde.prior_sample(fold(keys, PRIOR), shape, dtype)
  if jnp.shape(x_T) != tuple(shape):
    raise InvalidArgument(f"x_T={_named(x_T)} must have the samples' shape {tuple(shape)}.", "x_T")
  return jnp.asarray(x_T, dtype)


def noise_of(sde: SDE, x: Batch, begin: float) -> Batch:
  """Returns noise `x` of the prior as noise of time `begin`: with the standard deviation sigma(begin)."""
  if begin >= sde.T:
    return x
  its = linear(sde, f"A start at t={begin} without x_T")
  return (its.sigma(jnp.asarray(begin, x.dtype)) / its.prior_std).astype(x.dtype) * x


def check_shape(shape: Any) -> None:
  """Raises InvalidArgument unless `shape` is a tuple of positive integers. The first is the batch size."""
  integers = isinstance(shape, tuple) and all(
    isinstance(n, numbers.Integral) and not isinstance(n, bool) and int(n) > 0 for n in shape
  )
  if not integers or not shape:
    raise InvalidArgument(f"shape={shape!r} must be a tuple of positive integers (B, ...), such as (16, 2).", "shape")


def check_parts(sde: Any, solver: Any = None) -> None:
  """Raises InvalidArgument unless `sde` is an SDE, and `solver` a solver or None. Classes and names are neither."""
  if not isinstance(sde, SDE):
    raise InvalidArgument(f"sde={sde!r} must be an SDE, such as ss.VP().", "sde")
  if solver is not None and (isinstance(solver, type) or not (hasattr(solver, "step") or hasattr(solver, "solve"))):
    raise InvalidArgument(f"solver={solver!r} must be a solver, such as ss.UniPC().", "solver")


def check_times(sde: SDE, eps: float, start: float) -> None:
  """Raises InvalidArgument unless 0 < eps < start <= T, and unless the SDE is defined there, see `check_kernel`."""
  if not 0 < start <= sde.T:
    raise InvalidArgument(f"t_start={start} must lie in (0, {sde.T}].", "t_start")
  if not 0 < eps < start:
    raise InvalidArgument(f"eps={eps} must lie in (0, {start}), so that time runs from noise to data.", "eps")
  check_kernel(sde, [start, eps])


def check_condition(condition: Any, batch: int) -> None:
  """Raises InvalidArgument unless every array of `condition` has `batch` entries."""
  for leaf in jax.tree.leaves(condition):
    if not jnp.ndim(leaf) or jnp.shape(leaf)[0] != batch:
      raise InvalidArgument(
        f"condition={_named(leaf)} must have one entry per sample, {batch} along its first axis.", "condition"
      )


def check_score(score: Any, x: Array, condition: Any = None) -> None:
  """Raises InvalidArgument unless the score takes (x, t[, condition]) and returns an array like `x`."""
  arguments = "(x, t)" if condition is None else "(x, t, condition)"
  if not callable(score):
    raise InvalidArgument(f"score={score!r} must be a function of {arguments}.", "score")
  given = (x, jnp.zeros(x.shape[:1], x.dtype), *(() if condition is None else (condition,)))
  try:
    out = jax.eval_shape(score, *given)
  except TypeError as error:
    if "argument" not in str(error):
      raise
    raise InvalidArgument(
      f"score={getattr(score, '__name__', type(score).__name__)} must take {arguments}: {error}.", "score"
    ) from error
  shape, kind = getattr(out, "shape", None), getattr(out, "dtype", None)
  if shape != x.shape or kind != x.dtype:
    got = type(out).__name__ if shape is None else f"{kind}{list(shape)}"
    raise InvalidArgument(
      f"score={getattr(score, '__name__', type(score).__name__)} returns {got} for x of {x.dtype}{list(x.shape)}; it "
      "must return an array of the same shape and dtype.", "score",
    )  # fmt: skip


def _as_dtype(dtype: Any) -> jnp.dtype:
  wanted = jnp.dtype(dtype)
  if wanted not in (jnp.float32, jnp.float64):  # times need as many digits
    raise InvalidArgument(f"dtype={wanted} must be float32 or float64. (A network may compute in bfloat16.)", "dtype")
  if wanted == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
    raise InvalidArgument("dtype=float64 needs jax.config.update('jax_enable_x64', True).", "dtype")
  return wanted


def _named(value: Any) -> str:
  return f"{getattr(value, 'dtype', type(value).__name__)}{list(jnp.shape(value))}"
