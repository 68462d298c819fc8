"""Orders of convergence without Monte-Carlo noise: on Gaussian data every sampler here is affine.

With the exact score of N(m, C) a step is affine in the state and its noises, so the mean and covariance of what it
returns follow exactly from those of what it is given. The chain starts from the exact law at T, ends at eps, and the
error against the exact law there is pure discretization.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.analytic import gaussian
from score_sde.sampling import (
  DDIM,
  DPMSolverSDE,
  Heun,
  PredictorCorrector,
  correctors,
  ddim,
  dpm_solver,
  heun,
  make_grid,
  predictors,
)
from score_sde.sde import VE, VP, SubVP

SDES = {"ve": VE(0.02, 8.0), "vp": VP(), "subvp": SubVP()}
EPS = {"ve": 1e-3, "vp": 1e-2, "subvp": 5e-2}
MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
DATA = gaussian(MEAN, COVARIANCE)
SLOW = pytest.mark.slow


def law(sde, t):
  alpha, sigma = float(sde.alpha(jnp.array(t))), float(sde.sigma(jnp.array(t)))
  return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)


def with_annealed_langevin(n):
  return PredictorCorrector(corrector="ald", snr=0.2 * (10 / n) ** 0.5)


def moments(make, sde, grid, monkeypatch):
  """Mean and covariance of x after all steps; the affine map of a step is read off a batch of basis vectors."""
  solver = make(len(grid)).on(sde, grid)
  draws, given = [], []
  for module in (predictors, correctors, ddim, dpm_solver, heun):
    monkeypatch.setattr(module, "normal", lambda keys, x: draws.append(0) or given[0][:, len(draws) - 1])

  def flat(state):
    """What is a state: arrays like x. Times and counts that a multistep method remembers are the same for all."""
    return jnp.stack([leaf for leaf in state if leaf.ndim == 2], axis=1)

  @jax.jit
  def run(state, noise, times, remembered):
    draws.clear()
    given[:] = [noise]
    arrays, others = iter(jnp.moveaxis(state, 1, 0)), iter(remembered)
    parts = [next(arrays) if leaf.ndim == 2 else jnp.broadcast_to(next(others), leaf.shape and (len(state),))
             for leaf in template]  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(state))
    every = [jnp.full(len(state), time) for time in times]
    after = solver.step(sde, DATA.score(sde), keys, type(template)(*parts), *every)
    return flat(after), [leaf[0] if leaf.ndim else leaf for leaf in after if leaf.ndim < 2]

  template = solver.init(sde, jnp.zeros((1, 2)), jnp.full(1, sde.T))
  rows = sum(leaf.ndim == 2 for leaf in template)
  n, noises = 2 * rows, 2
  basis = np.concatenate([np.zeros((1, n + 2 * noises)), np.eye(n + 2 * noises)])
  state, noise = basis[:, :n].reshape(-1, rows, 2), basis[:, n:].reshape(-1, noises, 2)
  mean, covariance = np.zeros(n), np.zeros((n, n))
  mean[:2], covariance[:2, :2] = law(sde, sde.T)
  remembered = [leaf[0] if leaf.ndim else leaf for leaf in template if leaf.ndim < 2]
  for times in grid.rows:
    out, remembered = run(state, noise, times, remembered)
    out = np.asarray(out).reshape(len(basis), n)
    shift, linear = out[0], (out[1:] - out[0]).T
    mean = shift + linear[:, :n] @ mean
    covariance = linear[:, :n] @ covariance @ linear[:, :n].T + linear[:, n:] @ linear[:, n:].T
  return mean[:2], covariance[:2, :2]


def plain(predictor, **options):
  return lambda n: PredictorCorrector(predictor, "none", **options)


# name: (number of steps -> solver, grid, weak order).
STOCHASTIC = {
  "euler_maruyama": (plain("euler_maruyama"), "uniform", 1),
  "reverse_diffusion": (plain("reverse_diffusion"), "uniform", 1),
  "ancestral_sampling": (plain("ancestral_sampling", posterior_variance=True), "uniform", 1),
  "ancestral_sampling, variance beta": (plain("ancestral_sampling", posterior_variance=False), "uniform", 1),
  "reverse_diffusion and annealed Langevin": (with_annealed_langevin, "uniform", 1),
  "ddim, eta 1": (lambda n: DDIM(eta=1.0, noise_removal=False), "log_snr", 1),
  "dpm_solver_sde": (lambda n: DPMSolverSDE(noise_removal=False), "log_snr", 2),
  "heun, churn": (lambda n: Heun(churn=20.0, noise_removal=False), "log_snr", 2),
}


def orders(name, sde, eps, monkeypatch, steps=(40, 80, 160)):
  """Observed orders of the covariance at the finest pair of `steps`, and the errors of mean and covariance."""
  make, grid, _ = STOCHASTIC[name]
  mean, covariance = law(sde, eps)
  found = [moments(make, sde, make_grid(grid, sde, n, eps), monkeypatch) for n in steps]
  errors = np.array([(np.max(np.abs(m - mean)), np.max(np.abs(c - covariance))) for m, c in found])
  return np.log2(errors[-2, 1] / errors[-1, 1]), errors


CASES = [(which, name) for which in SDES for name in STOCHASTIC if (which, name) != ("ve", "euler_maruyama")]


@pytest.mark.parametrize(
  ("which", "name"), [pytest.param(*case, marks=[SLOW] if case[0] != "vp" else []) for case in CASES]
)
def test_stochastic_samplers_have_their_weak_order(which, name, x64, monkeypatch):
  """The mean is exact, or of the order of the covariance, too. VE's Euler-Maruyama is the next test's."""
  order, errors = orders(name, SDES[which], EPS[which], monkeypatch)
  expected = STOCHASTIC[name][2]
  assert order == pytest.approx(expected, abs=0.1), errors
  assert errors[-1, 0] < 1e-12 or np.log2(errors[-2, 0] / errors[-1, 0]) == pytest.approx(expected, abs=0.1), errors


def test_euler_maruyama_of_ve_has_order_2_in_the_covariance(x64, monkeypatch):
  """Of order 1 in general, but on a uniform grid the leading term telescopes to the two ends, where it vanishes.

  With variance v(t) along an eigenvector, a step adds h² (v'²/v - v''/2), of which (v(0)/v)² survives to the end:
  the sum is h v(0)² ∫ (v'²/v³ - v''/2v²) dt = h v(0)²/2 [v'/v²] between T and 0, small at 0 as sigma_min² and at T as
  1 / sigma_max². With a small sigma_max = 4, order 1 is back.
  """
  order, errors = orders("euler_maruyama", VE(0.01, 1000.0), 1e-3, monkeypatch, (160, 320))
  assert order == pytest.approx(2, abs=0.1), errors
  order, errors = orders("euler_maruyama", VE(0.01, 4.0), 1e-3, monkeypatch, (320, 640))
  assert order == pytest.approx(1, abs=0.1), errors
