"""Autoguidance: a score that is extrapolated from a weaker one. With exact scores, and as a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny

import score_sde as ss
from score_sde.analytic import GaussianMixture, gaussian
from score_sde.guidance import Autoguidance
from score_sde.run import guide, training
from score_sde.run.config import BadInput, resolve

SDE = ss.VP()
MEANS, WEIGHTS = np.array([[1.5, 0.0], [-1.5, 0.5], [0.0, -1.5]]), np.array([0.5, 0.3, 0.2])


def blurred(variance):
  """A model that makes the modes too wide by `variance`, as one of too few parameters does."""
  return GaussianMixture(MEANS, np.stack([(0.02 + variance) * np.eye(2)] * 3), WEIGHTS)


def samples(score):
  return ss.sample(jax.random.key(0), SDE, score, (4000, 2), solver=ss.UniPC(), steps=40)


def test_scale_one_is_the_score_itself_and_scale_zero_the_weak_one():
  x, t = jax.random.normal(jax.random.key(0), (8, 2)), jnp.full(8, 0.3)
  good, weak = (blurred(v).score(SDE) for v in (0.05, 0.2))
  np.testing.assert_allclose(Autoguidance(SDE, 1.0).of(good, weak)(x, t), good(x, t), rtol=1e-5)
  np.testing.assert_allclose(Autoguidance(SDE, 0.0).of(good, weak)(x, t), weak(x, t), rtol=1e-5)


@pytest.mark.thorough
def test_it_corrects_the_errors_that_the_weak_model_makes_more_of():
  """Both models are too wide. The guided samples have the spread of the data, and all modes with their weights."""
  good, weak = (blurred(v).score(SDE) for v in (0.06, 0.12))

  def found(score):
    x = samples(score)
    nearest = jnp.argmin(jnp.linalg.norm(x[:, None] - MEANS, axis=2), axis=1)
    return float(jnp.mean((x - MEANS[nearest]) ** 2)), np.bincount(nearest, minlength=3) / len(x)

  plain, _ = found(good)
  guided, shares = found(Autoguidance(SDE, 3.0).of(good, weak))
  assert abs(guided - 0.02) < 0.25 * abs(plain - 0.02)
  np.testing.assert_allclose(shares, WEIGHTS, atol=0.05)


def test_the_guided_score_of_gaussians_is_that_of_the_formula():
  a, b = (gaussian(np.zeros(2), v * np.eye(2)).score(SDE) for v in (1.0, 2.0))
  x, t = jax.random.normal(jax.random.key(0), (8, 2)), jnp.full(8, 0.5)
  np.testing.assert_allclose(Autoguidance(SDE, 3.0).of(a, b)(x, t), 3 * a(x, t) - 2 * b(x, t), rtol=1e-5)


def test_outside_the_interval_the_weak_model_is_not_evaluated():
  calls = []

  def weak(x, t):
    jax.debug.callback(lambda: calls.append(1))
    return -x

  guided = Autoguidance(SDE, 2.0, low=0.1, high=1.0).of(lambda x, t: -2 * x, weak)
  time = lambda ratio: SDE.time_of_log_snr(jnp.full(4, -2 * np.log(ratio)))
  x = jnp.ones((4, 2))
  for ratio, expected in ((0.05, -2.0), (0.5, -3.0), (2.0, -2.0)):
    np.testing.assert_allclose(jax.jit(guided)(x, time(ratio)), expected * x, rtol=1e-6)
  jax.effects_barrier()
  assert len(calls) == 1
  with pytest.raises(ss.InvalidArgument, match="low < high"):
    Autoguidance(SDE, low=2.0, high=1.0)


SMALL = {
  "training__batch_size": 16, "training__n_jitted_steps": 2, "training__n_iters": 8, "training__snapshot_freq": 4,
  "training__snapshot_freq_for_preemption": 4, "training__log_freq": 4, "training__eval_freq": 4,
  "training__final_report": False, "training__snapshot_sampling": False, "sampling__num_steps": 4,
  "sampling__num_samples": 8, "sampling__method": "unipc", "eval__enable_bpd": False, "optim__warmup": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.longest
def test_a_run_is_guided_by_an_earlier_checkpoint_of_itself_or_by_another_run(tmp_path):
  folder = str(tmp_path / "run")
  training.train(tiny(**SMALL), folder)

  def drawn(**guidance):
    guide.sample(tiny(**SMALL, **{f"guidance__{k}": v for k, v in guidance.items()}), folder)
    with np.load(tmp_path / "run" / "samples.npz") as file:
      return file["samples"].astype(int)

  plain = drawn()
  one = drawn(method="autoguidance", weak_checkpoint="4", scale=1.0)
  assert np.abs(one - plain).max() <= 1
  strong = drawn(method="autoguidance", weak_checkpoint="4", scale=20.0)
  assert np.abs(strong - plain).max() > 1
  same = drawn(method="autoguidance", weak=folder, weak_checkpoint="4", scale=20.0)
  assert np.array_equal(strong, same)


@pytest.mark.parametrize(("values", "message"), [
  ({"guidance__method": "autoguidance"}, "needs a weaker model"),
  ({"guidance__method": "autoguidance", "guidance__task": "inpaint", "guidance__weak": "w"}, "without a measurement"),
  ({"guidance__method": "pigdm"}, "has no guidance.task"),
  ({"guidance__method": "autoguidance", "guidance__task": "class", "guidance__weak": "w"}, "class-conditional"),
])  # fmt: skip
def test_what_does_not_fit_is_named(values, message):
  with pytest.raises(BadInput, match=message):
    resolve(tiny(**values))


def test_a_scale_that_does_not_guide_is_named(caplog):
  config = {"guidance__method": "autoguidance", "guidance__weak": "w"}
  resolve(tiny(**config, guidance__scale=2.0))
  assert not caplog.records
  resolve(tiny(**config))
  assert "guidance.scale=1 of autoguidance is no guidance" in caplog.text
