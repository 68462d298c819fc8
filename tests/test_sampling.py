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
  adaptive_sde,
  correctors,
  ddpm,
  make_grid,
  ncsn,
  ode_sampler,
  predictor_corrector,
  predictors,
  split_to_fit,
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


SLOW = pytest.mark.slow
VP_FAST = [pytest.param(sde, id=name, marks=[] if name == "vp" else SLOW) for name, sde in SDES.items()]


@pytest.mark.parametrize("sde", VP_FAST)
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


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_ode_sampler_carries_the_prior_to_a_gaussian_exactly(sde, batch_norm):
  """For N(m, c² I) the flow is x -> m + (x_T - alpha m) sqrt(v(eps) / v(T)), v = (alpha c)² + sigma²."""
  mean, c = jnp.array([0.5, -0.3]), 0.2
  data = analytic.gaussian(mean, c**2 * np.eye(2))
  sample = ode_sampler(sde, eps=1e-3, denoise=False, batch_norm=batch_norm)
  x, info = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(0), (16, 2))
  z = sde.prior_sample(fold(example_keys(jax.random.key(0), jnp.arange(16)), 0), (16, 2))
  eps, end = jnp.array(1e-3), jnp.array(sde.T)
  variance = lambda t: (sde.alpha(t) * c) ** 2 + sde.sigma(t) ** 2
  expected = sde.alpha(eps) * mean + (z - sde.alpha(end) * mean) * jnp.sqrt(variance(eps) / variance(end))
  np.testing.assert_allclose(x, expected, atol=2e-3)
  assert info["finite"].all()
  assert ((info["nfe"] - 1) % 6 == 0).all()
  assert (len(set(info["nfe"].tolist())) == 1) == batch_norm


@pytest.mark.slow
@pytest.mark.parametrize("sde", VP_FAST)
def test_adaptive_steps_find_the_data_and_are_each_samples_own(sde):
  """Covariance within four standard errors and 3%; rejected steps leave no bias, for the Brownian path is one."""
  data, n = analytic.gaussian([0.25, -0.5], np.array([[2.0, 0.6], [0.6, 0.5]]) / 16), 2000
  score = jax.tree_util.Partial(data.score(sde))
  sample = adaptive_sde(sde, eps=1e-3, rtol=0.05, denoise=False)
  x, info = sample(score, jax.random.key(2), (n, 2), frames=3)
  alpha, sigma = (float(f(jnp.array(1e-3))) for f in (sde.alpha, sde.sigma))
  covariance = alpha**2 * data.covariances[0] + sigma**2 * np.eye(2)
  variance = np.diag(covariance)
  assert (np.abs(np.mean(x, axis=0) - alpha * data.means[0]) < 4 * np.sqrt(variance / n) + 0.01).all()
  np.testing.assert_allclose(np.var(x, axis=0), variance, rtol=4 * np.sqrt(2 / n) + 0.03)
  assert info["finite"].all()
  assert (info["rejected"] > 0).any()
  assert len(set(info["nfe"].tolist())) > 20
  assert [round(t, 3) for t, *_ in info["trajectory"]] == [1.0, 0.667, 0.334, 0.001]
  part, its = sample(score, jax.random.key(2), (3, 2), first=5, frames=3)
  np.testing.assert_allclose(part, x[5:8], atol=1e-5)
  np.testing.assert_array_equal(its["nfe"], info["nfe"][5:8])


@pytest.mark.slow
@pytest.mark.parametrize("paper_step", [False, pytest.param(True, marks=SLOW)])
def test_ncsn_finds_the_data_and_denoises_last(paper_step):
  sde, n = VE(0.05, 4.0), 4000
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  options = {"num_scales": 20, "n_steps": 30, "snr": 0.2, "paper_step": paper_step}
  x, info = ncsn(sde, **options)(score, jax.random.key(0), (n, 2))
  last, with_last = ncsn(sde, denoise=True, **options)(score, jax.random.key(0), (n, 2))
  assert (info["nfe"], with_last["nfe"]) == (600, 601)
  np.testing.assert_allclose(last, MIXTURE.posterior_mean(sde, x, jnp.full(n, 1e-5)), atol=1e-4)
  truth = np.asarray(MIXTURE.sample(jax.random.key(1), 100_000))
  # A Langevin step of size e has variance 1 / (1 - e / 2v) times too large: up to 15% here, half by the paper's step.
  np.testing.assert_allclose(np.cov(np.asarray(x).T), np.cov(truth.T), atol=0.06)
  assert np.mean(np.asarray(x)[:, 0] < 0) == pytest.approx(np.mean(truth[:, 0] < 0), abs=0.05)


