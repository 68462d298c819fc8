"""Few-step samplers on Gaussians, where the ODE and the moments are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde.analytic import GaussianMixture, gaussian
from score_sde.batch import PRIOR, example_keys, fold
from score_sde.run.sampler import Sampler
from score_sde.sampling import METHODS, FewStep, Interval, Restart, SASolver, TimeGrid, make_grid, sample
from score_sde.sde import VE, VP, SubVP, denoiser

FEW_STEP = [name for name, solver in METHODS.items() if issubclass(solver, FewStep)]

SDES = {"ve": VE(0.02, 8.0), "vp": VP(), "subvp": SubVP()}
EPS = {"ve": 1e-3, "vp": 1e-2, "subvp": 5e-2}
# One SDE in the fast suite; the solvers see only alpha and sigma.
NAMES = ["vp", pytest.param("ve", marks=pytest.mark.slow), pytest.param("subvp", marks=pytest.mark.slow)]
MEAN, COVARIANCE = np.array([1.0, -2.0]), np.array([[2.0, 0.6], [0.6, 0.5]])


def flow(sde, z, eps):
  """The probability-flow ODE from z at T to eps: along each eigenvector (x - alpha m) / std(x) stays."""
  values, basis = np.linalg.eigh(COVARIANCE)
  alpha, sigma = (np.array([float(f(jnp.array(t))) for t in (sde.T, eps)]) for f in (sde.alpha, sde.sigma))
  std = np.sqrt(alpha[:, None] ** 2 * values + sigma[:, None] ** 2)
  return alpha[1] * MEAN + ((np.asarray(z) - alpha[0] * MEAN) @ basis * (std[1] / std[0])) @ basis.T


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("method", "order"), [("ddim", 1), ("dpm_solver", 2), ("heun", 2), ("unipc", 3)])
def test_ode_solvers_have_their_order(method, order, name, x64):
  """The error against the exact flow falls as N^-order on a grid uniform in log-SNR."""
  sde, eps = SDES[name], EPS[name]
  score = jax.tree_util.Partial(gaussian(MEAN, COVARIANCE).score(sde))
  z = sde.prior_sample(fold(example_keys(jax.random.key(0), jnp.arange(4)), PRIOR), (4, 2), jnp.float64)
  exact, errors = flow(sde, z, eps), []
  for n in (40, 80, 160):
    sample = Sampler(sde, METHODS[method](noise_removal=False), make_grid("log_snr", sde, n, eps))
    x, info = sample(score, jax.random.key(0), (4, 2), dtype=jnp.float64)
    errors.append(np.max(np.abs(x - exact)))
    assert info["nfe"] == {"heun": 2 * n, "unipc": n + 1}.get(method, n)
  assert np.log2(errors[1] / errors[2]) > order - 0.25, errors


@pytest.mark.slow  # test_exact_moments has the same without Monte-Carlo noise
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize(
  ("method", "steps", "options"),
  [("ddim", 500, {"eta": 1.0}), ("dpm_solver_sde", 100, {}), ("heun", 100, {"churn": 20.0})],
)
def test_stochastic_samplers_have_the_moments_of_the_data(method, steps, options, name):
  """Within Monte-Carlo error and 5% of discretization (ddim's is of order 1: 9% with 100 steps)."""
  sde, n = SDES[name], 20_000
  data = gaussian(MEAN, COVARIANCE)
  solver = METHODS[method](noise_removal=False, **options)
  sample = Sampler(sde, solver, make_grid("karras", sde, steps, EPS[name]))
  x, info = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(0), (n, 2))
  assert info["finite"].all()
  alpha, sigma = (float(f(jnp.array(EPS[name]))) for f in (sde.alpha, sde.sigma))
  covariance = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
  bound = 4 * np.sqrt(np.diag(covariance) / n)
  assert (np.abs(np.mean(x, axis=0) - alpha * MEAN) < bound + 0.02).all()
  np.testing.assert_allclose(np.cov(np.asarray(x).T), covariance, atol=0.05 * covariance.max())
  other, _ = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(1), (4, 2))
  assert np.abs(other - x[:4]).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("method", FEW_STEP)
def test_twenty_evaluations_find_every_mode(method, name):
  """Eight well separated modes: their weights within Monte-Carlo error, and hardly a sample between them."""
  angles = 2 * np.pi * np.arange(8) / 8
  means = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
  data = GaussianMixture(means, np.tile(0.05**2 * np.eye(2), (8, 1, 1)), np.ones(8))
  sde, n = SDES[name], 4000
  steps = 10 if method == "heun" else 20
  sample = Sampler(sde, METHODS[method](noise_removal=False), make_grid("karras", sde, steps, EPS[name]))
  x, _ = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(0), (n, 2))
  alpha, sigma = (float(f(jnp.array(EPS[name]))) for f in (sde.alpha, sde.sigma))
  distance = np.linalg.norm(np.asarray(x)[:, None] - alpha * means, axis=2)
  assert np.mean(distance.min(axis=1) < 5 * np.hypot(0.05 * alpha, sigma)) > 0.9
  weights = np.bincount(distance.argmin(axis=1), minlength=8) / n
  np.testing.assert_allclose(weights, 1 / 8, atol=0.03)


