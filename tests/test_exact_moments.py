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
  SASolver,
  correctors,
  ddim,
  heun,
  make_grid,
  multistep,
  predictors,
  sample,
)
from score_sde.sde import VE, VP, SubVP

SDES = {"ve": VE(0.02, 8.0), "vp": VP(), "subvp": SubVP()}
EPS = {"ve": 1e-3, "vp": 1e-2, "subvp": 5e-2}
MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])
DATA = gaussian(MEAN, COVARIANCE)
SLOW = pytest.mark.slow
MARKS = {"vp": [], "ve": [SLOW], "subvp": [SLOW, pytest.mark.longest]}


def law(sde, t):
  alpha, sigma = float(sde.alpha(jnp.array(t))), float(sde.sigma(jnp.array(t)))
  return alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * np.eye(2)


def with_annealed_langevin(n):
  return PredictorCorrector(corrector="ald", snr=0.2 * (10 / n) ** 0.5)


def moments(make, sde, grid, monkeypatch):
  """Mean and covariance of x after all steps; the affine map of a step is read off a batch of basis vectors."""
  solver = make(len(grid)).on(sde, grid)
  draws, given = [], []
  for module in (predictors, correctors, ddim, heun, multistep):
    monkeypatch.setattr(module, "normal", lambda keys, x: draws.append(0) or given[0][:, len(draws) - 1])

  def flat(state):
    """What is a state: arrays like x. Times and counts that a multistep method remembers are the same for all."""
    return jnp.stack([leaf for leaf in jax.tree.leaves(state) if leaf.ndim == 2], axis=1)

  @jax.jit
  def run(state, noise, times, remembered):
    draws.clear()
    given[:] = [noise]
    arrays, others = iter(jnp.moveaxis(state, 1, 0)), iter(remembered)
    parts = [next(arrays) if leaf.ndim == 2 else jnp.broadcast_to(next(others), leaf.shape and (len(state),))
             for leaf in jax.tree.leaves(template)]  # fmt: skip
    keys = jax.random.split(jax.random.key(0), len(state))
    every = [jnp.full(len(state), time) for time in times]
    after = solver.step(sde, DATA.score(sde), keys, jax.tree.unflatten(jax.tree.structure(template), parts), *every)
    return flat(after), [leaf[0] if leaf.ndim else leaf for leaf in jax.tree.leaves(after) if leaf.ndim < 2]

  template = solver.init(sde, jnp.zeros((1, 2)), jnp.full(1, sde.T))
  rows = sum(leaf.ndim == 2 for leaf in jax.tree.leaves(template))
  n, noises = 2 * rows, 2
  basis = np.concatenate([np.zeros((1, n + 2 * noises)), np.eye(n + 2 * noises)])
  state, noise = basis[:, :n].reshape(-1, rows, 2), basis[:, n:].reshape(-1, noises, 2)
  mean, covariance = np.zeros(n), np.zeros((n, n))
  mean[:2], covariance[:2, :2] = law(sde, sde.T)
  remembered = [leaf[0] if leaf.ndim else leaf for leaf in jax.tree.leaves(template) if leaf.ndim < 2]
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


def stochastic_adams(**options):
  return lambda n: SASolver(noise_removal=False, **options)


def wavy(ratio):
  return 0.5 + 0.4 * jnp.cos(jnp.log(ratio))


# (options, weak order of the covariance; the mean is exact). Order 3 without corrector is tested on polynomials below:
# its first step has order 1, an error that is made once, but is of order 2 in the end.
ADAMS = {
  "ODE, order 1": ({"tau": 0.0, "order": 1, "corrected": False}, 1),
  "ODE, order 2": ({"tau": 0.0, "order": 2, "corrected": False}, 2),
  "ODE, order 1, corrected": ({"tau": 0.0, "order": 1}, 2),
  "ODE, order 2, corrected": ({"tau": 0.0, "order": 2}, 3),
  "SDE, order 1": ({"order": 1, "corrected": False}, 1),
  "SDE, order 2": ({"order": 2, "corrected": False}, 2),
  "SDE, order 3": ({"order": 3, "corrected": False}, 2),
  "SDE, order 1, corrected": ({"order": 1}, 2),
  "SDE, order 2, corrected": ({"order": 2}, 2),
  "more noise, order 3": ({"order": 3, "corrected": False, "tau": 1.4}, 2),
  "noise by function, order 2": ({"order": 2, "corrected": False, "noise_of": wavy}, 2),
  "noise by function, order 3": ({"order": 3, "corrected": False, "noise_of": wavy}, 2),
}


def orders(name, sde, eps, monkeypatch, steps=(40, 80, 160)):
  """Observed orders of the covariance at the finest pair of `steps`, and the errors of mean and covariance."""
  make, grid, _ = STOCHASTIC[name]
  mean, covariance = law(sde, eps)
  found = [moments(make, sde, make_grid(grid, sde, n, eps), monkeypatch) for n in steps]
  errors = np.array([(np.max(np.abs(m - mean)), np.max(np.abs(c - covariance))) for m, c in found])
  return np.log2(errors[-2, 1] / errors[-1, 1]), errors


