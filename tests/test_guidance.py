"""Guidance, against posteriors in closed form, dense linear algebra and PIL."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import score_sde as ss
from configs import quickstart
from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.guidance import (
  DDRM,
  DPS,
  TMPD,
  Analytic,
  ByClassifier,
  Classifier,
  ClassifierFree,
  LinearOperator,
  Measurement,
  PhaseRetrieval,
  PiGDM,
  Projection,
  Quantized,
  check_operator,
  condition_on,
  measure,
  operators,
  put_in,
)
from score_sde.likelihood import ExactLikelihood
from score_sde.run import guide
from score_sde.run.classifiers import load_classifier
from score_sde.run.config import BadInput, resolve
from score_sde.run.experiment import build
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import DPMSolverSDE, Heun, PredictorCorrector, make_grid
from score_sde.sde import VE, VP, SubVP

SDES = [VP(), VE(0.01, 20.0), SubVP()]
BY_NAME = {"ids": lambda value: type(value).__name__}
D, M, NOISE = 5, 2, 0.2
RNG = np.random.default_rng(0)
ROOT = RNG.standard_normal((D, D)) / np.sqrt(D)
GAUSSIAN = analytic.gaussian(RNG.standard_normal(D), ROOT @ ROOT.T + 0.1 * np.eye(D))
MIXTURE = analytic.GaussianMixture(
  RNG.standard_normal((3, D)), np.stack([GAUSSIAN.covariances[0] * s for s in (0.1, 0.2, 0.3)]), [1.0, 2.0, 1.0]
)
IMAGES = (2, 8, 8, 3)


def isotropic(variance):
  return analytic.gaussian(np.zeros(D), variance * np.eye(D))


def problem(batch, *, orthonormal=False, seed=1):
  """A measurement of each of `batch` vectors by a matrix of its own, dense; and the matrices and y."""
  rng = np.random.default_rng(seed)
  a = rng.standard_normal((batch, M, D))
  if orthonormal:
    a = np.linalg.qr(a.transpose(0, 2, 1))[0].transpose(0, 2, 1)
  y = rng.standard_normal((batch, M))
  dtype = jnp.zeros(()).dtype
  noise = jnp.full(batch, NOISE, dtype)
  return Measurement(operators.Matrix(jnp.asarray(a, dtype)), jnp.asarray(y, dtype), noise), a, y


def exact_scores(prior, sde, x, t, a, y):
  """Scores of each example's posterior, which is known."""
  scores = [prior.posterior(a[i], y[i], NOISE).score(sde)(x[i : i + 1], t[i : i + 1])[0] for i in range(len(x))]
  return jnp.stack(scores)


def points(sde, batch=6):
  x = jnp.asarray(np.random.default_rng(2).standard_normal((batch, D)))
  return x, jnp.linspace(0.05, 0.95, batch)


def assert_equal_scores(actual, expected, tolerance=1e-6):
  assert float(jnp.max(jnp.abs(actual - expected) / (1 + jnp.abs(expected)))) < tolerance


@pytest.mark.parametrize("sde", [SDES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in SDES[1:])], **BY_NAME)
def test_prior_score_and_analytic_likelihood_make_the_posterior_s_score(x64, sde):
  prior, (x, t) = MIXTURE, points(sde)
  measurement, a, y = problem(len(x))
  score = condition_on(prior.score(sde), Analytic(sde, prior))
  assert_equal_scores(score(x, t, measurement), exact_scores(prior, sde, x, t, a, y))


@pytest.mark.parametrize("sde", SDES, **BY_NAME)
def test_second_order_tweedie_is_exact_for_a_gaussian(x64, sde):
  x, t = points(sde)
  measurement, a, y = problem(len(x))
  score = condition_on(GAUSSIAN.score(sde), TMPD(sde, covariance="full", iterations=M))
  assert_equal_scores(score(x, t, measurement), exact_scores(GAUSSIAN, sde, x, t, a, y))


@pytest.mark.parametrize("sde", SDES, **BY_NAME)
def test_pigdm_is_exact_for_an_isotropic_gaussian_and_dps_too_where_rows_are_orthonormal(x64, sde):
  x, t = points(sde)
  prior = isotropic(0.3)
  measurement, a, y = problem(len(x))
  guided = condition_on(prior.score(sde), PiGDM(sde, prior_variance=0.3))
  assert_equal_scores(guided(x, t, measurement), exact_scores(prior, sde, x, t, a, y))
  measurement, a, y = problem(len(x), orthonormal=True)
  expected = exact_scores(prior, sde, x, t, a, y)
  for method in (DPS(sde, prior_variance=0.3), TMPD(sde, covariance="full")):
    assert_equal_scores(condition_on(prior.score(sde), method)(x, t, measurement), expected)


