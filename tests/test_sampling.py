"""Predictors, correctors and whole samplers against the official numbers and against exact laws."""

import dataclasses

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import score_sde as ss
from score_sde import analytic, guidance
from score_sde.batch import example_keys, expand, fold
from score_sde.errors import InvalidArgument
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import (
  CORRECTORS,
  DDIM,
  DDPM,
  NCSN,
  PREDICTORS,
  AdaptiveODE,
  AdaptiveSDE,
  PredictorCorrector,
  TimeGrid,
  UniPC,
  correctors,
  make_grid,
  predictors,
  sample,
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
  solver = PredictorCorrector(predictor, "none", probability_flow=flow.endswith("True"), tabulated=True)
  step = PREDICTORS[predictor](solver, SDES[sde], golden_score)
  assert_agrees(name, step(KEYS, x, t, t, stop))


@pytest.mark.parametrize("name", cases("corrector/"))
def test_official_correctors_agree(name, fixed_noise):
  _, sde, corrector, steps = name.split("/")
  fixed_noise(CASE["z"])
  x, t = jnp.asarray(CASE["x"]), jnp.asarray(CASE["t"])
  solver = PredictorCorrector(corrector=corrector, n_steps_each=int(steps.split("=")[1]), norms="batch")
  assert_agrees(name, CORRECTORS[corrector](solver, SDES[sde], golden_score)(KEYS, x, t))


@pytest.mark.parametrize("name", cases("chain/"))
def test_official_chains_agree(name, fixed_noise):
  """Ten steps from noise to data on the official grid; VE corrects before it predicts."""
  _, which, predictor = name.split("/")
  sde = SDES[which]
  grid = make_grid("official", sde, 10, EPS[which], tabulated=predictor != "euler_maruyama")
  fixed_noise(*(CASE["chain/noise"] if which == "ve" else CASE["chain/noise"][1::2]))
  corrector = "langevin" if which == "ve" else "none"
  solver = PredictorCorrector(predictor, corrector, norms="batch").on(sde, grid)
  x = jnp.asarray(CASE["chain/x_T_standard_normal"]) * sde.prior_std
  state = solver.init(sde, x, jnp.full(6, sde.T))
  for times in grid.rows:
    state = solver.step(sde, golden_score, KEYS, state, *(jnp.full(6, a) for a in times))
  assert_agrees(name, (state.x, state.mean))


def test_the_compiled_sampler_is_the_plain_loop():
  """Chunks, donation and frames change nothing: 60 steps cross a chunk's border."""
  sde, n = VP(), 60
  grid = make_grid("uniform", sde, n, 1e-3)
  solver = PredictorCorrector("euler_maruyama", "langevin", snr=0.1)
  sample = Sampler(sde, solver, grid)
  score = jax.tree_util.Partial(golden_score)
  seen = []
  x, info = sample(score, jax.random.key(3), (4, 2), progress=lambda done, total: seen.append((done, total)))
  framed, with_frames = sample(score, jax.random.key(3), (4, 2), frames=7)

  keys = example_keys(jax.random.key(3), jnp.arange(4))
  y = sde.prior_sample(fold(keys, 0), (4, 2))
  correct = CORRECTORS["langevin"](solver, sde, golden_score)
  predict = PREDICTORS["euler_maruyama"](solver, sde, golden_score)

  @jax.jit
  def step(i, y, times):
    t, start, stop = (jnp.full(4, a) for a in times)
    step_keys = fold(fold(keys, 1), i)
    y, _ = correct(fold(step_keys, 0), y, t)
    return predict(fold(step_keys, 1), y, t, start, stop)

  for i, times in enumerate(grid.rows.astype(np.float32)):
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
  for norms, independent in (("sample", True), ("batch", False)):
    sample = stepping(PredictorCorrector(norms=norms), sde, 20, eps=1e-3)
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
  sample = Sampler(sde, PredictorCorrector(predictor, corrector, snr=0.05), grid)
  x, info = sample(jax.tree_util.Partial(MIXTURE.score(sde)), jax.random.key(0), (n, 2))
  truth = np.asarray(MIXTURE.sample(jax.random.key(1), 200_000))
  assert info["finite"].all()
  error = truth.std(axis=0) / np.sqrt(n)
  np.testing.assert_array_less(np.abs(np.asarray(x).mean(axis=0) - truth.mean(axis=0)), 4 * error + 0.01)
  np.testing.assert_allclose(np.cov(np.asarray(x).T), np.cov(truth.T), atol=0.03)
  left = np.mean(np.asarray(x)[:, 0] < 0)
  assert left == pytest.approx(np.mean(truth[:, 0] < 0), abs=4 * np.sqrt(0.25 / n) + 0.01)


@pytest.mark.parametrize("norms", ["sample", "batch"])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_ode_sampler_carries_the_prior_to_a_gaussian_exactly(sde, norms):
  """For N(m, c² I) the flow is x -> m + (x_T - alpha m) sqrt(v(eps) / v(T)), v = (alpha c)² + sigma²."""
  mean, c = jnp.array([0.5, -0.3]), 0.2
  data = analytic.gaussian(mean, c**2 * np.eye(2))
  sample = Sampler(sde, AdaptiveODE(noise_removal=False, norms=norms), eps=1e-3)
  x, info = sample(jax.tree_util.Partial(data.score(sde)), jax.random.key(0), (16, 2))
  z = sde.prior_sample(fold(example_keys(jax.random.key(0), jnp.arange(16)), 0), (16, 2))
  eps, end = jnp.array(1e-3), jnp.array(sde.T)
  variance = lambda t: (sde.alpha(t) * c) ** 2 + sde.sigma(t) ** 2
  expected = sde.alpha(eps) * mean + (z - sde.alpha(end) * mean) * jnp.sqrt(variance(eps) / variance(end))
  np.testing.assert_allclose(x, expected, atol=2e-3)
  assert info["finite"].all()
  assert ((info["nfe"] - 1) % 6 == 0).all()
  assert (len(set(info["nfe"].tolist())) == 1) == (norms == "batch")


@pytest.mark.slow
@pytest.mark.parametrize("sde", VP_FAST)
def test_adaptive_steps_find_the_data_and_are_each_samples_own(sde):
  """Covariance within four standard errors and 3%; rejected steps leave no bias, for the Brownian path is one."""
  data, n = analytic.gaussian([0.25, -0.5], np.array([[2.0, 0.6], [0.6, 0.5]]) / 16), 2000
  score = jax.tree_util.Partial(data.score(sde))
  sample = Sampler(sde, AdaptiveSDE(noise_removal=False), eps=1e-3)
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
@pytest.mark.parametrize("ald_step", ["code", pytest.param("paper", marks=SLOW)])
def test_ncsn_finds_the_data_and_denoises_last(ald_step):
  sde, n = VE(0.05, 4.0), 4000
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  options = {"num_scales": 20, "n_steps_each": 30, "snr": 0.2, "ald_step": ald_step}
  x, info = stepping(NCSN(**options), sde, None)(score, jax.random.key(0), (n, 2))
  last, with_last = stepping(NCSN(noise_removal=True, **options), sde, None)(score, jax.random.key(0), (n, 2))
  assert (info["nfe"], with_last["nfe"]) == (600, 601)
  np.testing.assert_allclose(last, MIXTURE.posterior_mean(sde, x, jnp.full(n, 1e-5)), atol=1e-4)
  truth = np.asarray(MIXTURE.sample(jax.random.key(1), 100_000))
  # A Langevin step of size e has variance 1 / (1 - e / 2v) times too large: up to 15% here, half by the paper's step.
  np.testing.assert_allclose(np.cov(np.asarray(x).T), np.cov(truth.T), atol=0.06)
  assert np.mean(np.asarray(x)[:, 0] < 0) == pytest.approx(np.mean(truth[:, 0] < 0), abs=0.05)


def test_ddpm_is_ancestral_sampling_on_the_official_grid():
  sde, score = VP(), jax.tree_util.Partial(golden_score)
  x, info = stepping(DDPM(num_scales=30), sde, None)(score, jax.random.key(0), (4, 2))
  plain = stepping(PredictorCorrector("ancestral_sampling", "none"), sde, 30, "official")
  np.testing.assert_array_equal(x, plain(score, jax.random.key(0), (4, 2))[0])
  assert info["nfe"] == 30
  other, _ = stepping(DDPM(num_scales=30, posterior_variance=True), sde, None)(score, jax.random.key(0), (4, 2))
  assert np.abs(other - x).max() > 1e-3


def test_the_posterior_variance_of_a_table_is_ddpms():
  """Ho et al. 2020, eq. (7): beta_i (1 - alpha-bar_(i-1)) / (1 - alpha-bar_i), zero at the last entry."""
  sde, n = VP(), 50
  grid = make_grid("official", sde, n, 1e-3)
  solver = DDPM(num_scales=n, posterior_variance=True, noise_removal=False).on(sde, grid)
  step = PREDICTORS["ancestral_sampling"](solver, sde, lambda x, t: -x)
  keys, x = example_keys(jax.random.key(0), jnp.arange(10_000)), jnp.ones((10_000, 1))
  beta = np.linspace(sde.beta_min, sde.beta_max, n) / n
  bar = np.cumprod(1 - beta)
  expected = np.sqrt(beta[::-1] * (1 - np.concatenate([[1], bar[:-1]]))[::-1] / (1 - bar)[::-1])
  times = lambda row: (jnp.full(10_000, value, jnp.float32) for value in row)
  found = [float(np.std(np.subtract(*step(keys, x, *times(row))))) for row in grid.rows[[0, 20, 47, 48, 49]]]
  np.testing.assert_allclose(found, expected[[0, 20, 47, 48, 49]], rtol=0.03, atol=1e-6)
  assert found[-1] == 0
  drawn, _ = stepping(dataclasses.replace(solver), sde, None)(lambda x, t: -x, jax.random.key(0), (8, 2))
  assert np.isfinite(drawn).all()


@pytest.mark.parametrize("name", SDES)
def test_a_start_below_T_begins_with_the_noise_of_that_time(name):
  sde = SDES[name]
  score = lambda x, t: -x / expand(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, x)  # of N(0, I)
  x = sample(jax.random.key(0), sde, score, (4000, 2), t_start=0.7, solver=UniPC(), steps=30)
  grid = make_grid("log_snr", sde, 29, EPS[name], t_start=0.7)
  np.testing.assert_array_equal(x, sample(jax.random.key(0), sde, score, (4000, 2), grid=grid, solver=UniPC()))
  start = float(sde.sigma(0.7) / jnp.sqrt(sde.alpha(0.7) ** 2 + sde.sigma(0.7) ** 2))  # the data's share is missing
  assert np.std(x) == pytest.approx(start, rel=0.05)


def test_a_replaced_part_is_exact_after_the_last_step_of_the_official_grid():
  sde, y = VP(), jnp.full((16, 2), 0.5)
  solver = PredictorCorrector("euler_maruyama", "none", noise_removal=False)
  known = guidance.inpaint(jnp.array([1.0, 0.0]), y)
  x = sample(
    jax.random.key(0), sde, lambda x, t: -x, (16, 2), solver=guidance.Projection()(known)(solver), steps=100,
    grid="official",
  )  # fmt: skip
  np.testing.assert_allclose(x[:, 0], 0.5, atol=1e-6)
  assert np.isfinite(x).all()


def test_grids_that_end_without_noise_are_for_solvers_that_do_not_evaluate_there():
  sde, grid = VP(), TimeGrid.through([1.0, 0.5, 0.1, 0.0])
  draw = lambda solver: sample(jax.random.key(0), sde, lambda x, t: -x, (4, 2), solver=solver, grid=grid)
  assert np.isfinite(draw(DDIM(noise_removal=False))).all()
  with pytest.raises(InvalidArgument, match="End the grid at a small eps"):
    draw(UniPC())
  one = sample(jax.random.key(0), sde, lambda x, t: -x, (4, 2), solver=DDIM(), steps=1, grid="official")
  assert np.isfinite(one).all()


@pytest.mark.parametrize("solver", [
  ss.Heun(noise_removal=False), UniPC(noise_removal=False), ss.SASolver(noise_removal=False),
  ss.SASolver(noise_removal=False, corrected=False), DDIM(noise_removal=False),
], ids=lambda solver: type(solver).__name__)  # fmt: skip
def test_the_last_step_to_zero_noise_ends_at_the_denoised_samples(solver):
  """Where the score of a network, -z / sigma, is 0 / 0: here that of N(0, I), with z = sigma x."""
  sde, times = VP(), [1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
  score = lambda x, t: -(sde.sigma(t)[:, None] * x) / sde.sigma(t)[:, None]
  draw = lambda end: sample(
    jax.random.key(0), sde, score, (4, 2), solver=solver, grid=TimeGrid.through([*times, end])
  )  # fmt: skip
  np.testing.assert_allclose(draw(0.0), draw(1e-7), atol=0.02)


@pytest.mark.thorough
@pytest.mark.parametrize("dims", [1, 2, 3, 8, 64, 3072])
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_corrector_keeps_the_marginal_in_any_number_of_dimensions(sde, dims):
  """Eight steps from p_t, at three times: mean and covariance stay within 2%, plus 4.5 standard errors of n samples.

  The data have unequal variances. With norms of each sample instead of sigma(t), the standard deviation in one
  dimension would become hundreds.
  """
  n = max(50_000 // dims, 40)
  draw = np.random.default_rng(0)
  mixed = np.linalg.qr(draw.normal(size=(min(dims, 8),) * 2))[0]  # covariance's eigenvectors
  rotated = lambda x: x @ mixed if dims <= 8 else x
  back = lambda y: y @ mixed.T if dims <= 8 else y
  variances, mean = np.linspace(0.1, 2.0, dims), jnp.asarray(draw.normal(size=dims))
  keys = example_keys(jax.random.key(0), jnp.arange(n))
  corrector = CORRECTORS["langevin"]

  @jax.jit
  def corrected(time):
    t = jnp.full(n, time)
    v = sde.alpha(t)[0] ** 2 * variances + sde.sigma(t)[0] ** 2
    center = sde.alpha(t)[0] * mean
    score = lambda x, t: -back(rotated(x - center) / v)
    z = jax.vmap(lambda key: jax.random.normal(key, (dims,)))(keys)
    solver = PredictorCorrector(corrector="langevin", n_steps_each=8)
    x, _ = corrector(solver, sde, score)(fold(keys, 1), center + back(z * jnp.sqrt(v)), t)
    return rotated(x - center) / jnp.sqrt(v)  # standard normal, if p_t is kept

  for share in (0.25, 0.5, 1.0):
    y = np.asarray(corrected(share * sde.T), np.float64)
    assert np.abs(y.mean(axis=0)).max() < 0.02 + 4.5 / np.sqrt(n)
    if dims <= 8:
      np.testing.assert_allclose(np.cov(y.T).reshape(dims, dims), np.eye(dims), atol=0.02 + 4.5 * np.sqrt(2 / n))
    assert (y**2).mean() == pytest.approx(1, abs=0.02 + 4 * np.sqrt(2 / y.size))


@pytest.mark.parametrize(("sde", "dims"), [(VP(), 1), (VE(), 3)], ids=["vp", "ve"])
def test_the_default_sampler_has_the_spread_of_the_data_in_few_dimensions(sde, dims):
  """200 steps to N(0, I). A step of Langevin leaves a variance up to 1 / (1 - snr²) times too large, here 2.6%."""
  n = 6_000 // dims
  score = lambda x, t: -x / (sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None]
  x, _ = stepping(PredictorCorrector(), sde, 200)(score, jax.random.key(0), (n, dims))
  assert np.std(x) == pytest.approx(1, abs=0.02 + 4 / np.sqrt(2 * n * dims))
  assert np.abs(np.mean(x, axis=0)).max() < 4.5 / np.sqrt(n)


@pytest.mark.parametrize("norms", ["sample", "batch"])
@pytest.mark.parametrize(("name", "ald_step"), [("langevin", "code"), ("ald", "code"), ("ald", "paper")])
def test_langevin_steps_leave_their_own_stationary_law(name, ald_step, norms):
  """Steps of size e on N(0, v) settle at the variance v / (1 - e / 2v), not v: x -> (1 - e / v) x + sqrt(2 e) z.

  Without norms of the batch, langevin has the step of ald. With them e follows from E|z| / E|score|, which is sqrt(v)
  in one dimension, at its own law.
  """
  sde, n, snr, time = VP(), 20_000, 0.5, 0.3
  t = jnp.full(n, time)
  data = analytic.gaussian([0.0], [[0.5]])
  v = float(sde.alpha(t)[0]) ** 2 * 0.5 + float(sde.sigma(t)[0]) ** 2
  shrinkage = 1 + 2 * float(sde.dlog_alpha(t)[0]) / 1000
  solver = PredictorCorrector(corrector=name, snr=snr, n_steps_each=200, ald_step=ald_step, norms=norms)
  correct = jax.jit(CORRECTORS[name](solver, sde, data.score(sde)))
  x, _ = correct(example_keys(jax.random.key(0), jnp.arange(n)), 3 + jnp.zeros((n, 1)), t)
  if name == "ald" or norms == "sample":
    e = (1 if ald_step == "paper" else 2) * shrinkage * (snr * float(sde.sigma(t)[0])) ** 2
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
  score = jax.tree_util.Partial(data.score(VP()))
  off = {}
  for corrector in ("none", "langevin"):
    solver = PredictorCorrector(corrector=corrector, snr=0.3, n_steps_each=5, norms="batch")
    sample = stepping(solver, wrong, 100)
    x, _ = sample(score, jax.random.key(0), (2000, 2))
    off[corrector] = np.abs(np.mean(x, axis=0)).max(), np.abs(np.std(x, axis=0) - 0.5).max()
  flow = stepping(PredictorCorrector(corrector="none", probability_flow=True), wrong, 100)
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
  plain = Sampler(sde, AdaptiveSDE(rtol=0.2), eps=1e-2)

  class Small(Sampler):
    def _batch(self, score, key, shape, **options):
      seen.append(shape[0])
      if shape[0] > 5:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
      return super()._batch(score, key, shape, **options)

  score = jax.tree_util.Partial(lambda x, t, c: golden_score(x - c[:, None], t))
  options = {"frames": 2, "condition": jnp.arange(14.0), "first": 3}
  progress = []
  sample = Small(sde, AdaptiveSDE(rtol=0.2), eps=1e-2)
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

  class Broken(Sampler):
    def _batch(self, score, key, shape, **options):
      raise jax.errors.JaxRuntimeError("INTERNAL: elsewhere")

  with pytest.raises(jax.errors.JaxRuntimeError, match="elsewhere"):
    Broken(sde, AdaptiveSDE())(score, jax.random.key(0), (4, 2), condition=jnp.arange(4.0))


def test_the_reported_evaluations_are_those_made(monkeypatch):
  """Counted by a callback in the score; a single sample, so that no other sample's steps are counted with it."""
  calls = []

  def score(x, t):
    jax.debug.callback(lambda t: calls.append(float(t[0])), t)
    return -x

  sample = stepping(PredictorCorrector(corrector="langevin", n_steps_each=3), VP(), 7)
  _, info = sample(jax.tree_util.Partial(score), jax.random.key(0), (1, 2))
  jax.effects_barrier()
  assert info["nfe"] == len(calls) == 7 * 4
  for make in (AdaptiveODE, AdaptiveSDE):
    calls.clear()
    _, info = Sampler(VP(), make())(jax.tree_util.Partial(score), jax.random.key(0), (1, 2))
    jax.effects_barrier()
    assert int(info["nfe"][0]) == len(calls), make


@pytest.mark.slow
def test_broken_samples_are_flagged():
  """A score that is NaN for some samples, and solves that run out of steps, with the time that they reached."""
  nan = jax.tree_util.Partial(lambda x, t: jnp.where(x[:, :1] > 0, jnp.nan, -x))
  x, info = stepping(PredictorCorrector(corrector="none"), VP(), 5)(nan, jax.random.key(0), (32, 2))
  assert np.array_equal(info["finite"], np.isfinite(np.asarray(x)).all(axis=1))
  assert 0 < info["finite"].sum() < 32
  for make in (AdaptiveODE, AdaptiveSDE):
    _, info = Sampler(VP(), make(max_steps=3))(jax.tree_util.Partial(golden_score), jax.random.key(0), (4, 2))
    assert not info["finite"].any()
    assert ((info["t"] > 0.5) & (info["t"] < 1)).all(), make
    broken = jnp.arange(4) == 1
    nan = jax.tree_util.Partial(lambda x, t, c: jnp.where(c[:, None], jnp.nan, -x))
    _, info = Sampler(VP(), make(max_steps=400))(nan, jax.random.key(0), (4, 2), condition=broken)
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
    (lambda: make_grid("uniform", VP(), -1, 1e-3), "must not be negative"),
    (lambda: make_grid("uniform", VP(), 5, 1.5), "noise to data"),
    (lambda: make_grid("linear", VP(), 5, 1e-3), "choose one of official"),
    (lambda: PredictorCorrector("euler"), "choose one of euler_maruyama"),
    (lambda: PredictorCorrector(corrector="mcmc"), "choose one of langevin"),
    (lambda: PredictorCorrector("none", "none"), "nothing would move"),
    (lambda: stepping(PredictorCorrector("ancestral_sampling", "none"), SubVP(), 9, "official"), "has no table"),
    (lambda: AdaptiveODE(solver="rk99"), "choose one of dopri5"),
    (lambda: stepping(PredictorCorrector(num_scales=15), VP(), 9), "num_scales=15 is too small"),
    (lambda: stepping(NCSN(), VP(), None), "noise levels of VE"),
    (lambda: stepping(DDPM(), VE(), None), "betas of VP"),
    (lambda: Sampler(VP(), AdaptiveSDE(), eps=0.0), "noise to data"),
    (lambda: AdaptiveSDE(rtol=0.0), "must be positive"),
    (lambda: stepping(PredictorCorrector(), VP(), 0), "steps=0 must be an integer, at least 1"),
  ],
)  # fmt: skip
def test_samplers_that_cannot_work_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
