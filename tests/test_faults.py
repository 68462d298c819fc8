"""Situations in which a run once answered wrongly or not at all, each with the right answer."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from runs import tiny

import score_sde as ss
from score_sde import metrics
from score_sde.run import evaluate, training
from score_sde.run.config import BadInput, resolve
from score_sde.run.workdir import claimed

FEW = {"training__batch_size": 8, "training__final_report": False, "training__snapshot_sampling": False}


def blocks_of(n, total):
  """Settings of a run of `total` steps that dispatches `n` steps at a time."""
  return tiny(
    **FEW, training__n_iters=total, training__n_jitted_steps=n, training__log_freq=n, training__eval_freq=2 * n,
    training__snapshot_freq=2 * n, training__snapshot_freq_for_preemption=n, model__nf=8, optim__decay="none",
  )  # fmt: skip


def test_a_run_resumed_with_another_number_of_steps_per_dispatch_saves_its_end(tmp_path):
  """5 steps, then dispatches of 3: the first has 1 step, and what follows ends at multiples of 3."""
  training.train(blocks_of(5, 5), str(tmp_path / "changed"))
  training.train(blocks_of(3, 10), str(tmp_path / "changed"))
  training.train(blocks_of(1, 12), str(tmp_path / "steady"))
  kept = sorted(int(p.name) for p in (tmp_path / "changed" / "checkpoints").iterdir() if p.name.isdigit())
  assert kept[-1] == 12
  rows = [line.split(",")[0] for line in (tmp_path / "changed" / "metrics.csv").read_text().splitlines()[1:]]
  assert rows == ["5", "6", "9", "12"]
  changed, steady = (ss.load(str(tmp_path / name)).params for name in ("changed", "steady"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), changed, steady)


def test_a_lock_file_stays_so_that_a_third_job_cannot_come_in(tmp_path):
  """If the first job removed the file, the second would hold the lock of a file that the third cannot see."""
  with claimed(tmp_path):
    first = (tmp_path / ".claimed").stat().st_ino
  with claimed(tmp_path):
    assert (tmp_path / ".claimed").stat().st_ino == first
    with pytest.raises(BadInput, match="is another job's"), claimed(tmp_path):
      pass


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral_sampling"])
@pytest.mark.parametrize("steps", [2, 19])
def test_the_official_grid_needs_more_steps_than_beta_max(predictor, steps):
  solver = ss.PredictorCorrector(predictor=predictor, corrector="none")
  draw = lambda steps, grid: ss.sample(
    jax.random.key(0), ss.VP(), lambda x, t: -x, (8, 2), solver=solver, steps=steps, grid=grid
  )
  with pytest.raises(ss.InvalidArgument, match=rf"steps={steps} is too small for grid='official' under VP"):
    draw(steps, "official")
  assert np.isfinite(draw(steps, "uniform")).all()
  assert np.isfinite(draw(30, "official")).all()


def test_times_that_are_equal_in_float32_are_refused():
  with pytest.raises(ss.InvalidArgument, match="must decrease"):
    ss.TimeGrid.through([1.0, 1.0 - 1e-9, 0.5])


def test_interpolation_is_finite_between_any_latents():
  """Equal, opposite and zero latents have no great circle of their own: they are joined by a line."""
  a = jax.random.normal(jax.random.key(0), (4, 6))
  b = jnp.stack([a[0], -a[1], jnp.zeros(6), a[2]])
  path = ss.interpolate(a, b, jnp.linspace(0, 1, 5))
  assert np.isfinite(path).all()
  np.testing.assert_allclose(path[0], a, atol=1e-6)
  np.testing.assert_allclose(path[-1], b, atol=1e-6)
  np.testing.assert_allclose(path[2, 0], a[0], atol=1e-5)


def test_kid_of_few_samples_has_a_spread():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 500, 16))
  _, spread = metrics.kid(a, b, subset_size=metrics.kid_subset_size(500, 500))
  fresh = [metrics.kid(*rng.normal(size=(2, 250, 16)), subset_size=250, subsets=1)[0] for _ in range(30)]
  assert spread == pytest.approx(np.std(fresh), rel=0.5)
  assert metrics.kid_subset_size(50_000, 50_000) == 1000


def test_the_inception_score_does_not_depend_on_the_order_of_samples():
  logits = 20 * np.eye(10)[np.repeat(np.arange(10), 100)]  # sure of their class, and ordered by it
  assert metrics.inception_score(logits)[0] == pytest.approx(1.0, abs=1e-3)
  assert metrics.inception_score(logits, seed=0)[0] == pytest.approx(10.0, rel=0.1)


def test_failed_likelihood_solves_are_left_out_and_counted(trained, tmp_path, capsys):
  """With some failures the mean is over the others; with nothing else, the report is written and the run fails."""
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.update({
    "enable_loss": False, "enable_bpd": True, "enable_sampling": False, "num_examples": 8, "rtol": 1e-3, "atol": 1e-3,
  })  # fmt: skip
  row = lambda: json.loads((pathlib.Path(folder) / "report.json").read_text())["checkpoints"][0]
  evaluate.evaluate(config, str(folder))
  whole = row()
  assert (whole["examples"], whole["likelihood_failed"]) == (8, 0)
  config.sampling.max_steps = 2
  with pytest.raises(evaluate.SolvesFailed, match=r"exceeded sampling\.max_steps=2"):
    evaluate.evaluate(config, str(folder))
  assert (row()["examples"], row()["likelihood_failed"]) == (0, 8)
  assert "bits_per_dim" not in row()
  assert "8 likelihoods failed" in capsys.readouterr().out
  assert "NaN" not in (pathlib.Path(folder) / "report.json").read_text()


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = runs.tiny()
  config.eval.reference = "~/statistics.npz"
  assert resolve(config).eval.reference == os.path.join(tmp_path, "statistics.npz")