def test_diagonal_tmpd_is_exact_where_the_covariance_is_diagonal(x64):
  sde, (x, t) = VP(), points(VP())
  prior = analytic.gaussian(np.ones(D), np.diag(np.linspace(0.1, 1, D)))
  measurement, a, y = problem(len(x))
  a = np.tile(np.eye(D)[:M], (len(x), 1, 1))
  measurement = dataclasses.replace(measurement, operator=operators.Matrix(jnp.asarray(a)))
  score = condition_on(prior.score(sde), TMPD(sde))
  assert_equal_scores(score(x, t, measurement), exact_scores(prior, sde, x, t, a, y))


def test_the_published_step_of_dps_is_what_an_ancestral_step_adds():
  """-scale grad ‖y - A D‖² / ‖y - A D‖ for every step of 1 / N: g² / N times the likelihood's score."""
  sde, (x, t) = VP(), points(VP())
  x, t = x.astype(jnp.float32), t.astype(jnp.float32)
  measurement, _, _ = problem(len(x))
  prior = GAUSSIAN.score(sde)
  score = condition_on(prior, DPS(sde, scale=0.7, paper_steps=1000))
  added = sde.diffusion(x, t)[:, None] ** 2 / 1000 * (score(x, t, measurement) - prior(x, t))
  residual = lambda x: measurement.y - measurement.operator.apply(GAUSSIAN.posterior_mean(sde, x, t))
  slope = jax.grad(lambda x: jnp.sum(residual(x) ** 2))(x)
  expected = -0.7 * slope / jnp.linalg.norm(residual(x), axis=1, keepdims=True)
  np.testing.assert_allclose(added, expected, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
  ("sde", "method"),
  [
    (SDES[0], "tmpd"),
    *(
      pytest.param(sde, m, marks=pytest.mark.slow)
      for sde, m in zip(SDES, ("analytic", "tmpd", "analytic"), strict=True)
    ),
  ],
)
def test_samples_of_the_exact_methods_have_the_posterior_s_mean_and_covariance(sde, method):
  n = 4000
  _, a, y = problem(1)
  posterior = GAUSSIAN.posterior(a[0], y[0], NOISE)
  operator = operators.matrix(np.tile(a, (n, 1, 1)))
  measurement = Measurement(operator, jnp.tile(jnp.asarray(y, jnp.float32), (n, 1)), jnp.full(n, NOISE))
  how = Analytic(sde, GAUSSIAN) if method == "analytic" else TMPD(sde, covariance="full", iterations=M)
  sample = stepping(Heun(), sde, 61, eps=1e-4)
  score = condition_on(GAUSSIAN.score(sde), how)
  x, _ = sample(score, jax.random.key(0), (n, D), condition=measurement)
  std = np.sqrt(np.diag(posterior.covariances[0]))
  # Five standard errors, and what VE's prior is off by: the data's mean against sigma_max.
  assert np.all(np.abs(np.mean(x, 0) - posterior.means[0]) < std * (5 / np.sqrt(n) + (0.1 if sde == SDES[1] else 0)))
  np.testing.assert_allclose(np.cov(x.T), posterior.covariances[0], atol=5 * std.max() ** 2 * np.sqrt(2 / n))


def test_the_posterior_of_a_mixture_has_the_right_weights():
  """The exact method's samples fall to the modes as often as the posterior says."""
  n, sde = 3000, VP()
  prior = analytic.GaussianMixture([[-2.0, 0.0], [2.0, 0.0]], np.tile(0.05 * np.eye(2), (2, 1, 1)), [1.0, 1.0])
  a, y, noise = np.array([[0.3, 1.0]]), np.array([0.4]), 0.6
  posterior = prior.posterior(a, y, noise)
  operator = operators.matrix(np.tile(a, (n, 1, 1)))
  measurement = Measurement(operator, jnp.full((n, 1), 0.4), jnp.full(n, noise))
  sample = stepping(DPMSolverSDE(), sde, 61, eps=1e-4)
  score = condition_on(prior.score(sde), Analytic(sde, prior))
  x, _ = sample(score, jax.random.key(0), (n, 2), condition=measurement)
  expected = posterior.weights[1]
  assert 0.6 < expected < 0.99
  assert float(np.mean(x[:, 0] > 0)) == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / n))