def test_the_denoiser_is_the_posterior_mean(x64):
  sde, data = VP(), gaussian(MEAN, COVARIANCE)
  x, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.1, 0.9, 5)
  got = denoiser(sde, data.score(sde))(x, t)
  np.testing.assert_allclose(got, data.posterior_mean(sde, x, t), rtol=1e-10)
  for i, (alpha, sigma) in enumerate(zip(sde.alpha(t), sde.sigma(t), strict=True)):
    gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * np.eye(2))
    np.testing.assert_allclose(got[i], MEAN + gain @ (x[i] - alpha * MEAN), rtol=1e-8)


def test_what_cannot_work_is_refused():
  sde = VP()
  with pytest.raises(ValueError, match="steps that chain"):
    Sampler(sde, METHODS["ddim"](), make_grid("official", sde, 10, 1e-3))


# --- restarts ---------------------------------------------------------------------------------------------------------


def test_restarts_cross_their_interval_again():
  """The steps of a grid, then twice from the highest level to the nearest level of the grid, then on."""
  sde = VE(0.01, 10.0)
  solver = Restart(solver=METHODS["heun"](), restarts=(Interval(0.3, 2.0, steps=3, repeats=2),))
  plain = make_grid("karras", sde, 8, 1e-3)
  grid = solver.schedule(sde, plain)
  at = int(np.argmin(np.abs(np.log(np.asarray(sde.sigma(jnp.asarray(plain.stop))) / 0.3))))
  assert len(grid) == 8 + 2 * 3
  np.testing.assert_array_equal(grid.rows[: at + 1], plain.rows[: at + 1])
  np.testing.assert_array_equal(grid.rows[at + 7 :], plain.rows[at + 1 :])
  for first in (at + 1, at + 4):
    assert float(sde.sigma(jnp.asarray(grid.start[first]))) == pytest.approx(2.0, rel=1e-4)
    np.testing.assert_array_equal(grid.start[first + 1 : first + 3], grid.stop[first : first + 2])
    assert grid.stop[first + 2] == plain.stop[at]
  assert solver.on(sde, grid).evaluations(14) == 2 * 14 + 1
  by_unipc = Restart(solver=METHODS["unipc"](), restarts=solver.restarts)
  assert by_unipc.on(sde, grid).evaluations(14) == 14 + 1 + 2  # the first step of UniPC evaluates twice


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["vp", pytest.param("ve", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["heun", "unipc", "sa_solver"])
def test_restarts_keep_the_moments_of_the_data(method, name):
  """And the evaluations that are counted are made."""
  sde, n, seen = SDES[name], 20_000, []
  data = gaussian(MEAN, COVARIANCE)
  score = lambda x, t: jax.debug.callback(lambda _: seen.append(0), t[0]) or data.score(sde)(x, t)
  solver = Restart(
    solver=METHODS[method](noise_removal=False), restarts=(Interval(0.1, 1.0, 4, 2), Interval(0.5, 3.0, 4, 1))
  )
  x, info = sample(
    jax.random.key(0), sde, score, (n, 2), solver=solver, steps=30, grid="karras", eps=EPS[name], return_info=True
  )
  jax.effects_barrier()
  assert len(seen) == info["nfe"]
  alpha, sigma = (float(f(jnp.array(EPS[name]))) for f in (sde.alpha, sde.sigma))
  covariance = alpha**2 * COVARIANCE + sigma**2 * np.eye(2)
  bound = 4 * np.sqrt(np.diag(covariance) / n)
  assert (np.abs(np.mean(x, axis=0) - alpha * MEAN) < bound + 0.02).all()
  np.testing.assert_allclose(np.cov(np.asarray(x).T), covariance, atol=0.05 * covariance.max())


@pytest.mark.thorough
def test_restarts_remove_an_error_that_the_solver_made():
  """A start with twice the variance: the ODE keeps it, fresh noise halves what is left of it."""
  sde, data, n = VE(0.02, 8.0), gaussian(MEAN, COVARIANCE), 4000
  x_T = 2 * sde.prior_sample(fold(example_keys(jax.random.key(0), jnp.arange(n)), PRIOR), (n, 2), jnp.float32)
  spread = []
  for repeats in (0, 1, 4):
    solver = METHODS["unipc"](noise_removal=False)
    if repeats:
      solver = Restart(solver=solver, restarts=(Interval(0.1, 4.0, 12, repeats),))
    x = sample(jax.random.key(0), sde, data.score(sde), (n, 2), solver=solver, steps=30, x_T=x_T, eps=1e-3)
    spread.append(np.sqrt(np.linalg.det(np.cov(np.asarray(x).T)) / np.linalg.det(COVARIANCE)))
  assert spread[0] > 3
  assert abs(spread[2] - 1) < 0.15
  assert abs(spread[1] - 1) < 0.6 * abs(spread[0] - 1)


def test_intervals_that_cannot_be_crossed_are_refused():
  with pytest.raises(ValueError, match="0 < low < high"):
    Interval(0.5, 0.5)
  with pytest.raises(ValueError, match="must be at least 1"):
    Interval(0.1, 0.5, steps=0)
  with pytest.raises(ValueError, match="must exceed the level of the grid that is nearest"):
    Restart(solver=METHODS["heun"](), restarts=(Interval(0.1, 0.12),)).schedule(
      VE(), make_grid("karras", VE(), 3, 1e-3)
    )


# --- SA-Solver --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("twin", "options"), [("ddim", {"order": 1}), ("dpm_solver", {"order": 2})])
def test_stochastic_adams_contains_the_solvers_of_the_ode(twin, options, x64):
  """DDIM is order 1. DPM-Solver++(2M) extrapolates otherwise to second order, so it is as good, not the same."""
  sde, score = VP(), gaussian(MEAN, COVARIANCE).score(VP())
  draw = lambda solver: sample(jax.random.key(0), sde, score, (4, 2), solver=solver, steps=40, dtype=jnp.float64)
  one, other = draw(METHODS[twin]()), draw(SASolver(tau=0.0, corrected=False, **options))
  np.testing.assert_allclose(one, other, atol=1e-9 if twin == "ddim" else 1e-2)


def test_stochastic_adams_without_noise_is_unipc(x64):
  """With its corrector and order 3: UniPC's weights and those of Adams methods are one and the same there."""
  sde, score = SubVP(), gaussian(MEAN, COVARIANCE).score(SubVP())
  draw = lambda solver: sample(jax.random.key(0), sde, score, (4, 2), solver=solver, steps=20, dtype=jnp.float64)
  np.testing.assert_allclose(draw(METHODS["unipc"]()), draw(SASolver(tau=0.0)), rtol=1e-6)


@pytest.mark.thorough
def test_stochastic_adams_adds_noise_only_between_its_levels():
  sde, score = VE(), gaussian(MEAN, COVARIANCE).score(VE())
  draw = lambda key, **options: sample(
    jax.random.key(key), sde, score, (4, 2), solver=SASolver(**options), steps=20, x_T=jnp.full((4, 2), 30.0)
  )
  silent = {"tau": 1.0, "tau_min": 1e4, "tau_max": 1e5}
  np.testing.assert_allclose(draw(0, **silent), draw(1, tau=0.0), atol=1e-5)
  low = {"tau": 1.0, "tau_max": 1e-4}  # below the last level
  np.testing.assert_allclose(draw(0, **low), draw(1, tau=0.0), atol=1e-5)
  assert np.abs(draw(0, tau_min=0.05, tau_max=1.0) - draw(1, tau_min=0.05, tau_max=1.0)).max() > 1e-2


@pytest.mark.thorough
def test_new_solvers_run_inside_of_jit_and_to_zero_noise(x64):
  """A schedule is made while tracing; a grid may end at sigma = 0."""
  sde, score = VP(), gaussian(MEAN, COVARIANCE).score(VP())
  solver = Restart(solver=METHODS["heun"](), restarts=(Interval(0.1, 1.0, 3, 2),))
  draw = lambda key: sample(key, sde, score, (4, 2), solver=solver, steps=8, dtype=jnp.float64)
  np.testing.assert_allclose(jax.jit(draw)(jax.random.key(0)), draw(jax.random.key(0)), rtol=1e-6)
  to_zero = TimeGrid.through([1.0, 0.5, 0.2, 0.05, 0.0])
  for options in ({"tau": 0.0}, {}, {"brownian": True}, {"corrected": False}):
    own = SASolver(noise_removal=False, **options)
    assert np.isfinite(sample(jax.random.key(0), sde, score, (4, 2), solver=own, grid=to_zero)).all(), options


@pytest.mark.parametrize("options", [
  {"solver": ss.AdaptiveODE(), "message": "Restart needs a solver with steps on a grid"},
  {"solver": ss.Consistency(start_sigma=40.0), "message": "Consistency changes the grid itself"},
])  # fmt: skip
def test_restarts_need_a_solver_with_steps_on_a_grid(options):
  with pytest.raises(ss.InvalidArgument, match=options["message"]):
    Restart(solver=options["solver"], restarts=(Interval(0.1, 1.0),)).schedule(VE(), make_grid("karras", VE(), 8, 1e-3))


def test_empty_intervals_of_noise_are_refused():
  with pytest.raises(ss.InvalidArgument, match=r"tau_min=1.0 and tau_max=0.5 must satisfy tau_min < tau_max"):
    SASolver(tau_min=1.0, tau_max=0.5)
  with pytest.raises(ss.InvalidArgument, match="churn_min < churn_max"):
    ss.Heun(churn=1.0, churn_min=2.0, churn_max=1.0)


def test_restarts_have_one_level(x64):
  inner = Restart(solver=METHODS["heun"](noise_removal=False), restarts=(Interval(0.1, 1.0),))
  assert not inner.noise_removal
  outer = Restart(solver=inner, restarts=(Interval(0.5, 1.0),))
  with pytest.raises(ValueError, match="give all intervals to one Restart"):
    outer.schedule(VP(), make_grid("karras", VP(), 8, 1e-3))
