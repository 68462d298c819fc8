"""One test for each line of docs/errata.md that no other file tests: what is true, and that the slip is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.batch import example_keys, sum_over_dims
from score_sde.likelihood import normalize
from score_sde.losses import denoising, explicit
from score_sde.parameterization import ScoreModel
from score_sde.sampling import PredictorCorrector, correctors, make_grid, predictors
from score_sde.sde import VE, VP

LINE = analytic.GaussianMixture(means=[[1.0], [-0.6]], covariances=[[[0.05]], [[0.1]]], weights=[0.4, 0.6])
PLANE = analytic.GaussianMixture(
  means=[[1.0, -0.5], [-0.8, 0.6]],
  covariances=[[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]],
  weights=[0.4, 0.6],
)


@pytest.mark.thorough
def test_the_reverse_mean_in_terms_of_the_score(x64):
  """E[x_s | x_t] by quadrature of Bayes' rule in one dimension, against the formula and against the slip."""
  sde, s, t = VP(), jnp.array([0.30]), jnp.array([0.33])
  ratio, std = sde.transition(s, t)
  alpha, sigma = ratio**2, sde.sigma(t)  # of one step, and sqrt(1 - alpha-bar)
  for x_t in (-1.2, 0.1, 0.7):
    log_joint = lambda x, x_t=x_t: (
      LINE.log_density(sde, x, jnp.full(len(x), s[0])) - (x_t - ratio * x[:, 0]) ** 2 / (2 * std**2)
    )
    points, log_p, _ = normalize(log_joint, [-5.0], [5.0], n=20_000)
    expected = jnp.sum(jnp.exp(log_p) * points[:, 0]) * (10 / 20_000)
    x = jnp.array([[x_t]])
    score = LINE.score(sde)(x, t)[0, 0]
    assert float((x_t / jnp.sqrt(alpha) + (1 - alpha) / jnp.sqrt(alpha) * score)[0]) == pytest.approx(float(expected))
    slip = x_t / jnp.sqrt(alpha) - (1 - alpha) / (jnp.sqrt(alpha) * sigma) * score
    assert abs(float(slip[0]) - float(expected)) > 0.03
    # The form with that factor and that sign is of the noise, -sigma score; and ours is the ancestral predictor's.
    noise = -sigma * score
    same = x_t / jnp.sqrt(alpha) - (1 - alpha) / (jnp.sqrt(alpha) * sigma) * noise
    assert float(same[0]) == pytest.approx(float(expected))
    step = predictors.ancestral_sampling(PredictorCorrector("ancestral_sampling", "none"), sde, LINE.score(sde))
    _, x_mean = step(example_keys(jax.random.key(0), jnp.arange(1)), x, t, t, s)
    assert float(x_mean[0, 0]) == pytest.approx(float(expected))


def test_langevin_dynamics_moves_along_the_gradient_of_log_p(x64):
  """dx = b dt + √2 dw leaves p as it is where the flux b p - p' vanishes: for b = grad log p, not for b = grad p."""
  x, t = jnp.linspace(-3, 3, 601)[:, None], jnp.full(601, 0.1)
  density = lambda x: jnp.exp(LINE.log_density(VP(), x, t))
  p, slope = density(x), jax.grad(lambda x: density(x).sum())(x)[:, 0]
  assert jnp.abs(LINE.score(VP())(x, t)[:, 0] * p - slope).max() < 1e-12
  assert jnp.abs(slope * p - slope).max() > 0.1


@pytest.mark.thorough
def test_explicit_and_denoising_score_matching_differ_by_a_constant():
  """½ (D / sigma² - E‖score‖²), whatever the model: at one noise level their gradients are the same."""
  n, sigma = 400_000, 0.5
  t = VE().time_of_log_snr(jnp.asarray(-2 * np.log(sigma)))
  exact = lambda x: PLANE.score(VE())(x, jnp.full(len(x), t))
  x0, z = PLANE.sample(jax.random.key(0), n), jax.random.normal(jax.random.key(1), (n, 2))
  constant = 0.5 * (2 / sigma**2 - sum_over_dims(exact(x0 + sigma * z) ** 2).mean())
  for model in (lambda x: -x, lambda x: jnp.sin(3 * x), exact):
    difference = denoising(model, x0, z, sigma) - explicit(model, exact, x0 + sigma * z)
    error = difference.std() / np.sqrt(n)
    assert abs(difference.mean() - constant) < 4 * error + 1e-3