@pytest.mark.slow
def test_the_ode_likelihood_takes_a_conditional_score():
  """log p(x | y), of the flow under the guided score, is the posterior's density."""
  sde, n = VP(), 6
  _, a, y = problem(1)
  posterior = GAUSSIAN.posterior(a[0], y[0], NOISE)
  operator = operators.matrix(np.tile(a, (n, 1, 1)))
  measurement = Measurement(operator, jnp.tile(jnp.asarray(y, jnp.float32), (n, 1)), jnp.full(n, NOISE))
  x = posterior.sample(jax.random.key(0), n).astype(jnp.float32)
  log_p = ExactLikelihood(eps=1e-3, probe="exact", rtol=1e-6, atol=1e-6)
  score = condition_on(GAUSSIAN.score(sde), TMPD(sde, covariance="full", iterations=M))
  values, *_ = log_p(sde, score, jax.random.split(jax.random.key(1), n), x, measurement)
  np.testing.assert_allclose(values, posterior.log_density(sde, x, jnp.full(n, 1e-3)), atol=0.02)


@pytest.mark.slow
def test_replacement_is_exact_where_coordinates_are_independent():
  """Known coordinates end as measured, to the last bit; the others have the prior's law, whatever the sampler."""
  n, sde = 4000, VP()
  std = np.array([0.3, 0.5, 0.7, 0.9])
  prior = analytic.gaussian(np.ones(4), np.diag(std**2))
  known = np.tile(np.array([1.0, 0.0, 1.0, 0.0], np.float32), (n, 1))
  y = jnp.asarray(known * np.array([0.7, 0.0, 2.0, 0.0], np.float32))
  measurement = Measurement(operators.Subsampled(jnp.asarray(known)), y, jnp.zeros(n))
  grid = make_grid("log_snr", sde, 100, 1e-4)
  samplers = [
    Sampler(sde, DPMSolverSDE(), grid, constraint=Projection()),
    Sampler(sde, PredictorCorrector(corrector="ald", snr=0.2), grid, constraint=Projection()),
    Sampler(sde, DDRM(eta=0.0), grid),  # with eta it takes D for x_0, and loses what x_0 varies by around it
  ]
  for sample in samplers:
    x, _ = sample(prior.score(sde), jax.random.key(0), (n, 4), condition=measurement)
    np.testing.assert_allclose(x[:, [0, 2]], y[:, [0, 2]], atol=0.03)
    x = put_in(measurement, x)
    np.testing.assert_array_equal(x[:, [0, 2]], y[:, [0, 2]])
    np.testing.assert_allclose(np.mean(x[:, [1, 3]], axis=0), 1.0, atol=5 * 0.9 / np.sqrt(n) + 0.01)
    np.testing.assert_allclose(np.std(x[:, [1, 3]], axis=0), std[[1, 3]], rtol=0.07)


# --- operators ----------------------------------------------------------------------------------------------------


def linear_operators():
  rng, (b, size, _, _) = np.random.default_rng(0), IMAGES
  return {
    "mask": operators.mask(rng.integers(0, 2, (b, size, size, 1))),
    "grayscale": operators.grayscale(b),
    "fourier": operators.fourier_lines(rng, IMAGES, 0.4),
    "projections": operators.random_projections(rng, IMAGES, 0.3),
    "average_pool": operators.average_pool(b, size, 4),
    "bicubic": operators.bicubic(b, size, 2),
    "gaussian_blur": operators.gaussian_blur(b, size, 0.6),
    "motion_blur": operators.motion_blur(rng.uniform(0, 3, b), size, 3),
  }


def dense(operator, example):
  """The matrix of one example's operator, complex measurements as pairs of numbers."""
  one = jax.tree.map(lambda a: a[example : example + 1], operator)
  basis = jnp.eye(int(np.prod(IMAGES[1:]))).reshape(-1, 1, *IMAGES[1:])
  columns = jax.vmap(lambda x: one.apply(x))(basis)
  return np.asarray(as_reals(columns.reshape(len(basis), -1)), np.float64).T


def as_reals(y):
  return jnp.concatenate([y.real, y.imag], axis=-1) if jnp.iscomplexobj(y) else y


