"""Predictors, correctors and whole samplers against the official numbers and against exact laws."""

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.batch import example_keys, expand, fold
from score_sde.sampling import (
  CORRECTORS,
  PREDICTORS,
  correctors,
  make_grid,
  ode_sampler,
  predictor_corrector,
  predictors,
)
from score_sde.sde import VE, VP, SubVP

SDES = {"ve": VE(), "vp": VP(), "subvp": SubVP()}
CASE = golden_cases.load("losses_samplers")
EPS = {"ve": 1e-5, "vp": 1e-3, "subvp": 1e-3}
MIXTURE = analytic.GaussianMixture(
  means=[[0.5, -0.3], [-0.6, 0.4]],
  covariances=[[[0.05, 0.02], [0.02, 0.04]], [[0.02, 0.0], [0.0, 0.06]]],
  weights=[0.3, 0.7],
)


def golden_score(x, t):
  return -jnp.tanh(x) * expand(1 + t, x)


def cases(kind):
  return [k.removesuffix("/x") for k in CASE if k.startswith(kind) and k.endswith("/x")]


def assert_agrees(name, got):
  for value, part in zip(got, ("x", "x_mean"), strict=True):
    assert golden_cases.relative_error(value, CASE[f"{name}/{part}"]) < 1e-12, part


@pytest.fixture
def fixed_noise(x64, monkeypatch):
  """Replaces drawn noise by the arrays handed to it, in order; one array is used again and again."""

  def use(*arrays):
    queue = list(arrays)
    draw = lambda keys, x: jnp.asarray(queue.pop(0) if len(queue) > 1 else queue[0])
    monkeypatch.setattr(predictors, "normal", draw)
    monkeypatch.setattr(correctors, "normal", draw)

  return use


KEYS = jax.random.split(jax.random.key(0), 6)


@pytest.mark.parametrize("name", cases("predictor/"))
def test_official_predictors_agree(name, fixed_noise):
  _, sde, predictor, flow = name.split("/")
  fixed_noise(CASE["z"])
  x, t = jnp.asarray(CASE["x"]), jnp.asarray(CASE["t"])
  table = sde == "ve" and predictor != "euler_maruyama"
  stop = (jnp.round(t * 999) - 1) / 999 if table else t - 1 / 1000
  step = PREDICTORS[predictor](SDES[sde], golden_score, official=True, probability_flow=flow.endswith("True"))
  assert_agrees(name, step(KEYS, x, t, t, stop))


@pytest.mark.parametrize("name", cases("corrector/"))
def test_official_correctors_agree(name, fixed_noise):
  _, sde, corrector, steps = name.split("/")
  fixed_noise(CASE["z"])
  x, t = jnp.asarray(CASE["x"]), jnp.asarray(CASE["t"])
  options = {"snr": 0.16, "n_steps": int(steps.split("=")[1]), "num_scales": 1000, "batch_mean": jnp.mean}
  assert_agrees(name, CORRECTORS[corrector](SDES[sde], golden_score, **options)(KEYS, x, t))


@pytest.mark.parametrize("name", cases("chain/"))
def test_official_chains_agree(name, fixed_noise):
  """Ten steps from noise to data on the official grid; VE corrects before it predicts."""
  _, which, predictor = name.split("/")
  sde = SDES[which]
  grid = make_grid("official", sde, 10, EPS[which], predictor)
  fixed_noise(*(CASE["chain/noise"] if which == "ve" else CASE["chain/noise"][1::2]))
  corrector = "langevin" if which == "ve" else "none"
  correct = CORRECTORS[corrector](sde, golden_score, snr=0.16, batch_mean=jnp.mean)
  predict = PREDICTORS[predictor](sde, golden_score, official=True)
  x = jnp.asarray(CASE["chain/x_T_standard_normal"]) * sde.prior_std
  for times in zip(*grid, strict=True):
    t, start, stop = (jnp.full(6, a) for a in times)
    x, _ = correct(KEYS, x, t)
    x, x_mean = predict(KEYS, x, t, start, stop)
  assert_agrees(name, (x, x_mean))


