"""Every form of score matching against what integration by parts says of it, on densities known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import matching
from score_sde import analytic
from score_sde.batch import example_keys, fold, sum_over_dims
from score_sde.losses import OBJECTIVES, ScoreMatching
from score_sde.losses import score_matching as losses
from score_sde.parameterization import ScoreModel
from score_sde.sde import VE, VP, Reflected

MIXTURE = analytic.GaussianMixture(
  means=[[1.0, -0.5], [-0.8, 0.6]],
  covariances=[[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]],
  weights=[0.4, 0.6],
)
SIGMA = 0.5
T = VE().time_of_log_snr(jnp.asarray(-2 * np.log(SIGMA)))


def network(params, x):
  """A field that is no gradient and far from the score."""
  hidden = jnp.tanh(x @ params["a"] + params["b"])
  return hidden @ params["c"] - 0.3 * x


def parameters(key, dims=2, width=6):
  a, b, c = jax.random.split(key, 3)
  return {
    "a": jax.random.normal(a, (dims, width)),
    "b": jax.random.normal(b, (width,)),
    "c": 0.5 * jax.random.normal(c, (width, dims)),
  }


def exact(x):
  return MIXTURE.score(VE())(x, jnp.full(len(x), T))


def means_of_chunks(values, chunks=100):
  """(mean, standard error) of numbers (n, ...) over the first axis."""
  parts = np.asarray(values).reshape(chunks, -1, *np.shape(values)[1:]).mean(axis=1)
  return parts.mean(axis=0), parts.std(axis=0, ddof=1) / np.sqrt(chunks)


def objective(name, params, x0, z, probes):
  """One of the objectives at the noise level SIGMA, (B,)."""
  field = lambda x: network(params, x)
  x = x0 + SIGMA * z
  if name == "dsm":
    return losses.denoising(field, x0, z, SIGMA)
  if name == "esm":
    return losses.explicit(field, exact, x)
  return losses.IMPLICIT[name](field, x, probes, None, 1e-3)


@pytest.fixture(scope="module")
def draws():
  n = 200_000
  keys = jax.random.split(jax.random.key(0), 3)
  return MIXTURE.sample(keys[0], n), jax.random.normal(keys[1], (n, 2)), jax.random.normal(keys[2], (1, n, 2))


@pytest.mark.parametrize("name", [n for n in OBJECTIVES if n != "esm"])
def test_the_gradient_in_parameters_is_that_of_explicit_score_matching(name, draws):
  """All are ½ E‖s - grad log p‖² up to a constant; compared on the same draws, so that their difference varies."""
  params = parameters(jax.random.key(1))

  def difference(params, x0, z, v):
    batch = (x0, z, v[None])
    return jnp.mean(objective(name, params, *batch) - objective("esm", params, *batch))

  chunk = lambda a: a.reshape(100, -1, *a.shape[1:])
  gradients = jax.jit(jax.vmap(jax.grad(difference), in_axes=(None, 0, 0, 0)))(
    params, *(chunk(a) for a in (draws[0], draws[1], draws[2][0]))
  )
  scale = jax.grad(lambda p: jnp.mean(objective("esm", p, *draws)))(params)
  for got, size in zip(jax.tree.leaves(gradients), jax.tree.leaves(scale), strict=True):
    mean, error = means_of_chunks(got)
    assert np.all(np.abs(mean) < 4.5 * error + 1e-5)
    assert np.all(error < 0.05 * np.abs(size).max())  # or the line above would say nothing


def test_implicit_and_explicit_score_matching_differ_by_half_the_mean_square_of_the_score(draws):
  x = draws[0] + SIGMA * draws[1]
  constant = 0.5 * sum_over_dims(exact(x) ** 2)
  for seed in range(3):
    params = parameters(jax.random.key(seed))
    left = objective("esm", params, *draws) - objective("ism", params, *draws) - constant
    mean, error = means_of_chunks(left)
    assert abs(mean) < 4 * error
    assert error < 0.01 * constant.mean()


def test_sliced_score_matching_makes_one_pass_and_finite_differences_two_evaluations():
  calls = []

  def score(x):
    calls.append(x)
    return -x

  x, probes = jnp.ones((3, 8)), jnp.ones((1, 3, 8))
  for name, evaluations in (("ssm", 1), ("ssm_vr", 1), ("ism", 1), ("fd_ssm", 2)):
    calls.clear()
    losses.IMPLICIT[name](score, x, probes, None, 1e-2)
    assert len(calls) == evaluations


def test_the_exact_trace_is_the_mean_over_all_signs():
  """Four probes of two signs each are all there are in two dimensions: their mean is no estimate."""
  params = parameters(jax.random.key(2))
  x = jax.random.normal(jax.random.key(3), (5, 2))
  signs = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
  probes = jnp.broadcast_to(signs[:, None], (4, 5, 2))
  field = lambda x: network(params, x)
  np.testing.assert_allclose(losses.sliced_variance_reduced(field, x, probes), losses.implicit(field, x), rtol=1e-4)
  np.testing.assert_allclose(losses.sliced(field, x, probes), losses.implicit(field, x), rtol=1e-4)


def test_finite_differences_are_off_by_the_square_of_their_step(x64):
  params = parameters(jax.random.key(2))
  x, probes = jax.random.normal(jax.random.key(3), (2, 50, 2))
  field = lambda x: network(params, x)
  exact = losses.sliced_variance_reduced(field, x, probes[None])
  errors = [jnp.abs(losses.finite_difference(field, x, probes[None], step=h) - exact).mean() for h in (0.02, 0.01)]
  assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [8, 32, pytest.param(128, marks=pytest.mark.slow)])
def test_the_variance_reduced_form_has_less_variance_from_eight_dimensions_on(dims):
  """With Gaussian probes, at the score of a standard normal and at a network's, far from it."""
  x = jax.random.normal(jax.random.key(0), (20_000, dims))
  probes = jax.random.normal(jax.random.key(1), (1, *x.shape))
  params = parameters(jax.random.key(2), dims, 32)
  for field in (lambda x: -x, lambda x: network(params, x)):
    # Of the probes alone: the exact objective is what both estimate.
    centre = losses.implicit(field, x)
    plain, reduced = (f(field, x, probes) - centre for f in (losses.sliced, losses.sliced_variance_reduced))
    assert reduced.var() < 0.9 * plain.var()