QUICK = ("mask", "fourier", "bicubic")


@pytest.mark.parametrize(
  "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in linear_operators()]
)
def test_operators_solve_as_dense_linear_algebra_does(name):
  operator = linear_operators()[name]
  check_operator(operator, IMAGES, jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), IMAGES)
  y = operator.apply(x)
  prior, noise = jnp.array([0.5, 2.0]), jnp.array([0.1, 0.01])
  solved, smallest = operator.solve(y, prior, noise), operator.pinv(y)
  plain = type("Plain", (LinearOperator,), {"apply": staticmethod(operator.apply), "iterations": 300})
  plain.transpose = staticmethod(operator.transpose)
  by_gradients = plain().solve(y, prior, noise)
  for i in range(IMAGES[0]):
    a, r = dense(operator, i), np.asarray(as_reals(y[i].reshape(1, -1)), np.float64)[0]
    expected = a.T @ np.linalg.solve(float(prior[i]) * a @ a.T + float(noise[i]) * np.eye(len(a)), r)
    for values in (solved, by_gradients):
      np.testing.assert_allclose(np.ravel(values[i]), expected, atol=2e-3 * np.abs(expected).max())
    expected = np.linalg.pinv(a, rcond=1e-3) @ r
    np.testing.assert_allclose(np.ravel(smallest[i]), expected, atol=5e-3 * np.abs(expected).max())
  if name != "motion_blur":  # which has lost some frequencies for good
    np.testing.assert_allclose(operator.apply(operator.put_in(0 * x, y)), y, atol=2e-3)


def test_resizing_is_pil_s_and_blurs_keep_the_mean():
  image = np.random.default_rng(0).random((16, 16)).astype(np.float32)
  x = jnp.asarray(image[None, ..., None])
  ours = np.asarray(operators.bicubic(1, 16, 2).apply(x))[0, ..., 0]
  theirs = np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BICUBIC))
  np.testing.assert_allclose(ours[2:-2, 2:-2], theirs[2:-2, 2:-2], atol=1e-5)  # PIL cuts the kernel at the edges
  np.testing.assert_allclose(
    operators.average_pool(1, 16, 4).apply(x)[0, ..., 0], image.reshape(4, 4, 4, 4).mean((1, 3)), atol=1e-6
  )
  flat = jnp.full((1, 16, 16, 1), 0.3)
  for blur in (operators.gaussian_blur(1, 16, 1.5), operators.motion_blur(np.array([0.7]), 16, 5)):
    np.testing.assert_allclose(blur.apply(flat), flat, atol=1e-6)
  point = jnp.zeros((1, 16, 16, 1)).at[0, 8, 8].set(1)
  along = operators.motion_blur(np.array([0.0]), 16, 5).apply(point)[0, :, :, 0]
  np.testing.assert_allclose(along[8, 6:11], 0.2, atol=1e-5)
  np.testing.assert_allclose(jnp.sum(along[8]), 1.0, atol=1e-5)


def test_a_wrong_transpose_and_a_wrong_svd_are_named():
  class Wrong(LinearOperator):
    def apply(self, x):
      return 2 * x[:, :3]

    def transpose(self, y):
      return jnp.pad(y, ((0, 0), (0, 2)))

  with pytest.raises(ValueError, match=r"Wrong.transpose is not the adjoint of apply.* differ by 0\.\d+"):
    check_operator(Wrong(), (4, 5), jax.random.key(0))
  pool = operators.average_pool(2, 8, 4)
  broken = pool.replace(s_rows=1.1 * pool.s_rows)
  with pytest.raises(ValueError, match="SVD is not that of apply"):
    check_operator(broken, IMAGES, jax.random.key(0))


def test_measurements_have_the_noise_they_say_and_refuse_what_does_not_fit():
  x = jnp.zeros((2, 32, 32, 3))
  keys = example_keys(jax.random.key(0), jnp.arange(2))
  measurement = measure(keys, operators.average_pool(2, 32, 2), x, 0.3)
  assert float(jnp.std(measurement.y)) == pytest.approx(0.3, rel=0.05)
  lines = operators.fourier_lines(np.random.default_rng(0), x.shape, 0.5)
  y = measure(keys, lines, x, 0.3).y
  assert float(jnp.std(y.real[jnp.broadcast_to(lines.mask, y.shape) > 0])) == pytest.approx(0.3, rel=0.05)
  assert not np.any(y[jnp.broadcast_to(lines.mask, y.shape) == 0])
  with pytest.raises(ValueError, match="does not apply"):
    measure(keys, operators.average_pool(2, 16, 2), x, 0.0)
  with pytest.raises(ValueError, match=r"0 \(unknown\) or 1 \(known\)"):
    operators.mask(np.full((1, 4, 4, 1), 0.5))
  with pytest.raises(ValueError, match="not be negative"):
    measure(keys, operators.average_pool(2, 32, 2), x, -1.0)