def test_the_compiled_sampler_is_the_plain_loop():
  """Chunks, donation and frames change nothing: 60 steps cross a chunk's border."""
  sde, n = VP(), 60
  grid = make_grid("uniform", sde, n, 1e-3)
  options = {"predictor": "euler_maruyama", "corrector": "langevin", "snr": 0.1}
  sample = predictor_corrector(sde, grid, **options)
  score = jax.tree_util.Partial(golden_score)
  seen = []
  x, info = sample(score, jax.random.key(3), (4, 2), progress=lambda done, total: seen.append((done, total)))
  framed, with_frames = sample(score, jax.random.key(3), (4, 2), frames=7)

  keys = example_keys(jax.random.key(3), jnp.arange(4))
  y = sde.prior_sample(fold(keys, 0), (4, 2))
  correct = CORRECTORS["langevin"](sde, golden_score, snr=0.1)
  predict = PREDICTORS["euler_maruyama"](sde, golden_score)

  @jax.jit
  def step(i, y, times):
    t, start, stop = (jnp.full(4, a) for a in times)
    step_keys = fold(fold(keys, 1), i)
    y, _ = correct(fold(step_keys, 0), y, t)
    return predict(fold(step_keys, 1), y, t, start, stop)

  for i, times in enumerate(np.stack(grid, axis=1).astype(np.float32)):
    y, y_mean = step(i, y, times)
  np.testing.assert_allclose(x, y_mean, rtol=2e-4, atol=2e-5)
  np.testing.assert_allclose(framed, x, rtol=2e-4, atol=2e-5)
  assert seen[-1] == (n, n)
  assert info["nfe"] == 2 * n
  assert info["finite"].all()
  assert len(with_frames["trajectory"]) == 8


def test_a_sample_depends_on_its_own_key_alone():
  """Whatever the batch: with norms per sample; the paper's batch-averaged norms couple samples."""
  sde = VE(sigma_max=5.0)
  score = jax.tree_util.Partial(golden_score)
  for batch_norms, independent in ((False, True), (True, False)):
    sample = predictor_corrector(sde, make_grid("uniform", sde, 20, 1e-3), batch_norms=batch_norms)
    whole, _ = sample(score, jax.random.key(0), (6, 2))
    part, _ = sample(score, jax.random.key(0), (2, 2), first=4)
    assert np.allclose(whole[4:], part, rtol=1e-4, atol=1e-5) == independent


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize(
  ("predictor", "corrector"),
  [("euler_maruyama", "none"), ("reverse_diffusion", "langevin"), ("ancestral_sampling", "none")],
)
def test_samples_have_the_moments_of_the_data(sde, predictor, corrector):
  """With the exact score of a mixture; bounds are four standard errors plus the bias of 300 steps."""
  n = 4000
  grid = make_grid("log_snr" if sde is SDES["ve"] else "uniform", sde, 300, 1e-3)
  # Norms over the batch: in two dimensions a single score's norm varies so much that its steps are biased.
  sample = predictor_corrector(sde, grid, predictor=predictor, corrector=corrector, snr=0.05, batch_norms=True)
  x, info = sample(jax.tree_util.Partial(MIXTURE.score(sde)), jax.random.key(0), (n, 2))
  truth = np.asarray(MIXTURE.sample(jax.random.key(1), 200_000))
  assert info["finite"].all()
  error = truth.std(axis=0) / np.sqrt(n)
  np.testing.assert_array_less(np.abs(np.asarray(x).mean(axis=0) - truth.mean(axis=0)), 4 * error + 0.01)
  np.testing.assert_allclose(np.cov(np.asarray(x).T), np.cov(truth.T), atol=0.03)
  left = np.mean(np.asarray(x)[:, 0] < 0)
  assert left == pytest.approx(np.mean(truth[:, 0] < 0), abs=4 * np.sqrt(0.25 / n) + 0.01)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_ode_sampler_carries_the_prior_to_a_gaussian_exactly(sde):
  """For N(m, c² I) the flow is x -> m + (x_T - alpha m) sqrt(v(eps) / v(T)), v = (alpha c)² + sigma²."""
  mean, c = jnp.array([0.5, -0.3]), 0.2
  data = analytic.gaussian(mean, c**2 * np.eye(2))
  sample = ode_sampler(sde, eps=1e-3, denoise=False)
  x, info = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(0), (16, 2))
  z = sde.prior_sample(fold(example_keys(jax.random.key(0), jnp.arange(16)), 0), (16, 2))
  eps, end = jnp.array(1e-3), jnp.array(sde.T)
  variance = lambda t: (sde.alpha(t) * c) ** 2 + sde.sigma(t) ** 2
  expected = sde.alpha(eps) * mean + (z - sde.alpha(end) * mean) * jnp.sqrt(variance(eps) / variance(end))
  np.testing.assert_allclose(x, expected, atol=2e-3)
  assert info["finite"].all()
  assert ((info["nfe"] - 1) % 6 == 0).all()