def test_ddpm_is_ancestral_sampling_on_the_official_grid():
  sde, score = VP(), jax.tree_util.Partial(golden_score)
  x, info = ddpm(sde, num_scales=30)(score, jax.random.key(0), (4, 2))
  options = {"predictor": "ancestral_sampling", "corrector": "none", "official": True}
  grid = make_grid("official", sde, 30, 1e-3, "ancestral_sampling")
  np.testing.assert_array_equal(x, predictor_corrector(sde, grid, **options)(score, jax.random.key(0), (4, 2))[0])
  assert info["nfe"] == 30
  other, _ = ddpm(sde, num_scales=30, posterior_variance=True)(score, jax.random.key(0), (4, 2))
  assert np.abs(other - x).max() > 1e-3


@pytest.mark.parametrize(("name", "paper"), [("langevin", False), ("ald", False), ("ald", True)])
def test_langevin_steps_leave_their_own_stationary_law(name, paper):
  """Steps of size e on N(0, v) settle at the variance v / (1 - e / 2v), not v: x -> (1 - e / v) x + sqrt(2 e) z.

  Of langevin e follows from norms averaged over the batch, E|z| / E|score| = sqrt(v) in one dimension, at its own law.
  """
  sde, n, snr, time = VP(), 20_000, 0.5, 0.3
  t = jnp.full(n, time)
  data = analytic.gaussian([0.0], [[0.5]])
  v = float(sde.alpha(t)[0]) ** 2 * 0.5 + float(sde.sigma(t)[0]) ** 2
  shrinkage = 1 + 2 * float(sde.dlog_alpha(t)[0]) / 1000
  options = {"snr": snr, "n_steps": 200, "paper": paper, "batch_mean": jnp.mean}
  correct = jax.jit(CORRECTORS[name](sde, data.score(sde), **options))
  x, _ = correct(example_keys(jax.random.key(0), jnp.arange(n)), 3 + jnp.zeros((n, 1)), t)
  if name == "ald":
    e = (1 if paper else 2) * shrinkage * (snr * float(sde.sigma(t)[0])) ** 2
    expected = v / (1 - e / (2 * v))
  else:  # with variance w, |score| averages sqrt(w) / v times |z|, so e = 2 a snr² v² / w, and w = v / (1 - e / 2v)
    expected = v * (1 + shrinkage * snr**2)
  assert expected > 1.05 * v
  assert np.var(x) == pytest.approx(expected, rel=4 * np.sqrt(2 / n))
  assert abs(np.mean(x)) < 4 * np.sqrt(expected / n)


def test_the_corrector_pulls_a_wrong_start_to_the_target():
  """From N(3, 0.1²) in place of the prior: the corrector brings the mean back, predictors alone keep more of it."""
  wrong = WrongPrior()
  data = analytic.gaussian([0.0, 0.0], 0.25 * np.eye(2))
  score, grid = jax.tree_util.Partial(data.score(VP())), make_grid("uniform", VP(), 100, 1e-3)
  off = {}
  for corrector in ("none", "langevin"):
    sample = predictor_corrector(wrong, grid, corrector=corrector, snr=0.3, n_steps=5, batch_norms=True)
    x, _ = sample(score, jax.random.key(0), (2000, 2))
    off[corrector] = np.abs(np.mean(x, axis=0)).max(), np.abs(np.std(x, axis=0) - 0.5).max()
  flow = predictor_corrector(wrong, grid, corrector="none", probability_flow=True)
  x, _ = flow(score, jax.random.key(0), (2000, 2))
  assert np.abs(np.mean(x, axis=0)).min() > 1
  assert off["langevin"][0] < 0.05
  assert off["langevin"][1] < 0.06