def test_nonlinear_measurements():
  """JPEG's error shrinks with its steps and its slope is one; the strength of frequencies forgets shifts and turns."""
  x = jax.random.uniform(jax.random.key(0), (2, 12, 12, 1))
  errors = [float(jnp.max(jnp.abs(Quantized(q).apply(x) - x))) for q in (5, 50, 100)]
  assert errors[0] > errors[1] > errors[2]
  assert errors[2] < 8 / 255
  slope = jax.grad(lambda x: jnp.sum(Quantized(20).apply(x)))(x[:, :8, :8])
  np.testing.assert_allclose(slope, 1.0, atol=1e-5)
  turned = x[:, ::-1, ::-1]
  np.testing.assert_allclose(PhaseRetrieval().apply(x), PhaseRetrieval().apply(turned), atol=1e-4)


def test_methods_and_operators_that_do_not_go_together_are_refused():
  sde, x, t = VP(), jnp.zeros((1, 8, 8, 1)), jnp.full(1, 0.5)
  nonlinear = measure(jax.random.split(jax.random.key(0), 1), Quantized(10), x, 0.1)
  for method in (PiGDM(sde), TMPD(sde)):
    with pytest.raises(ValueError, match=r"needs a linear operator, and Quantized is none: use 'dps'"):
      condition_on(lambda x, t: -x, method)(x, t, nonlinear)
  with pytest.raises(ValueError, match="need an operator with an SVD"):
    Projection()(nonlinear)
  with pytest.raises(ValueError, match=r"strength=1.5 must lie in \(0, 1\]"):
    Projection(strength=1.5)
  with pytest.raises(ValueError, match=r"eta=2.0 must lie in \[0, 1\]"):
    DDRM(eta=2.0)
  for name in ("ode", "adaptive_sde", "ddpm"):
    config = config_with(task="inpaint", method="replacement")
    config.sampling.method = name
    with pytest.raises(BadInput, match=r"sampling\.method=.* has no updates that a constraint could follow"):
      build(config)


# --- classes ------------------------------------------------------------------------------------------------------


def component_logits(params, x, ratio):
  """log(w_k N(x; m_k, C_k + ratio² I)): the exact classifier of components, params = () and x as under VE."""
  sde = VE()
  t = sde.time_of_log_snr(-2 * jnp.log(ratio))
  parts = [analytic.gaussian(m, c) for m, c in zip(MIXTURE.means, MIXTURE.covariances, strict=True)]
  log_p = jnp.stack([p.log_density(sde, x, t) for p in parts], axis=1)
  return log_p + jnp.log(jnp.asarray(MIXTURE.weights, x.dtype))


def component_score(sde, y):
  return analytic.gaussian(MIXTURE.means[y], MIXTURE.covariances[y]).score(sde)


def test_an_exact_classifier_turns_the_score_into_that_of_the_class(x64):
  sde, (x, t) = VE(), points(VE())
  y = jnp.array([0, 1, 2, 0, 1, 2])
  classifier = Classifier(sde, component_logits)
  score = condition_on(MIXTURE.score(sde), ByClassifier(classifier.logits, 1.0), ())
  expected = jnp.stack([component_score(sde, int(k))(x[i : i + 1], t[i : i + 1])[0] for i, k in enumerate(y)])
  assert_equal_scores(score(x, t, y), expected)
  unguided = condition_on(MIXTURE.score(sde), ByClassifier(classifier.logits, 0.0), ())
  assert_equal_scores(unguided(x, t, y), MIXTURE.score(sde)(x, t))
  assert hash(ByClassifier(component_logits, 1.0)) == hash(ByClassifier(component_logits, 1.0))


