"""Time grids: where a solver evaluates the score, and from where to where each of its steps goes."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import InvalidArgument, unknown
from score_sde.sde import SDE, LinearSDE, linear


@dataclasses.dataclass(frozen=True, eq=False)
class TimeGrid:
  """The times of N steps, from noise to data: step i evaluates the score at t[i] and goes from start[i] to stop[i].

  Attributes:
    t, start, stop: arrays (N,), float64. In a grid that chains, t is `start` and each step begins where the one before
      ended.
    official: whether this is the grid of the published samplers, which discretize the SDE by tables.
    begin: the time at which sampling starts, also where N is 0.

  Example:
    >>> TimeGrid.through([1.0, 0.5, 0.1]).stop.tolist()
    [0.5, 0.1]
  """

  t: np.ndarray
  start: np.ndarray
  stop: np.ndarray
  official: bool = False
  begin: float = 1.0

  @classmethod
  def through(cls, times: Sequence[float] | np.ndarray) -> "TimeGrid":
    """Returns the grid whose steps lead from each of the decreasing `times` (N + 1,) to the next."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or not len(times) or (np.diff(times) >= 0).any() or times[-1] < 0:
      raise InvalidArgument(
        f"times={times.tolist()} must decrease from noise to data, and end at 0 or before.", "times"
      )
    return cls(times[:-1], times[:-1], times[1:], begin=float(times[0]))

  def __len__(self) -> int:
    return len(self.t)

  @property
  def end(self) -> float:
    """The time at which the last step ends."""
    return float(self.stop[-1]) if len(self) else self.begin

  @property
  def rows(self) -> np.ndarray:
    """(N, 3): t, start and stop of each step."""
    return np.stack([self.t, self.start, self.stop], axis=1)

  def need_chain(self, name: str) -> None:
    """Raises InvalidArgument, for the solver `name`, unless each step begins where the one before ended."""
    if (self.start[1:] != self.stop[:-1]).any() or (self.t != self.start).any():
      raise InvalidArgument(
        f"{name} needs steps that chain, which those of grid='official' do not: use 'log_snr'.", "grid"
      )


def uniform(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """N steps of equal length from `start` to eps."""
  return np.linspace(start, eps, n + 1)


def log_snr(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """N steps, equal in log-SNR, from `start` to eps. Lu et al. 2022."""
  sde = linear(sde, "grid='log_snr'")
  first, last = (float(sde.log_snr(jnp.asarray(t))) for t in (start, eps))
  return _between(sde, jnp.linspace(first, last, n + 1), start, eps)


def karras(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """N steps, equal in (sigma / alpha)^(1 / 7), from `start` to eps. Karras et al. 2022, eq. (5)."""
  sde = linear(sde, "grid='karras'")
  first, last = (float(jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2)) for t in (start, eps))
  ratio = np.linspace(first ** (1 / 7), last ** (1 / 7), n + 1) ** 7
  return _between(sde, jnp.asarray(-2 * np.log(ratio)), start, eps)


def _between(sde: LinearSDE, log_snrs: jax.Array, start: float, eps: float) -> np.ndarray:
  """The times of `log_snrs`, with the ends exact."""
  times = np.array(sde.time_of_log_snr(log_snrs), np.float64)
  times[0] = start
  if len(times) > 1:
    times[-1] = eps
  return times


def quadratic(sde: SDE, n: int, eps: float, start: float) -> np.ndarray:
  """N steps, equal in sqrt(t), from `start` to eps. Song et al. 2021 (DDIM), Appendix D.2."""
  return np.linspace(start**0.5, eps**0.5, n + 1) ** 2


# name: the N + 1 times that N steps lead through.
CHAINED = {"uniform": uniform, "log_snr": log_snr, "karras": karras, "quadratic": quadratic}

GRIDS = ("official", *CHAINED)


def official(sde: SDE, n: int, eps: float, tabulated: bool = True) -> TimeGrid:
  """Returns the grid of the published samplers: t = linspace(T, eps, N), whose steps do not chain.

  Euler-Maruyama (`tabulated=False`) steps by T / N from t. The others read a table of N entries at floor(t (N - 1)): VP
  and sub-VP step by T / N from that entry's time, VE goes from its sigma to the next smaller one, and to zero below the
  first.
  """
  t = np.linspace(sde.T, eps, n)
  if not tabulated or n == 1:
    return TimeGrid(t, t, t - sde.T / n, True, sde.T)
  index = np.floor(t * (n - 1) / sde.T + 1e-6).astype(int)
  return TimeGrid(t, *sde.table_steps(index, n), True, sde.T)


def make_grid(
  name: str, sde: SDE, n: int, eps: float, *, tabulated: bool = True, t_start: float | None = None
) -> TimeGrid:
  """Returns the grid `name` of `n` steps from `t_start`, by default sde.T, to `eps`.

  Args:
    name: "official", "uniform", "log_snr", "karras" or "quadratic".
    sde: the forward SDE.
    n: number of steps; 0 for a solver that only denoises.
    eps: the time at which the steps end, in (0, t_start).
    tabulated: of the official grid: whether the solver reads its table.
    t_start: the time at which the steps begin, in (0, T].

  Raises:
    InvalidArgument: for an unknown name, a negative number of steps, times outside [0, T], or a grid whose times do not
      decrease in float32.

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
  if name == "official":
    if start != sde.T:
      raise InvalidArgument(
        f"grid='official' starts at {sde.T}, not at t_start={start}: use 'uniform'.", "grid", "t_start"
      )
    return official(sde, n, eps, tabulated)
  with jax.ensure_compile_time_eval():  # numbers, also where a compiled function asks for them
    return TimeGrid.through(CHAINED[name](sde, n, eps, start))