class WrongPrior(VP):
  def prior_sample(self, keys, shape, dtype=jnp.float32):
    return 3 + 0.1 * super().prior_sample(keys, shape, dtype)


@pytest.mark.slow
def test_batches_beyond_memory_are_split_and_the_samples_stay_the_same():
  """A sampler that holds at most five: the batch is halved until it fits, and the next batch at once."""
  sde, seen = VP(), []
  plain = adaptive_sde(sde, eps=1e-2, rtol=0.2)

  def small(score, key, shape, **options):
    seen.append(shape[0])
    if shape[0] > 5:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    return plain(score, key, shape, **options)

  score = jax.tree_util.Partial(lambda x, t, c: golden_score(x - c[:, None], t))
  options = {"frames": 2, "condition": jnp.arange(14.0), "first": 3}
  progress = []
  sample = split_to_fit(small)
  x, info = sample(score, jax.random.key(0), (14, 2), progress=lambda *a: progress.append(a), **options)
  whole, expected = plain(score, jax.random.key(0), (14, 2), **options)
  np.testing.assert_allclose(x, whole, atol=1e-5)
  for name in ("nfe", "finite", "t", "rejected"):
    np.testing.assert_array_equal(info[name], expected[name])
  for (t, x, _), (s, y, _) in zip(info["trajectory"], expected["trajectory"], strict=True):
    assert t == s
    np.testing.assert_allclose(x, y, atol=1e-4)
  assert seen == [14, 7, 3, 3, 3, 3, 2]
  assert progress[-1][0] == progress[-1][1]
  sample(score, jax.random.key(0), (6, 2), condition=jnp.arange(6.0))
  assert seen[7:] == [3, 3]
  with pytest.raises(jax.errors.JaxRuntimeError, match="elsewhere"):
    split_to_fit(lambda *_, **__: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL: elsewhere")))(
      score, jax.random.key(0), (4, 2)
    )


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
  for make in (ode_sampler, adaptive_sde):
    calls.clear()
    _, info = make(VP(), eps=1e-3)(jax.tree_util.Partial(score), jax.random.key(0), (1, 2))
    jax.effects_barrier()
    assert int(info["nfe"][0]) == len(calls), make


@pytest.mark.slow
def test_broken_samples_are_flagged():
  """A score that is NaN for some samples, and solves that run out of steps, with the time that they reached."""
  nan = jax.tree_util.Partial(lambda x, t: jnp.where(x[:, :1] > 0, jnp.nan, -x))
  x, info = predictor_corrector(VP(), make_grid("uniform", VP(), 5, 1e-3), corrector="none")(
    nan, jax.random.key(0), (32, 2)
  )
  assert np.array_equal(info["finite"], np.isfinite(np.asarray(x)).all(axis=1))
  assert 0 < info["finite"].sum() < 32
  for make in (ode_sampler, adaptive_sde):
    _, info = make(VP(), eps=1e-3, max_steps=3)(jax.tree_util.Partial(golden_score), jax.random.key(0), (4, 2))
    assert not info["finite"].any()
    assert ((info["t"] > 0.5) & (info["t"] < 1)).all(), make
    broken = jnp.arange(4) == 1
    nan = jax.tree_util.Partial(lambda x, t, c: jnp.where(c[:, None], jnp.nan, -x))
    _, info = make(VP(), eps=1e-3, max_steps=400)(nan, jax.random.key(0), (4, 2), condition=broken)
    np.testing.assert_array_equal(info["finite"], ~broken)
    np.testing.assert_array_equal(info["t"] <= np.float32(1e-3), ~broken)


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
    (lambda: predictor_corrector(VP(), None, num_scales=15), "num_scales=15 is too few"),
    (lambda: ncsn(VP()), "noise levels of VE"),
    (lambda: ddpm(VE()), "betas of VP"),
    (lambda: adaptive_sde(VP(), eps=0.0), "noise to data"),
    (lambda: adaptive_sde(VP(), eps=1e-3, rtol=0.0), "must be positive"),
  ],
)  # fmt: skip
def test_samplers_that_cannot_work_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
