"""Time grids: where a sampler evaluates the score, and from where to where each of its steps goes."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from score_sde.sde import SDE, VE, LinearSDE

# The first time after zero: VE's sigma there is sigma_min, while at zero itself x is data.
AFTER_ZERO = 1e-30


class TimeGrid(NamedTuple):
  """Step i evaluates the score at t[i] and goes from start[i] to stop[i]; arrays (N,), float64, from noise to data."""

  t: np.ndarray
  start: np.ndarray
  stop: np.ndarray


def _chained(times: np.ndarray) -> TimeGrid:
  return TimeGrid(times[:-1], times[:-1], times[1:])


def uniform(sde: SDE, n: int, eps: float, start: float, predictor: str) -> TimeGrid:
  """N steps of equal length from `start` to eps."""
  return _chained(np.linspace(start, eps, n + 1))


def log_snr(sde: LinearSDE, n: int, eps: float, start: float, predictor: str) -> TimeGrid:
  """N steps, equal in log-SNR, from `start` to eps. Lu et al. 2022."""
  if not isinstance(sde, LinearSDE):
    raise ValueError(f"sampling.grid='log_snr' needs a linear SDE, not {type(sde).__name__}: use 'uniform'.")
  first, last = (float(sde.log_snr(jnp.asarray(t))) for t in (start, eps))
  times = np.array(sde.time_of_log_snr(jnp.linspace(first, last, n + 1)), np.float64)
  times[0], times[-1] = start, eps
  return _chained(times)


def karras(sde: LinearSDE, n: int, eps: float, start: float, predictor: str) -> TimeGrid:
  """N steps, equal in (sigma / alpha)^(1 / 7), from `start` to eps. Karras et al. 2022, eq. (5)."""
  if not isinstance(sde, LinearSDE):
    raise ValueError(f"sampling.grid='karras' needs a linear SDE, not {type(sde).__name__}: use 'uniform'.")
  first, last = (float(jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2)) for t in (start, eps))
  ratio = np.linspace(first ** (1 / 7), last ** (1 / 7), n + 1) ** 7
  times = np.array(sde.time_of_log_snr(jnp.asarray(-2 * np.log(ratio))), np.float64)
  times[0], times[-1] = start, eps
  return _chained(times)


def quadratic(sde: SDE, n: int, eps: float, start: float, predictor: str) -> TimeGrid:
  """N steps, equal in sqrt(t), from `start` to eps. Song et al. 2021 (DDIM), Appendix D.2."""
  return _chained(np.linspace(start**0.5, eps**0.5, n + 1) ** 2)


def official(sde: SDE, n: int, eps: float, start: float, predictor: str) -> TimeGrid:
  """The grid of the published samplers: t = linspace(T, eps, N), whose steps do not chain.

  Euler-Maruyama steps by T / N from t. The others read a table of N entries at floor(t (N - 1)): VP and sub-VP step by
  T / N from that entry's time, VE goes from its sigma to the next smaller one, and to zero below the first.
  """
  if start != sde.T:
    raise ValueError(f"sampling.grid='official' starts at {sde.T}, not at {start}: use 'uniform'.")
  t = np.linspace(sde.T, eps, n)
  if predictor == "euler_maruyama" or n == 1:
    return TimeGrid(t, t, t - sde.T / n)
  index = np.floor(t * (n - 1) / sde.T + 1e-6)
  if not isinstance(sde, VE):
    return TimeGrid(t, index * sde.T / (n - 1), index * sde.T / (n - 1) - sde.T / n)
  table = np.concatenate([[0.0, AFTER_ZERO], np.arange(1, n) * sde.T / (n - 1)])
  return TimeGrid(t, table[index.astype(int) + 1], table[index.astype(int)])


GRIDS = {"official": official, "uniform": uniform, "log_snr": log_snr, "karras": karras, "quadratic": quadratic}


def make_grid(
  name: str, sde: SDE, n: int, eps: float, predictor: str = "reverse_diffusion", start: float | None = None
) -> TimeGrid:
  """The grid `name` of `n` steps from `start`, by default sde.T, to `eps`.

  Raises:
    ValueError: for an unknown name, fewer than one step, or an eps outside (0, T).
  """
  if name not in GRIDS:
    raise ValueError(f"sampling.grid={name!r} is unknown; choose one of {', '.join(GRIDS)}.")
  if n < 1:
    raise ValueError(f"sampling.num_steps must be at least 1, got {n}.")
  start = sde.T if start is None else start
  if not 0 < start <= sde.T:
    raise ValueError(f"The time to start from must lie in (0, {sde.T}], got {start}.")
  if not 0 < eps < start:
    raise ValueError(f"sampling.eps must lie in (0, {start}), so that time runs from noise to data; got {eps}.")
  return GRIDS[name](sde, n, eps, start, predictor)