def test_the_reported_evaluations_are_those_made(monkeypatch):
  """Counted by a callback in the score; a single sample, so that no other sample's steps are counted with it."""
  calls = []

  def score(x, t):
    jax.debug.callback(lambda t: calls.append(float(t[0])), t)
    return -x

  sample = predictor_corrector(VP(), make_grid("uniform", VP(), 7, 1e-3), corrector="langevin", n_steps=3)
  _, info = sample(jax.tree_util.Partial(score), jax.random.key(0), (1, 2))
  jax.effects_barrier()
  assert info["nfe"] == len(calls) == 7 * 4
  calls.clear()
  _, info = ode_sampler(VP(), eps=1e-3)(jax.tree_util.Partial(score), jax.random.key(0), (1, 2))
  jax.effects_barrier()
  assert int(info["nfe"][0]) == len(calls)


def test_broken_samples_are_flagged():
  """A score that is NaN for some samples, and an ODE that runs out of steps."""
  nan = jax.tree_util.Partial(lambda x, t: jnp.where(x[:, :1] > 0, jnp.nan, -x))
  x, info = predictor_corrector(VP(), make_grid("uniform", VP(), 5, 1e-3), corrector="none")(
    nan, jax.random.key(0), (32, 2)
  )
  assert np.array_equal(info["finite"], np.isfinite(np.asarray(x)).all(axis=1))
  assert 0 < info["finite"].sum() < 32
  _, info = ode_sampler(VP(), eps=1e-3, max_steps=3)(jax.tree_util.Partial(golden_score), jax.random.key(0), (4, 2))
  assert not info["finite"].any()


@pytest.mark.parametrize("name", ["uniform", "log_snr"])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_ordinary_grids_run_from_noise_to_eps_without_gaps(sde, name):
  grid = make_grid(name, sde, 17, 1e-3)
  assert grid.start[0] == sde.T
  assert grid.stop[-1] == pytest.approx(1e-3)
  np.testing.assert_array_equal(grid.start[1:], grid.stop[:-1])
  assert (grid.stop < grid.start).all()


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: make_grid("uniform", VP(), 0, 1e-3), "at least 1"),
    (lambda: make_grid("uniform", VP(), 5, 1.5), "noise to data"),
    (lambda: make_grid("linear", VP(), 5, 1e-3), "choose one of official"),
    (lambda: predictor_corrector(VP(), None, predictor="euler"), "choose one of euler_maruyama"),
    (lambda: predictor_corrector(VP(), None, corrector="mcmc"), "choose one of langevin"),
    (lambda: predictor_corrector(VP(), None, predictor="none", corrector="none"), "nothing would move"),
    (lambda: predictor_corrector(SubVP(), None, predictor="ancestral_sampling", official=True), "no official grid"),
    (lambda: ode_sampler(VP(), eps=1e-3, solver="rk99"), "choose one of dopri5"),
  ],
)  # fmt: skip
def test_samplers_that_cannot_work_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