CASES = [(which, name) for which in SDES for name in STOCHASTIC if (which, name) != ("ve", "euler_maruyama")]


@pytest.mark.thorough
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


@pytest.mark.thorough
@pytest.mark.parametrize(("which", "name"), [pytest.param(w, n, marks=MARKS[w]) for w in SDES for n in ADAMS])
def test_stochastic_adams_has_its_weak_orders(which, name, x64, monkeypatch):
  options, expected = ADAMS[name]
  sde, eps, make = SDES[which], EPS[which], stochastic_adams(**options)
  mean, covariance = law(sde, eps)
  steps = (640, 1280) if name == "SDE, order 2, corrected" else (160, 320)  # that one falls slowly to order 2
  found = [moments(make, sde, make_grid("log_snr", sde, n, eps), monkeypatch) for n in steps]
  errors = [np.max(np.abs(c - covariance)) for _, c in found]
  assert np.log2(errors[0] / errors[1]) == pytest.approx(expected, abs=0.1), errors
  np.testing.assert_allclose(found[0][0], mean, rtol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [{"tau": 0.0}, {"tau": 1.0}, {"noise_of": wavy}], ids=["ODE", "SDE", "function"])
@pytest.mark.parametrize(("order", "corrector"), [(1, False), (2, False), (3, False), (1, True), (3, True)])
def test_a_step_of_stochastic_adams_is_exact_for_polynomials(order, corrector, noise, x64, monkeypatch):
  """D is a polynomial in lambda that all points of the step determine. The integral is taken by quadrature."""
  monkeypatch.setattr(multistep, "normal", lambda keys, x: jnp.ones_like(x))
  sde, solver, degree = VP(), SASolver(order=order, corrected=corrector, **noise), order - 1 + corrector
  times = [float(sde.time_of_log_snr(jnp.asarray(2 * place))) for place in (-0.9, -0.6, 0.1, 0.5)]
  l2, l1, start, stop = (float(sde.log_snr(jnp.asarray(t))) / 2 for t in times)
  polynomial = lambda lam: sum((k + 1) * (0.7 * lam) ** k for k in range(degree + 1))

  def score(x, t):
    denoised = polynomial(sde.log_snr(t) / 2)[:, None]
    return (sde.alpha(t)[:, None] * denoised - x) / sde.sigma(t)[:, None] ** 2

  x, full = jnp.full((1, 1), 0.3), lambda value: jnp.full((1, 1), value)
  state = solver.init(sde, x, jnp.full(1, times[2]))._replace(
    denoised=full(polynomial(start)), before=tuple(full(polynomial(place)) for place in (l1, l2)[: order - 1]),
    places=tuple(jnp.full(1, place) for place in (l1, l2)[: order - 1]), taken=jnp.asarray(2, jnp.int32),
  )  # fmt: skip
  after = solver.step(
    sde, score, jax.random.split(jax.random.key(0), 1), state, *(jnp.full(1, times[i]) for i in (2, 2, 3))
  )

  lam = np.linspace(start, stop, 20001)
  tau = np.asarray(wavy(jnp.exp(-lam))) if "noise_of" in noise else np.full_like(lam, noise["tau"])
  steps = np.diff(lam) * (tau[1:] ** 2 + tau[:-1] ** 2) / 2
  rest = np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])  # T(l)
  sigma = [float(sde.sigma(jnp.asarray(t))) for t in times[2:]]
  integral = np.trapezoid(np.exp(lam - rest) * (1 + tau**2) * polynomial(lam), lam)
  mean = sigma[1] / sigma[0] * np.exp(-rest[0]) * 0.3 + sigma[1] * integral
  np.testing.assert_allclose(after.mean, mean, rtol=1e-8)
  np.testing.assert_allclose(after.x - after.mean, sigma[1] * np.sqrt(-np.expm1(-2 * rest[0])), rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
  "options",
  [{}, *(pytest.param({"order": n, "corrected": False}, marks=pytest.mark.longest) for n in (1, 2))],
  ids=str,
)
def test_stochastic_adams_has_strong_order_one_on_a_brownian_path(options, x64):
  """The same paths with more and more steps: their distance to the paths of 4000 steps falls as 1 / steps."""
  sde, score = VP(), DATA.score(VP())
  solver = SASolver(brownian=True, noise_removal=False, **options)
  draw = jax.jit(
    lambda n: sample(jax.random.key(3), sde, score, (256, 2), solver=solver, steps=n, eps=1e-2, dtype=jnp.float64),
    static_argnums=0,
  )
  reference, steps = draw(4000), (40, 80, 160, 320)
  errors = [float(jnp.sqrt(jnp.mean((draw(n) - reference) ** 2))) for n in steps]
  assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.1), errors
