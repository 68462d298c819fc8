"""Averages of parameters with a width chosen after training: against averages that were tracked directly."""

import json

import jax
import numpy as np
import pytest
from runs import changed, tiny

import score_sde as ss
from score_sde import averaging
from score_sde.run import averages, checkpoints, train_step, training
from score_sde.run.checkpoints import transfer
from score_sde.run.config import BadInput
from score_sde.run.experiment import build


def path_of_parameters(steps):
  """A drift and a random walk, as parameters move in training."""
  rng = np.random.default_rng(0)
  return np.cumsum(rng.standard_normal((steps, 40)), axis=0) + np.linspace(0, 100, steps)[:, None]


def tracked(path, width):
  """The averages after every step."""
  gamma, average, all_of_them = averaging.exponent(width), np.zeros(path.shape[1]), []
  for step, params in enumerate(path, 1):
    average = np.asarray(averaging.updated(average, params, step, gamma))
    all_of_them.append(average)
  return all_of_them


def test_exponents_are_those_of_the_paper():
  """Karras et al. 2024, Section 3.1: widths 0.05 and 0.10 are gamma = 16.97 and 6.94."""
  np.testing.assert_allclose([averaging.exponent(w) for w in (0.05, 0.1)], [16.97, 6.94], atol=5e-3)
  for gamma in (0.5, 3.0, 30.0):
    width = (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5
    np.testing.assert_allclose(averaging.exponent(width), gamma, rtol=1e-8)
  for width in (0, -0.1, 0.3):
    with pytest.raises(ss.InvalidArgument, match="must lie in"):
      averaging.exponent(width)


def test_a_tracked_average_has_the_profile_of_a_power_function():
  steps, gamma = 400, 6.94
  weight = [float(averaging.updated(0.0, 1.0, step, gamma)) for step in range(1, steps + 1)]
  profile = [w * np.prod([1 - v for v in weight[i + 1 :]]) for i, w in enumerate(weight)]
  expected = (gamma + 1) * (np.arange(1, steps + 1) / steps) ** gamma / steps
  np.testing.assert_allclose(profile, expected, atol=0.03 * max(expected))
  np.testing.assert_allclose(sum(profile), 1, rtol=1e-5)


@pytest.mark.parametrize("width", [0.05, 0.075, 0.1, 0.15])
@pytest.mark.parametrize("last", [1500, 2000])
def test_a_reconstruction_is_the_average_that_was_tracked(width, last):
  path = path_of_parameters(2000)
  kept = {w: tracked(path, w) for w in (0.05, 0.1)}
  steps = range(last // 20, last + 1, last // 20)  # 20 checkpoints
  stored = [(step, averaging.exponent(w)) for step in steps for w in kept]
  values = np.stack([kept[w][step - 1] for step in steps for w in kept])
  found = averaging.weights(stored, last, averaging.exponent(width)) @ values
  wanted = tracked(path[:last], width)[-1]
  assert np.linalg.norm(found - wanted) < 1e-3 * np.linalg.norm(wanted)
  assert averaging.distance(stored, last, averaging.exponent(width)) < 0.01


@pytest.mark.parametrize(("kept", "width"), [((1000,), 0.25), ((500, 1000), 0.2), ((250, 500, 750, 1000), 0.02)])
def test_the_distance_of_a_profile_that_cannot_be_met_is_its_own(kept, width):
  """Against the profiles on a fine grid; and no other weights that sum to one come nearer."""
  stored = [(step, averaging.exponent(w)) for step in kept for w in (0.05, 0.1)]
  tau = (np.arange(100_000) + 0.5) / 100
  profile = lambda t, gamma: np.where(tau < t, (gamma + 1) * (tau / t) ** gamma / t, 0)
  profiles, wanted = np.stack([profile(*one) for one in stored]), profile(1000, averaging.exponent(width))
  size = lambda p: np.sqrt(np.mean(p**2))
  away = lambda weights: size(weights @ profiles - wanted) / size(wanted)
  found = averaging.weights(stored, 1000, averaging.exponent(width))
  np.testing.assert_allclose(averaging.distance(stored, 1000, averaging.exponent(width)), away(found), rtol=1e-3)
  np.testing.assert_allclose(found.sum(), 1, rtol=1e-9)
  change = np.random.default_rng(0).normal(size=(50, len(stored)))
  assert all(away(found + 0.01 * (c - c.mean())) > away(found) for c in change)
  assert away(found) > 0.3


def small(**values):
  steps = {
    "training__batch_size": 16, "training__n_jitted_steps": 2, "training__n_iters": 40, "training__snapshot_freq": 4,
    "training__snapshot_freq_for_preemption": 4, "training__log_freq": 10, "training__eval_freq": 10,
    "training__final_report": False, "training__snapshot_sampling": False, "eval__batch_size": 16,
  }  # fmt: skip
  return tiny(**steps, **values)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("averages") / "run")
  training.train(small(model__ema_widths=(0.05, 0.1)), folder)
  return folder


@pytest.mark.thorough
def test_a_run_keeps_its_averages_and_another_width_is_loaded_like_any_model(run):
  config = small(model__ema_widths=(0.05, 0.1))
  averages.reconstruct(config, run, ["0.05", "0.08"])
  experiment = build(config)
  with checkpoints.manager(run) as manager:
    state = train_step.restore_state(manager, experiment, run)
  found = ss.load(f"{run}/ema/std_0.050.safetensors")
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  jax.tree.map(close, found.params, state.averages[0])
  between = ss.load(f"{run}/ema/std_0.080.safetensors")
  spread = [np.linalg.norm(between.params["Dense_0"]["kernel"] - a["Dense_0"]["kernel"]) for a in state.averages]
  assert min(spread) > 0
  assert max(spread) < np.linalg.norm(state.averages[0]["Dense_0"]["kernel"] - state.averages[1]["Dense_0"]["kernel"])
  assert between.sample(jax.random.key(0), 2, steps=4).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(("widths", "message"), [
  (["0.0501", "0.0502"], "differ by 0.001 or more"),
  (["wide"], "must be numbers"), (["0.5"], "--std=0.5 must lie in"), (["0.004"], "too far from the averages"),
])  # fmt: skip
def test_widths_that_cannot_be_made_are_refused(run, widths, message):
  with pytest.raises(BadInput, match=message):
    averages.reconstruct(small(model__ema_widths=(0.05, 0.1)), run, widths)


def test_averages_of_other_widths_are_not_taken_for_these(run):
  """Two averages have the same arrays, whatever their widths: the checkpoint says which they are."""
  for other in ((0.1, 0.05), (0.05, 0.15)):
    config = small(model__ema_widths=other)
    with pytest.raises(BadInput, match=r"model.ema_widths was \[0.05, 0.1\]"):
      averages.reconstruct(config, run, ["0.05"])
    with pytest.raises(BadInput, match=r"model.ema_widths was"):
      training.train(config, run)
  with pytest.raises(BadInput, match=r"model.ema_widths"):
    training.train(changed(small(), training__n_iters=44), run)
  assert ss.load(run).sample(jax.random.key(0), 2, steps=2).shape == (2, 8, 8, 1)


@pytest.mark.thorough
def test_imported_weights_are_no_average(run, tmp_path, caplog):
  config, file, workdir = small(model__ema_widths=(0.05, 0.1)), str(tmp_path / "w.safetensors"), str(tmp_path / "run")
  transfer.export_weights(config, run, file)
  transfer.import_weights(config, workdir, file)
  with pytest.raises(BadInput, match="imported weights only"):
    averages.reconstruct(config, workdir, ["0.05"])
  training.train(changed(small(model__ema_widths=(0.05, 0.1)), training__n_iters=80), workdir)
  averages.reconstruct(config, workdir, ["0.05"])
  assert "training before the import is unknown" in caplog.text


def test_a_run_without_averages_is_told_how_to_keep_them(run):
  with pytest.raises(BadInput, match="keeps no averages"):
    averages.reconstruct(small(), run, ["0.05"])
  with pytest.raises(BadInput, match=r"model.ema_widths=0.9 must lie in"):
    build(small(model__ema_widths=(0.9,)))


@pytest.mark.thorough
def test_the_fids_of_widths_are_measured_and_drawn(run, tmp_path, monkeypatch):
  """With a judge in place of a network of features."""
  score = lambda params: {"fid": float(np.abs(params["Dense_0"]["kernel"]).sum()), "precision": 0.5}
  monkeypatch.setattr(averages, "make_judge", lambda experiment: score)
  averages.reconstruct(small(model__ema_widths=(0.05, 0.1)), run, ["0.05", "0.07", "0.1"])
  with open(f"{run}/ema.json") as file:
    assert list(json.load(file)) == ["0.05", "0.07", "0.1"]
  with open(f"{run}/ema.png", "rb") as file:
    assert file.read(4) == b"\x89PNG"