def test_the_score_is_minus_the_mean_of_the_noise_not_the_noise():
  """The perfect model's denoising loss is not zero: it is what x_t does not tell of the noise."""
  n, t = 200_000, 0.3
  times = jnp.full(n, t)
  mean, sigma = VP().marginal(PLANE.sample(jax.random.key(0), n), times)
  z = jax.random.normal(jax.random.key(1), (n, 2))
  x = mean + sigma[:, None] * z
  score = PLANE.score(VP())(x, times)
  left = (sigma[:, None] * score + z) ** 2
  assert left.mean() > 0.1
  # ... and what is left over is uncorrelated with x, as it is with every function of it.
  assert jnp.abs((x[:, :, None] * (sigma[:, None] * score + z)[:, None]).mean(axis=0)).max() < 0.02


def test_algorithm_1_takes_half_the_step_of_the_code():
  """Song & Ermon 2019: x += alpha/2 s + √alpha z in the paper, x += alpha s + √(2 alpha) z in the code."""
  sde, x, t = VE(), jax.random.normal(jax.random.key(0), (4, 3)), jnp.full(4, 0.5)
  keys, score = example_keys(jax.random.key(1), jnp.arange(4)), lambda x, t: -x
  moves, noises = {}, {}
  for ald_step, snr in (("paper", 0.2), ("code", 0.2), ("code", 0.2 / 2**0.5)):
    solver = PredictorCorrector(corrector="ald", snr=snr, ald_step=ald_step, num_scales=10)
    after, mean = correctors.annealed_langevin(solver, sde, score)(keys, x, t)
    moves[ald_step, snr], noises[ald_step, snr] = mean - x, after - mean
  for kept in (moves, noises):
    paper, code, half = kept.values()
    np.testing.assert_allclose(paper, half, rtol=1e-5)  # the code's with half its step (snr enters squared)
    assert not np.allclose(paper, code, rtol=0.1)


def test_the_published_step_is_not_the_spacing_of_the_published_grid():
  """Steps of T / N at times (T - eps) / (N - 1) apart: they do not chain, and reach below eps."""
  grid = make_grid("official", VP(), 1000, 1e-3, tabulated=False)
  np.testing.assert_allclose(grid.start - grid.stop, 1 / 1000, rtol=1e-12)
  np.testing.assert_allclose(-np.diff(grid.t), (1 - 1e-3) / 999, rtol=1e-9)
  assert (grid.start - grid.stop).sum() == pytest.approx(1.0)
  assert grid.t[0] - grid.t[-1] == pytest.approx(0.999)
  ours = make_grid("uniform", VP(), 1000, 1e-3)
  np.testing.assert_array_equal(ours.start[1:], ours.stop[:-1])


def test_ve_jumps_at_zero():
  """sigma(t -> 0) is sigma_min, and x_0 has none: the first step of the chain has sigma_min², no difference of two."""
  sde = VE(0.01, 50.0)
  t = jnp.array([1e-7])
  assert float(sde.sigma(t)[0]) == pytest.approx(0.01, rel=1e-5)
  assert float(sde.transition(jnp.zeros(1), t)[1][0]) == pytest.approx(0.01, rel=1e-5)
  assert float(sde.transition(t / 2, t)[1][0]) < 1e-4


def third_order_multistep(sde, data, n, factor):
  """DPM-Solver++(3M) in steps equal in lambda, from exact first points: the error at the end of a smooth path.

  The third-order term is φ₃ h² D'', and the second divided difference is ½ D'': `factor` is 2, or 1 as often copied.
  """
  lambdas = jnp.linspace(-1.5, 2.5, n + 1)
  times = sde.time_of_log_snr(2 * lambdas)
  alpha, sigma = sde.alpha(times), sde.sigma(times)
  mean, variance = data.means[0, 0], data.covariances[0, 0, 0]
  spread = jnp.sqrt(alpha**2 * variance + sigma**2)
  path = alpha * mean + spread * 0.7  # the flow keeps (x - mean) / spread
  predict = lambda i, x: data.posterior_mean(sde, jnp.reshape(x, (1, 1)), times[i : i + 1])[0, 0]
  outputs = [predict(i, path[i]) for i in range(3)]
  x, h = path[2], lambdas[1] - lambdas[0]
  phi1 = jnp.expm1(-h)
  phi2 = phi1 / h + 1
  phi3 = phi2 / h - 0.5
  for i in range(2, n):
    d0, d1 = outputs[-1] - outputs[-2], outputs[-2] - outputs[-3]
    first, second = d0 + (d0 - d1) / 2, (d0 - d1) / 2
    x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * (phi1 * outputs[-1] - phi2 * first + factor * phi3 * second)
    outputs.append(predict(i + 1, x))
  return float(abs(x - path[-1]))


