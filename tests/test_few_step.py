"""Few-step samplers on Gaussians, where the ODE and the moments are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.analytic import GaussianMixture, gaussian
from score_sde.batch import PRIOR, example_keys, fold
from score_sde.run.sampler import Sampler
from score_sde.sampling import METHODS, FewStep, make_grid
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
  observed = np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])
  assert observed[1] > order - 0.25, errors
  assert abs(observed[1] - order) < 0.25 or observed[1] > order, errors


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
