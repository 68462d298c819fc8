"""Parameterizations and denoising losses against the official numbers and against exact posterior means."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.batch import example_keys, expand
from score_sde.losses import ScoreMatching
from score_sde.losses import score_matching as losses
from score_sde.parameterization import PREDICTIONS, ScoreModel
from score_sde.sde import VE, VP, SubVP

SDES = {"ve": VE(), "vp": VP(), "subvp": SubVP()}
CASE = golden_cases.load("losses_samplers")
MIXTURE = analytic.GaussianMixture(
  means=[[0.5, -0.3], [-0.6, 0.4]],
  covariances=[[[0.05, 0.02], [0.02, 0.04]], [[0.02, 0.0], [0.0, 0.06]]],
  weights=[0.3, 0.7],
)


def golden_network(params, x, labels, keys):
  return jnp.sin(x) + 0.1 * expand(jnp.cos(labels.astype(x.dtype) / 100), x)


@pytest.mark.parametrize("name", [k for k in CASE if k.startswith("loss/")])
def test_official_losses_agree(name, x64):
  _, sde, kind, *options = name.split("/")
  options = dict(o.split("=") for o in options)
  model = ScoreModel(
    SDES[sde],
    golden_network,
    parameterization="score" if sde == "ve" else "noise",
    conditioning="sigma" if sde == "ve" else "time",
    num_scales=None if kind == "continuous" else 1000,
  )
  data, t, z, labels = (jnp.asarray(CASE[k]) for k in ("data", "t", "z", "labels"))
  reduce_mean = options["reduce_mean"] == "True"
  if kind == "continuous":
    weighting = "likelihood" if options["likelihood_weighting"] == "True" else "simple"
    got = ScoreMatching(model, weighting=weighting, reduce_mean=reduce_mean).at_time(None, data, t, z)
  else:
    level = model.level_of_index(labels, data.dtype)
    got = ScoreMatching(model, reduce_mean=reduce_mean).at_level(None, data, level, None, z)
  assert float(jnp.mean(got)) == pytest.approx(float(CASE[name]), rel=1e-12)


def oracle(prediction, sde):
  """A network that outputs exactly what `prediction` asks for, from the exact posterior of MIXTURE; t is its label."""

  def network(params, x, t, keys):
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    spread = jnp.sqrt(sigma**2 + (0.5 * alpha) ** 2)
    x = x * spread if prediction == "edm" else x
    data = MIXTURE.posterior_mean(sde, x, t)
    noise = (x - alpha * data) / sigma
    return {
      "score": -noise / sigma,
      "noise": noise,
      "data": data,
      "velocity": alpha * noise - sigma * data,
      "flow": noise - data,
      "edm": (data - alpha * 0.25 * x / spread**2) * spread / (sigma * 0.5),
    }[prediction]

  return network


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_every_prediction_gives_the_same_score_noise_and_data(prediction, sde, x64, monkeypatch):
  """Tweedie's formula in all its forms, from an exact network."""
  monkeypatch.setitem(losses.ScoreModel.level.__globals__["CONDITIONINGS"], "time", lambda sde, t: t)
  model = ScoreModel(sde, oracle(prediction, sde), prediction, conditioning="time")
  t = jnp.array([1e-3, 0.05, 0.3, 0.7, 1.0])
  x = jax.random.normal(jax.random.key(0), (5, 2))
  sigma = sde.sigma(t)[:, None]
  score = MIXTURE.score(sde)(x, t)
  np.testing.assert_allclose(model.score(None, x, t), score, rtol=1e-6)
  np.testing.assert_allclose(model.noise(None, x, t), -sigma * score, rtol=1e-6)
  np.testing.assert_allclose(model.data(None, x, t), MIXTURE.posterior_mean(sde, x, t), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_the_squared_error_of_the_noise_in_every_prediction(prediction, x64, monkeypatch):
  monkeypatch.setitem(losses.ScoreModel.level.__globals__["CONDITIONINGS"], "time", lambda sde, t: t)
  sde = VP()
  model = ScoreModel(sde, oracle(prediction, sde), prediction, conditioning="time")
  x0, z = jax.random.normal(jax.random.key(1), (2, 5, 2))
  t = jnp.array([1e-3, 0.05, 0.3, 0.7, 1.0])
  x = expand(sde.alpha(t), x0) * x0 + expand(sde.sigma(t), x0) * z
  expected = jnp.mean((model.noise(None, x, t) - z) ** 2, axis=1)
  np.testing.assert_allclose(ScoreMatching(model).at_time(None, x0, t, z), expected, rtol=1e-6)


def test_losses_are_accurate_in_float32_at_the_smallest_time():
  """At t = 1e-5 sub-VP's sigma is 1e-6: converting to a score and back would lose every digit of the data's error."""
  zero = lambda params, x, labels, keys: jnp.zeros_like(x)
  x0, z = jax.random.normal(jax.random.key(1), (2, 5, 2))
  t = jnp.full((5,), 1e-5)
  noise = ScoreMatching(ScoreModel(SubVP(), zero, "noise", "time")).at_time(None, x0, t, z)
  np.testing.assert_allclose(noise, jnp.mean(z**2, axis=1), rtol=1e-6)
  # With F = 0 the "edm" prediction is c_skip x, whose error in the noise is alpha² sigma_data² z / (...) ~ z.
  edm = ScoreMatching(ScoreModel(SubVP(), zero, "edm", "sigma")).at_time(None, x0, t, z)
  np.testing.assert_allclose(edm, jnp.mean(z**2, axis=1), rtol=1e-4)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_importance_sampling_draws_times_uniform_in_log_snr(sde, x64):
  t, normalizer = losses.importance_times(sde, jnp.linspace(0, 1, 11), 1e-5)
  first, last = sde.log_snr(jnp.array(1e-5)), sde.log_snr(jnp.array(1.0))
  np.testing.assert_allclose(sde.log_snr(t), jnp.linspace(first, last, 11), atol=1e-6)
  assert normalizer == pytest.approx(float(first - last))


def test_importance_sampling_leaves_the_likelihood_weighted_loss_unchanged_and_lowers_its_variance(x64):
  model = ScoreModel(VP(), lambda params, x, labels, keys: 0.9 * jnp.tanh(x), "noise", "time")
  keys = example_keys(jax.random.key(0), jnp.arange(200_000))
  x0 = MIXTURE.sample(jax.random.key(1), len(keys))
  values = {}
  for importance in (False, True):
    # eps = 1e-2 bounds the weight, so that plain sampling has a variance to compare with.
    sampling = "importance" if importance else "uniform"
    loss = ScoreMatching(model, eps=1e-2, weighting="likelihood", time_sampling=sampling)
    values[importance] = np.asarray(loss(None, keys, x0, jnp.arange(len(keys)), len(keys)))
  error = np.hypot(*(v.std() / np.sqrt(len(keys)) for v in values.values()))
  assert abs(values[True].mean() - values[False].mean()) < 4 * error
  assert values[True].var() < 0.5 * values[False].var()


def test_edm_weighting_and_times_are_those_of_karras():
  """(sigma² + sd²) / (sigma sd)² ‖D(x) - x_0‖² with log sigma ~ N(P_mean, P_std²); under VP, of x / alpha."""
  sd, network = 0.5, lambda params, x, labels, keys: jnp.tanh(x)
  x0, z = jax.random.normal(jax.random.key(1), (2, 64, 3))
  for sde in (VE(0.002, 80.0), VP()):
    t = losses.lognormal_times(sde, (jnp.arange(64) + 0.5) / 64, 1e-5, -1.2, 1.2)
    log_sigma = np.log(np.asarray(sde.sigma(t) / sde.alpha(t)))
    assert log_sigma.mean() == pytest.approx(-1.2, abs=1e-3)
    assert log_sigma.std() == pytest.approx(1.2, rel=0.03)
    model = ScoreModel(sde, network, "edm", "sigma", sigma_data=sd)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    denoised = model.data(None, alpha * x0 + sigma * z, t)
    ratio = np.exp(log_sigma)
    expected = (ratio**2 + sd**2) / (ratio * sd) ** 2 * np.mean((denoised - x0) ** 2, axis=1)
    got = ScoreMatching(model, weighting="edm").at_time(None, x0, t, z)
    np.testing.assert_allclose(got, expected, rtol=2e-3)


def test_stratified_times_fill_every_stratum(monkeypatch):
  seen = []
  monkeypatch.setattr(ScoreMatching, "at_time", lambda self, params, x0, t, z, **_: seen.append(t) or t)
  model = ScoreModel(VP(), golden_network, "noise", "time")
  loss = ScoreMatching(model, stratified=True)
  loss(None, example_keys(jax.random.key(0), jnp.arange(64)), jnp.zeros((64, 2)), jnp.arange(64), 64)
  assert np.array_equal(np.floor(np.asarray(seen[0]) * 64), np.arange(64))


def test_options_that_contradict_each_other_are_refused():
  discrete = ScoreModel(VP(), golden_network, "noise", num_scales=1000)
  with pytest.raises(ValueError, match="needs a continuous model"):
    ScoreMatching(discrete, weighting="likelihood")
  with pytest.raises(ValueError, match="set both"):
    ScoreMatching(discrete, time_sampling="importance")
  with pytest.raises(ValueError, match=r"eps=0.0 must be positive"):
    ScoreMatching(discrete, eps=0.0)