@pytest.mark.thorough
@pytest.mark.parametrize(("factor", "order"), [(2, 3), (1, 2)])
def test_the_copied_third_order_update_has_order_two(factor, order, x64):
  data = analytic.gaussian([1.0], [[0.3]])
  coarse, fine = (third_order_multistep(VP(), data, n, factor) for n in (64, 128))
  assert np.log2(coarse / fine) == pytest.approx(order, abs=0.25)


# --- unification ------------------------------------------------------------------------------------------------------


def test_ncsns_chain_tends_to_the_ve_sde(x64):
  """(sigma_i² - sigma_{i-1}²) / dt against g² = d sigma² / dt: the error halves when N doubles."""
  sde = VE(0.01, 50.0)
  errors = []
  for n in (500, 1000, 2000):
    sigma = sde.levels(n)[1][::-1]
    t = np.arange(n) / (n - 1)
    chain = (sigma[1:] ** 2 - sigma[:-1] ** 2) * (n - 1)
    g2 = np.asarray(sde.diffusion(None, jnp.asarray(t[1:]))) ** 2
    errors.append(np.abs(chain / g2 - 1).max())
  np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.02)


def test_ddpms_chain_tends_to_the_vp_sde(x64):
  """alpha-bar of the table against exp(-∫ beta) of the SDE: the error halves when N doubles."""
  sde = VP()
  errors = []
  for n in (500, 1000, 2000):
    table = sde.levels(n)[0] ** 2
    t = (np.arange(n) + 1) / n
    errors.append(np.abs(table - np.exp(-np.asarray(sde.integral(jnp.asarray(t))))).max())
  np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.05)


def test_a_ddpm_noise_predictor_is_a_score(x64):
  """Sampled as a score by our ancestral sampler and in its own form by Ho et al.'s Algorithm 2: the same samples."""
  n, sde = 100, VP()
  alpha_bar = jnp.asarray(sde.levels(n)[0] ** 2)
  b = 1 - alpha_bar / jnp.concatenate([jnp.ones(1), alpha_bar[:-1]])

  def noise(params, x, labels, keys):
    """The exact E[z | x_i] under the table's marginals: a perfect DDPM, that knows nothing of an SDE."""
    index = jnp.round(labels).astype(int)
    alpha, sigma = jnp.sqrt(alpha_bar[index])[:, None], jnp.sqrt(1 - alpha_bar[index])[:, None]
    t = sde.time_of_log_snr(2 * jnp.log(alpha / sigma)[:, 0])
    return -sigma * PLANE.score(sde)(x, t)

  model = ScoreModel(sde, noise, "noise", num_scales=n)
  grid = make_grid("official", sde, n, 1e-3)
  keys = example_keys(jax.random.key(0), jnp.arange(256))
  z = jax.random.normal(jax.random.key(1), (n, 256, 2))
  x = y = jax.random.normal(jax.random.key(2), (256, 2))
  solver = PredictorCorrector("ancestral_sampling", "none", tabulated=True)
  step = jax.jit(predictors.ancestral_sampling(solver, sde, lambda x, t: model.score(None, x, t)))
  predict = jax.jit(lambda x, label: noise(None, x, label, None))
  for i, (t, start, stop) in enumerate(grid.rows):
    at = lambda v: jnp.full(256, v)
    _, mean = step(keys, x, at(t), at(start), at(stop))
    index = n - 1 - i
    own = (y - b[index] / jnp.sqrt(1 - alpha_bar[index]) * predict(y, at(float(index)))) / jnp.sqrt(1 - b[index])
    x, y = mean + jnp.sqrt(b[index]) * z[i], own + jnp.sqrt(b[index]) * z[i]
  np.testing.assert_allclose(x, y, atol=2e-3)
  exact = PLANE.sample(jax.random.key(3), 256)
  np.testing.assert_allclose(np.cov(mean.T), np.cov(exact.T), atol=0.2)