def test_a_classifier_s_loss_is_the_cross_entropy_at_times_spread_over_the_batch():
  """A network without opinion loses log 3 everywhere; stratified times fall one in each share of the batch."""
  seen = []
  network = lambda params, x, ratio: seen.append(ratio) or jnp.zeros((len(x), 3))
  classifier = Classifier(VE(), network, eps=1e-3, stratified=True)
  keys, index = example_keys(jax.random.key(0), jnp.arange(8)), jnp.arange(8)
  losses = classifier((), keys, jnp.zeros((8, D)), index, 8, y=index % 3)
  np.testing.assert_allclose(losses, np.log(3), rtol=1e-6)
  share = (np.log(np.asarray(seen[0])) - np.log(0.01)) / np.log(50 / 0.01)
  assert np.array_equal(np.floor(8 * (share - 1e-3)), np.arange(8))


def conditional_mixture(x, t, y):
  """The score of component y, of all for y < 0, as a class-conditional network's."""
  sde = VP()
  scores = jnp.stack([MIXTURE.score(sde)(x, t), *(component_score(sde, k)(x, t) for k in range(3))])
  return jnp.take_along_axis(scores, (jnp.maximum(y, -1) + 1)[None, :, None], axis=0)[0]


def test_classifier_free_guidance_goes_from_all_classes_to_one_and_beyond():
  sde, (x, t) = VP(), points(VP())
  x, t, y = x.astype(jnp.float32), t.astype(jnp.float32), jnp.array([0, 1, 2, 0, 1, 2])
  free, bound = conditional_mixture(x, t, -jnp.ones_like(y)), conditional_mixture(x, t, y)
  for scale in (0.0, 1.0, 2.5):
    guided = condition_on(conditional_mixture, ClassifierFree(sde, scale))
    np.testing.assert_allclose(guided(x, t, y), free + scale * (bound - free), rtol=1e-4, atol=1e-4)
  ratio = np.asarray(sde.sigma(t) / sde.alpha(t))
  low, high = float(ratio[2] * 0.99), float(ratio[3] * 1.01)
  partly = condition_on(conditional_mixture, ClassifierFree(sde, 3.0, low, high))(x, t, y)
  np.testing.assert_allclose(partly[2:4], (free + 3 * (bound - free))[2:4], rtol=1e-4, atol=1e-4)
  outside = np.array([0, 1, 4, 5])
  np.testing.assert_allclose(partly[outside], bound[outside], rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="low < high"):
    ClassifierFree(sde, 1.0, 2.0, 1.0)
  with pytest.raises(ValueError, match="must not be negative"):
    ClassifierFree(sde, -1.0)


# --- configs ------------------------------------------------------------------------------------------------------


def config_with(**guidance):
  config = quickstart.get_config()
  config.guidance.update(guidance)
  return config


@pytest.mark.parametrize(
  ("guidance", "message"),
  [
    ({"task": "paint"}, "guidance.task='paint' is unknown.*Did you mean 'inpaint'"),
    ({"task": "inpaint", "method": "dpss"}, "guidance.method='dpss' is unknown.*Did you mean 'dps'"),
    ({"task": "jpeg", "method": "pigdm"}, "is not linear.*Use 'dps'"),
    ({"task": "class"}, "needs guidance.classifier, the workdir"),
    ({"task": "class", "method": "classifier_free"}, "needs a class-conditional network"),
    ({"task": "inpaint", "noise": -0.1}, "must not be negative"),
    ({"task": "edit", "t0": 1.5}, "guidance.t0 must lie in"),
    ({"task": "edit", "method": "dps"}, "has no guidance.method"),
  ],
)
def test_guidance_that_cannot_work_is_refused_before_anything_is_built(guidance, message):
  with pytest.raises(BadInput, match=message):
    resolve(config_with(**guidance))


def test_masks_are_checked_against_the_images(tmp_path):
  good, large, gray = (str(tmp_path / f"{name}.png") for name in ("good", "large", "gray"))
  pixels = np.zeros((8, 8), np.uint8)
  pixels[2:] = 255
  Image.fromarray(pixels).save(good)
  Image.fromarray(np.zeros((9, 9), np.uint8)).save(large)
  Image.fromarray(np.full((8, 8), 7, np.uint8)).save(gray)
  make = lambda mask: guide.make_operator(resolve(config_with(task="inpaint", mask=mask)), 2)
  np.testing.assert_array_equal(make(good).mask[1, :, :, 0], pixels > 0)
  for mask, message in (
    (large, "has 9 x 9 pixels; the model's images have 8 x 8"),
    (gray, "must be black .0, missing. and white"),
    ("middle", "is none of left, right, top, bottom, center, random"),
  ):
    with pytest.raises(BadInput, match=message):
      make(mask)
  for task, options, message in (
    ("super_resolution", {"factor": 3}, "does not divide images of 8 x 8"),
    ("colorize", {}, "needs data.num_channels=3"),
    ("fourier", {"fraction": 0.0}, r"must lie in \(0, 1\]"),
    ("motion_deblur", {"length": 30}, r"must lie in \[2, 7\] pixels"),
  ):
    with pytest.raises(BadInput, match=message):
      guide.make_operator(resolve(config_with(task=task, **options)), 2)