@pytest.mark.thorough
def test_every_objective_trains_through_the_same_loss_and_agrees_in_expectation(draws):
  """`ScoreMatching` scales them to the squared error of the noise; the explicit one lacks what x_t does not tell."""
  n = 100_000
  model = ScoreModel(VP(), lambda params, x, labels, keys: network(params, x), "noise", "time")
  params, keys = parameters(jax.random.key(1)), example_keys(jax.random.key(0), jnp.arange(n))
  x0, index = draws[0][:n], jnp.arange(n)
  means = {}
  for name in OBJECTIVES:
    loss = ScoreMatching(model, objective=name, target=MIXTURE.score(VP()), eps=0.05, probe="gaussian")
    means[name] = means_of_chunks(loss(params, keys, x0, index, n))
  for name, (mean, error) in means.items():
    if name != "esm":
      assert abs(mean - means["dsm"][0]) < 4 * np.hypot(error, means["dsm"][1]) + 2e-3
  assert means["esm"][0] < means["dsm"][0] - 0.1


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_every_weighting_multiplies_every_objective(weighting):
  model = ScoreModel(VP(), lambda params, x, labels, keys: network(params, x), "noise", "time")
  params, keys = parameters(jax.random.key(1)), example_keys(jax.random.key(0), jnp.arange(8))
  x0, z = jax.random.normal(jax.random.key(2), (2, 8, 2))
  t = jnp.linspace(0.1, 1, 8)
  sde = VP()
  ratio = sde.sigma(t) / sde.alpha(t)
  expected = {
    "simple": 1,
    "likelihood": -sde.dlog_snr(t),
    "edm": 1 + 4 * ratio**2,
    "flow": (1 + ratio) ** 2,
    "power": sde.sigma(t) ** -2,
    "min_snr": np.minimum(1, 5 * ratio**2),
  }[weighting]
  for name in ("dsm", "ssm_vr"):
    values = [
      ScoreMatching(model, objective=name, weighting=w, weighting_power=-2.0).at_time(params, x0, t, z, keys=keys)
      for w in ("simple", weighting)
    ]
    np.testing.assert_allclose(values[1], values[0] * expected, rtol=1e-4)


