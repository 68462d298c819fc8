"""SDEs that a user writes: by alpha and sigma alone, by drift and diffusion alone, in a box; learned schedules."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fitting import fit
from ml_collections import ConfigDict
from runs import finish

from score_sde import analytic, likelihood
from score_sde.batch import Array, example_keys
from score_sde.bounds import EvidenceBound
from score_sde.losses import ScoreMatching
from score_sde.parameterization import ScoreModel
from score_sde.run import config
from score_sde.run.experiment import build
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import AdaptiveODE, AdaptiveSDE, Heun, PredictorCorrector, UniPC
from score_sde.sde import SDE, VE, VP, LinearSDE, Reflected, simulate

GAUSSIAN = analytic.gaussian([0.4, -0.2], [[0.2, 0.1], [0.1, 0.3]])


@dataclasses.dataclass(frozen=True)
class Sigmoid(LinearSDE):
  """alpha² = (sigmoid(a - b t) / sigmoid(a)), of which nothing else is written."""

  def alpha(self, t):
    return jnp.sqrt(jax.nn.sigmoid(4.0 - 9.0 * t) / jax.nn.sigmoid(4.0))

  def sigma(self, t):
    return jnp.sqrt(1 - self.alpha(t) ** 2)


@dataclasses.dataclass(frozen=True)
class Plain(SDE):
  """VP's drift and diffusion, as if nothing else were known."""

  def drift(self, x, t):
    return VP().drift(x, t)

  def diffusion(self, x, t):
    return VP().diffusion(x, t)


def moments(x):
  return np.concatenate([np.mean(x, axis=0), np.cov(np.asarray(x).T).ravel()])


EXPECTED = np.concatenate([GAUSSIAN.means[0], GAUSSIAN.covariances[0].ravel()])


@pytest.mark.thorough
@pytest.mark.parametrize(
  "method", ["pc", "ancestral", "ode", pytest.param("adaptive", marks=pytest.mark.slow), "unipc", "heun"]
)
def test_alpha_and_sigma_alone_are_enough_for_every_sampler(method):
  sde = Sigmoid()
  sample = {
    "pc": lambda: stepping(PredictorCorrector(corrector="none"), sde, 200),
    "ancestral": lambda: stepping(PredictorCorrector("ancestral_sampling", "none"), sde, 200),
    "ode": lambda: Sampler(sde, AdaptiveODE()),
    "adaptive": lambda: Sampler(sde, AdaptiveSDE(rtol=0.02)),
    "unipc": lambda: stepping(UniPC(), sde, 21),
    "heun": lambda: stepping(Heun(), sde, 21),
  }[method]()
  x, info = sample(GAUSSIAN.score(sde), jax.random.key(0), (4000, 2))
  assert info["finite"].all()
  np.testing.assert_allclose(moments(x), EXPECTED, atol=0.05)


@pytest.mark.thorough
def test_alpha_and_sigma_alone_are_enough_for_likelihoods():
  sde = Sigmoid()
  x = GAUSSIAN.sample(jax.random.key(1), 64)
  at_the_end = lambda z: GAUSSIAN.log_density(sde, z, jnp.ones(len(z)))  # alpha(1) is 0.08: the prior is not quite it
  keys = example_keys(jax.random.key(0), jnp.arange(64))
  exact_trace = likelihood.ExactLikelihood(probe="exact", eps=1e-4)
  got = exact_trace(sde, GAUSSIAN.score(sde), keys, x, prior_logp=at_the_end).log_p
  exact = GAUSSIAN.log_density(sde, x, jnp.full(64, 1e-4))
  np.testing.assert_allclose(got, exact, atol=5e-3)
  bound = EvidenceBound(eps=1e-3, num_times=256)(sde, GAUSSIAN.score(sde), keys, x)
  # Tight for the exact score, but for alpha(1), which the bound counts as the distance from the prior.
  assert -0.1 < float((bound - exact).mean()) < 0.05


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Learned(LinearSDE):
  """log-SNR piecewise linear between knots, whose drops are softplus of parameters: monotone whatever they are."""

  drops: Array

  def log_snr(self, t):
    knots = 8.0 - jnp.concatenate([jnp.zeros(1), jnp.cumsum(jax.nn.softplus(self.drops))])
    return jnp.interp(t, jnp.linspace(0, 1, len(knots)), knots)

  def alpha(self, t):
    return jnp.sqrt(jax.nn.sigmoid(self.log_snr(t)))

  def sigma(self, t):
    return jnp.sqrt(jax.nn.sigmoid(-self.log_snr(t)))