def test_every_task_has_an_operator_that_is_sound():
  """The command line's operators, on images of three channels: each passes the adjoint's test it is made with."""
  from score_sde.run.config import LINEAR_TASKS, NONLINEAR_TASKS

  for task in (*LINEAR_TASKS, *NONLINEAR_TASKS):
    config = config_with(task=task, length=5)
    config.data.num_channels = 3
    operator = guide.make_operator(resolve(config), 2)
    assert operator.apply(jnp.zeros(IMAGES)).shape[0] == 2


def test_a_classifier_and_a_model_of_scores_are_told_apart():
  config = quickstart.get_config()
  config.training.task = "classifier"
  with pytest.raises(BadInput, match="the classifier is 'wideresnet'"):
    build(config)
  from configs.classifier import digits

  config = digits.get_config()
  config.model.num_classes = 0
  with pytest.raises(BadInput, match=r"needs model\.num_classes"):
    build(config)
  config = digits.get_config()
  config.eval.enable_bpd = True
  with pytest.raises(BadInput, match="has no likelihood"):
    build(config)
  with pytest.raises(BadInput, match=re.escape("holds no trained classifier. Train one")):
    load_classifier("/nowhere")


# --- masks ------------------------------------------------------------------------------------------------------------


def test_values_of_unknown_pixels_are_not_used_even_if_they_are_nan():
  y = jnp.array([0.5, jnp.nan])
  known = ss.guidance.inpaint(jnp.array([1.0, 0.0]), y)
  np.testing.assert_array_equal(known.y, [[0.5, 0.0]])


def test_masks_fit_their_images_or_are_refused():
  image = jnp.zeros((8, 8, 1))
  for mask in (np.ones((8, 8)), np.ones((8, 7, 1)), np.ones((8, 8, 3)), np.ones((2, 3, 8, 8, 1))):
    with pytest.raises(ValueError, match=r"does not fit y of \[1, 8, 8, 1\]"):
      ss.guidance.inpaint(mask, image)
  several = ss.guidance.inpaint(np.ones((4, 8, 8, 1)), image)  # several masks of one image
  assert several.y.shape == (4, 8, 8, 1)
  assert several.noise.shape == (4,)
  one = ss.guidance.inpaint(np.ones((8, 8, 1)), jnp.zeros((3, 8, 8, 3)))  # one mask of several, for all channels
  assert one.y.shape == (3, 8, 8, 3)


def test_motion_blur_takes_all_lengths_that_it_names():
  with pytest.raises(ValueError, match=r"length=8 must lie in \[2, 7\]"):
    operators.motion_blur(np.zeros(1), 8, 8)
  for length in (2, 7):
    assert operators.motion_blur(np.zeros(1), 8, length).apply(jnp.ones((1, 8, 8, 1))).shape == (1, 8, 8, 1)
  assert operators.motion_blur(np.zeros(1), 9, 9).apply(jnp.ones((1, 9, 9, 1))).shape == (1, 9, 9, 1)


@pytest.mark.parametrize(("values", "message"), [
  ({"task": "inpaint", "method": "dps", "paper_steps": 1000}, r"num_steps=1000 --config.sampling.grid=uniform"),
  ({"task": "edit", "t0": 0.5, "method": None, "sampling.temperature": 0.8}, "would scale the image"),
])  # fmt: skip
def test_settings_that_would_change_the_method_silently_are_refused(values, message):
  config = quickstart.get_config()
  for key, value in values.items():
    section, name = key.split(".") if "." in key else ("guidance", key)
    config[section][name] = value
  config.sampling.method = "ode" if values["task"] == "edit" else "pc"
  with pytest.raises(BadInput, match=message):
    resolve(config)