def test_one_noise_level_is_vincents_denoising():
  """Times of "single" all are those of sigma / alpha = single_sigma, and the loss is σ² times twice Vincent's."""
  sde = VE()
  model = ScoreModel(sde, lambda params, x, labels, keys: network(params, x), "score", "sigma")
  loss = ScoreMatching(model, time_sampling="single", single_sigma=SIGMA, reduce_mean=False)
  params, keys = parameters(jax.random.key(1)), example_keys(jax.random.key(0), jnp.arange(16))
  x0 = jax.random.normal(jax.random.key(2), (16, 2))
  z = losses.normal(fold(keys, losses.NOISE), x0)
  expected = SIGMA**2 * losses.denoising(lambda x: network(params, x), x0, z, SIGMA)
  np.testing.assert_allclose(loss(params, keys, x0, jnp.arange(16), 16), expected, rtol=1e-4)


def test_at_a_boundary_the_weight_keeps_integration_by_parts_true():
  """p(x) = a exp(a x) / (exp a - 1) on [0, 1] does not vanish at its ends: without the weight the identity fails."""
  a = 1.5
  sde = Reflected(VE(), 0.0, 1.0)
  u = (jnp.arange(200_000) + 0.5) / 200_000
  x = (jnp.log1p(u * jnp.expm1(a)) / a)[:, None]
  field = lambda x: jnp.sin(2 * x) - 0.5
  h = sde.interior(x)
  explicit = jnp.mean(0.5 * h * (field(x) - a) ** 2)
  weighted = jnp.mean(losses.implicit(field, x, sde.interior)) + jnp.mean(0.5 * h * a**2)
  assert float(weighted) == pytest.approx(float(explicit), abs=1e-4)
  plain = jnp.mean(losses.implicit(field, x)) + 0.5 * a**2
  assert abs(float(plain) - float(jnp.mean(0.5 * (field(x) - a) ** 2))) > 0.1


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"objective": "sm"}, "choose one of dsm, esm"),
    ({"objective": "esm"}, "exact score"),
    ({"weighting": "heavy"}, "choose one of simple"),
    ({"probe": "sphere"}, "rademacher, gaussian"),
    ({"num_probes": 0}, "num_probes=0 must be at least 1"),
    ({"time_sampling": "single", "single_sigma": 99.0}, "must be a noise level of the SDE"),
  ],
)
def test_settings_that_cannot_work_are_named(options, message):
  model = ScoreModel(VE(), lambda params, x, labels, keys: x, "score", "sigma")
  with pytest.raises(ValueError, match=message):
    ScoreMatching(model, **options)


def test_explicit_score_matching_of_a_discrete_model_is_refused():
  model = ScoreModel(VP(), lambda params, x, labels, keys: x, "noise", num_scales=100)
  with pytest.raises(ValueError, match="needs a continuous model"):
    ScoreMatching(model, objective="esm", target=MIXTURE.score(VP()))


def test_an_sde_without_a_kernel_refuses_what_needs_one():
  sde = Reflected(VE())
  with pytest.raises(ValueError, match="needs a closed-form kernel"):
    ScoreModel(sde, lambda params, x, labels, keys: x, "data")
  with pytest.raises(ValueError, match="no discrete noise levels"):
    ScoreModel(sde, lambda params, x, labels, keys: x, "noise", num_scales=10)
  model = ScoreModel(sde, lambda params, x, labels, keys: x, "noise")
  for options in ({"objective": "dsm"}, {"objective": "esm"}):
    with pytest.raises(ValueError, match="needs a closed-form kernel"):
      ScoreMatching(model, **options)
  for options in ({"weighting": "likelihood"}, {"time_sampling": "single"}):
    with pytest.raises(ValueError, match="needs a closed-form kernel"):
      ScoreMatching(model, objective="ssm_vr", **options)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "with_energy"), [*((n, False) for n in OBJECTIVES), ("ssm_vr", True)])
def test_trained_fields_agree_with_the_exact_score(name, with_energy):
  """On a mixture in two dimensions, on the densest 90% of the data: within 10% for every objective."""
  score, _ = matching.train(name, 800, with_energy)
  assert matching.error(score) < 0.1