@pytest.mark.slow
def test_a_learned_schedule_is_rebuilt_inside_the_loss(x64):
  """Its gradient is that of finite differences, and learning moves the schedule to where the loss has less variance."""
  x0 = GAUSSIAN.sample(jax.random.key(0), 4000)
  keys = example_keys(jax.random.key(1), jnp.arange(4000))

  def variance(drops):
    sde = Learned(drops)
    # "noise" for a standard normal: exact for none of the data, so that the schedule matters.
    model = ScoreModel(sde, lambda params, x, labels, keys: sde.sigma(labels / 999)[:, None] * x, "noise", "time")
    loss = ScoreMatching(model, weighting="likelihood", eps=1e-3, stratified=True)
    return jnp.var(loss(None, keys, x0, jnp.arange(4000), 4000))

  drops = jnp.linspace(0.0, 3.0, 8)
  gradient = jax.grad(variance)(drops)
  nudge = 1e-5 * jax.nn.one_hot(3, 8)
  slope = (variance(drops + nudge) - variance(drops - nudge)) / 2e-5
  assert float(gradient[3]) == pytest.approx(float(slope), rel=1e-4)
  assert variance(drops - 0.1 * gradient / jnp.abs(gradient).max()) < variance(drops)


@pytest.mark.thorough
def test_simulated_paths_have_the_moments_of_the_kernel():
  keys = example_keys(jax.random.key(0), jnp.arange(20_000))
  x0 = jnp.broadcast_to(jnp.array([1.0, -0.5]), (20_000, 2))
  for t in (0.1, 0.5, 1.0):
    times = jnp.full(20_000, t)
    x = simulate(Plain(), keys, x0, times, 256)
    mean, std = VP().marginal(x0, times)
    np.testing.assert_allclose(x.mean(axis=0), mean[0], atol=0.03)
    np.testing.assert_allclose(x.std(axis=0), std[0], rtol=0.03)


def test_the_scale_of_an_unknown_kernel_is_its_accumulated_noise():
  t = jnp.array([0.01, 0.3, 1.0])
  x = jnp.zeros((3, 2))
  np.testing.assert_allclose(Plain().scale(x, t), jnp.sqrt(VP().integral(t)), rtol=1e-5)
  np.testing.assert_allclose(Plain().time_of_scale(x, Plain().scale(x, t)), t, rtol=1e-4)


def test_reflection_keeps_paths_in_the_box_and_tends_to_the_uniform_law():
  sde = Reflected(VE(0.01, 3.0), low=0.0, high=1.0, uniform_prior=True)
  np.testing.assert_allclose(sde.reflect(jnp.array([-0.2, 0.3, 1.4, 2.9, -3.1])), [0.2, 0.3, 0.6, 0.9, 0.9], atol=1e-6)
  keys = example_keys(jax.random.key(0), jnp.arange(20_000))
  x = simulate(sde, keys, jnp.full((20_000, 1), 0.1), jnp.ones(20_000), 256)
  assert x.min() >= 0
  assert x.max() <= 1
  counts, _ = np.histogram(np.asarray(x), bins=10, range=(0, 1))
  np.testing.assert_allclose(counts / 2000, 1, atol=0.12)  # 4 standard errors at most
  draws = sde.prior_sample(keys, (20_000, 1))
  assert float(draws.std()) == pytest.approx(12**-0.5, rel=0.02)
  np.testing.assert_allclose(sde.interior(jnp.array([0.0, 0.5, 1.0])), [0, 1, 0], atol=1e-6)


