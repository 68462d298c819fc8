"""Time grids: the times at which a solver evaluates the score, and the start and end of each step."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import InvalidArgument, unknown
from score_sde.sde import SDE, LinearSDE, check_kernel, linear


@dataclasses.dataclass(frozen=True, eq=False)
class TimeGrid:
  """Times of N steps from noise to data. Step i evaluates the score at t[i] and goes from start[i] to stop[i].

  The steps chain if t equals `start` and each step begins where the previous one ended.

  Attributes:
    t, start, stop: arrays (N,), float64.
    official: True for the grid of the published samplers, which discretize the SDE by tables.
    begin: the time at which sampling starts. It is also defined if N is 0.

  Example:
    >>> TimeGrid.through([1.0, 0.5, 0.1]).stop.tolist()
    [0.5, 0.1]
  """

  t: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  official: bool = False
  begin: float = 1.0

  def __post_init__(self) -> None:
    if not len(self.t) == len(self.start) == len(self.stop) or not (_as_used(self.start) > _as_used(self.stop)).all():
      raise InvalidArgument(
        f"start={np.asarray(self.start).tolist()} and stop={np.asarray(self.stop).tolist()} must be as long as t, and "
        "each step must go from a later time to an earlier one.", "start", "stop",
      )  # fmt: skip

  @classmethod
  def through(cls, times: Sequence[float] | np.ndarray) -> "TimeGrid":
    """Returns the grid whose steps go from each of the decreasing `times` (N + 1,) to the next.

    Raises:
      InvalidArgument: for times that are negative or do not decrease.
    """
    times = np.asarray(times, np.float64)
    used = _as_used(times)
    if used.ndim != 1 or not len(used) or not (np.diff(used) < 0).all() or used[-1] < 0:
      raise InvalidArgument(
        f"times={times.tolist()} must decrease from noise to data and must not be negative.", "times"
      )
    return cls(times[:-1], times[:-1], times[1:], begin=float(times[0]))

  def __len__(self) -> int:
    return len(self.t)

  @property
  def end(self) -> float:
    """Returns the time at which the last step ends."""
    return float(self.stop[-1]) if len(self) else self.begin

  @property
  def rows(self) -> np.ndarray:
    """Returns t, start and stop of each step, (N, 3)."""
    return np.stack([self.t, self.start, self.stop], axis=1)

  def need_chain(self, name: str) -> None:
    """Raises InvalidArgument, with the solver's `name`, unless each step begins where the previous one ended."""
    if (self.start[1:] != self.stop[:-1]).any() or (self.t != self.start).any():
      raise InvalidArgument(
        f"{name} needs steps that chain, and those of grid='official' do not: use 'log_snr'.", "grid"
      )


def _as_used(times: np.ndarray) -> np.ndarray:
  """Returns times in the dtype in which they are used: float32, unless x64 is enabled."""
  return np.asarray(times).astype(jax.dtypes.canonicalize_dtype(np.float64))


def uniform(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """Returns n + 1 times from `start` to `eps`, equally spaced."""
  return np.linspace(start, eps, n + 1)


def log_snr(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """Returns n + 1 times from `start` to `eps`, equally spaced in log-SNR. Lu et al. 2022."""
  sde = linear(sde, "grid='log_snr'")
  first, last = (float(sde.log_snr(jnp.asarray(t))) for t in (start, eps))
  return _between(sde, jnp.linspace(first, last, n + 1), start, eps)


def karras(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """Returns n + 1 times from `start` to `eps`, equally spaced in (sigma / alpha)^(1/7). Karras et al. 2022, eq. (5)."""
  sde = linear(sde, "grid='karras'")
  first, last = (float(jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2)) for t in (start, eps))
  ratio = np.linspace(first ** (1 / 7), last ** (1 / 7), n + 1) ** 7
  return _between(sde, jnp.asarray(-2 * np.log(ratio)), start, eps)


def _between(sde: LinearSDE, log_snrs: jax.Array, start: float, eps: float) -> np.ndarray:
  """Returns the times of `log_snrs` (n + 1,), with the first and last set exactly to `start` and `eps`."""
  times = np.array(sde.time_of_log_snr(log_snrs), np.float64)
  times[0] = start
  if len(times) > 1:
    times[-1] = eps
  return times


def quadratic(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """Returns n + 1 times from `start` to `eps`, equally spaced in sqrt(t). Song et al. 2021 (DDIM), Appendix D.2."""
  return np.linspace(start**0.5, eps**0.5, n + 1) ** 2


# name: (sde, n, eps, start) -> the n + 1 times of n steps that chain.
CHAINED = {"uniform": uniform, "log_snr": log_snr, "karras": karras, "quadratic": quadratic}

GRIDS = ("official", *CHAINED)


def official(sde: SDE, n: int, eps: float, tabulated: bool = True) -> TimeGrid:
  """Returns the grid of the published samplers, t = linspace(T, eps, N). Its steps do not chain.

  Euler-Maruyama (`tabulated=False`) steps by T / N from t. The other predictors read entry floor(t (N - 1)) of a table
  of N entries. VP and sub-VP step by T / N from the time of that entry. VE steps from the sigma of that entry to the
  next smaller one, and from the smallest sigma to zero.
  """
  if not n:  # only the start
    return TimeGrid.through([sde.T])
  t = np.linspace(sde.T, eps, n)
  if not tabulated or n == 1:
    return TimeGrid(t, t, t - sde.T / n, True, sde.T)
  index = np.floor(t * (n - 1) / sde.T + 1e-6).astype(int)
  return TimeGrid(t, *sde.table_steps(index, n), True, sde.T)


def make_grid(
  name: str, sde: SDE, n: int, eps: float, *, tabulated: bool = True, t_start: float | None = None
) -> TimeGrid:
  """Returns the grid `name` of `n` steps from `t_start` (by default sde.T) to `eps`.

  Args:
    name: "official", "uniform", "log_snr", "karras" or "quadratic".
    sde: the forward SDE.
    n: number of steps; 0 for a solver that only denoises.
    eps: the time at which the steps end, in (0, t_start).
    tabulated: for the official grid: True if the solver reads the table.
    t_start: the time at which the steps begin, in (0, T].

  Raises:
    InvalidArgument: for an unknown name, a negative number of steps, times outside [0, T], a grid whose times do not
      decrease in float32, or an SDE that is not defined at these times, see `check_kernel`.

  Example:
    >>> import score_sde as ss
    >>> make_grid("uniform", ss.VP(), 4, 0.2).stop.round(6).tolist()
    [0.8, 0.6, 0.4, 0.2]
  """
  if name not in GRIDS:
    raise unknown("grid", name, GRIDS)
  if n < 0:
    raise InvalidArgument(f"steps={n} must not be negative.", "steps")
  start = sde.T if t_start is None else t_start
  if not 0 < start <= sde.T:
    raise InvalidArgument(f"t_start={start} must lie in (0, {sde.T}].", "t_start")
  if not 0 < eps < start:
    raise InvalidArgument(f"eps={eps} must lie in (0, {start}), so that time runs from noise to data.", "eps")
  check_kernel(sde, [start, eps])
  if name == "official":
    if start != sde.T:
      raise InvalidArgument(
        f"grid='official' starts at {sde.T}, not at t_start={start}: use 'uniform'.", "grid", "t_start"
      )
    return official(sde, n, eps, tabulated)
  with jax.ensure_compile_time_eval():  # gives numbers, not tracers, also inside a compiled function
    return TimeGrid.through(CHAINED[name](sde, n, eps, start))