def test_sampling_without_a_prior_starts_from_what_is_given_and_likelihood_refuses():
  sde, score = Plain(), GAUSSIAN.score(VP())
  sample = stepping(PredictorCorrector("euler_maruyama", "none"), sde, 200)
  with pytest.raises(ValueError, match="no closed-form prior"):
    sample(score, jax.random.key(0), (8, 2))
  keys = example_keys(jax.random.key(1), jnp.arange(4000))
  data = GAUSSIAN.sample(jax.random.key(2), 4000)
  start = simulate(sde, keys, data, jnp.ones(4000), 128)
  x, _ = sample(score, jax.random.key(0), (4000, 2), x_T=start)
  np.testing.assert_allclose(moments(x), EXPECTED, atol=0.05)
  with pytest.raises(ValueError, match="must have the samples' shape"):
    sample(score, jax.random.key(0), (3, 2), x_T=start)
  with pytest.raises(ValueError, match=r"Plain has no likelihood: it has no closed-form prior"):
    likelihood.log_likelihood(jax.random.key(0), sde, score, data)
  with pytest.raises(ValueError, match="may leave the box"):
    likelihood.log_likelihood(jax.random.key(0), Reflected(VE(), uniform_prior=True), score, data)


# --- from the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("text", "name", "message"),
  [
    ("", "f", "has no function 'f'"),
    ("raise RuntimeError('no')", "f", "cannot be run: RuntimeError: no"),
    ("f = lambda model: 3", "f", "gives a int"),
    (None, "f", "there is no file"),
  ],
)
def test_a_file_that_gives_no_sde_is_named(tmp_path, text, name, message):
  file = tmp_path / "mine.py"
  if text is not None:
    file.write_text(text)
  c = config.default_config()
  c.training.sde = f"{file}:{name}"
  with pytest.raises(config.BadInput, match=message):
    config.resolve(c)


@pytest.mark.slow
def test_a_user_written_sde_trains_and_samples_by_run_py_and_is_refused_a_likelihood(tmp_path):
  flags = (
    "--config.training.n_iters=20",
    "--config.training.path_steps=8",
    "--config.training.snapshot_sampling=False",
  )
  code, _, err = finish(tmp_path, *flags, config="configs/toy/double_well.py")
  assert code == 0, err
  code, _, err = finish(tmp_path, *flags, "--mode=sample", config="configs/toy/double_well.py", devices=2)
  assert code == 0, err
  assert np.load(tmp_path / "samples.npz")["samples"].shape == (16, 2)
  code, _, err = finish(tmp_path, "--mode=eval", "--config.eval.enable_bpd=True", config="configs/toy/double_well.py")
  assert code == 2
  assert "DoubleWell has no likelihood: it has no closed-form prior" in err
  assert json.loads((tmp_path / "config.json").read_text())["training"]["objective"] == "ssm_vr"


def test_simulated_end_points_are_the_same_on_any_batching():
  c = _double_well()
  experiment = build(c)
  key = jax.random.key(0)
  whole = experiment.start(key, 0, 12)
  parts = jnp.concatenate([experiment.start(key, 0, 8), experiment.start(key, 8, 4)])
  np.testing.assert_array_equal(whole, parts)


def _double_well() -> ConfigDict:
  from configs.toy import double_well

  c = double_well.get_config()
  c.model.nf = 32
  c.training.path_steps = 8
  return c


@pytest.mark.slow
@pytest.mark.longest
def test_the_score_of_an_unknown_kernel_is_learned():
  """Where it is known: VP's drift and diffusion alone, Gaussian data; sliced score matching on simulated paths."""
  from score_sde.models import MLP

  network = MLP(nf=64, num_res_blocks=2, fourier_scale=0.2)
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  sde = Plain()
  model = ScoreModel(sde, lambda p, x, *rest: network.apply({"params": p}, x, *rest), "edm", "sigma", sigma_data=0.5)
  loss = ScoreMatching(
    model, objective="ssm_vr", eps=0.02, path_steps=64, time_sampling="lognormal", p_mean=-0.8, p_std=0.9
  )
  params = fit(loss, params, GAUSSIAN.sample, 2000)
  for t in (0.05, 0.2, 0.6):
    times = jnp.full(4000, t)
    mean, std = VP().marginal(GAUSSIAN.sample(jax.random.key(2), 4000), times)
    x = mean + std[:, None] * jax.random.normal(jax.random.key(3), mean.shape)
    exact = GAUSSIAN.score(VP())(x, times)
    error = jnp.sqrt(jnp.mean((model.score(params, x, times) - exact) ** 2) / jnp.mean(exact**2))
    assert error < 0.15, (t, float(error))  # 0.08 to 0.11 after 2,000 steps, by the machine's rounding
