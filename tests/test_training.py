"""The train step and the loop: devices, resuming, stopping, diverging, learning."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs
from runs import ROOT, tiny

from score_sde.run import checkpoints, devices, train_step, training
from score_sde.run.config import BadInput, signature
from score_sde.run.experiment import build
from score_sde.run.report import curves


def test_the_optimizer_is_adam_with_warm_up_clipping_and_decay():
  """Against the update rule written out: the first step has rate 0, the second lr / warmup."""
  config = tiny(optim__lr=0.1, optim__warmup=10, optim__decay="none", optim__grad_clip=1.0)
  optimizer = train_step.make_optimizer(build(config).config)
  params = np.array([3.0, 4.0], np.float32)
  state = optimizer.init(params)
  gradient = np.array([30.0, 40.0], np.float32)  # clipped to norm 1: [0.6, 0.8]
  first, state = optimizer.update(gradient, state, params)
  second, _ = optimizer.update(gradient, state, params)
  np.testing.assert_allclose(first, 0.0, atol=1e-12)
  np.testing.assert_allclose(second, -0.1 / 10 * np.ones(2), rtol=1e-4)  # m / sqrt(v) = 1 for a constant gradient


def final(workdir):
  """All arrays of the newest checkpoint, and the logged losses."""
  with checkpoints.manager(str(workdir)) as opened:
    step = max(opened.all_steps())
    read = opened.restore(step)
  arrays = {f"{item}{jax.tree_util.keystr(p)}": np.asarray(x) for item in ("state", "ema_params")
            for p, x in jax.tree_util.tree_leaves_with_path(read[item])}  # fmt: skip
  rows = [{k: v for k, v in row.items() if v == v} for row in curves.read(workdir)]
  return arrays, rows


def assert_identical(one, two):
  (arrays, rows), (others, other_rows) = one, two
  assert rows == other_rows
  assert arrays.keys() == others.keys()
  for key, value in arrays.items():
    np.testing.assert_array_equal(value, others[key], err_msg=key)


def kill_and_resume(folder, seed, steps=60, kills=3):
  """Kills a run `kills` times at random moments, resumes it each time, and returns its final state."""
  rng = random.Random(seed)
  flags = (f"--config.training.n_iters={steps}",)
  for _ in range(kills):
    process = runs.start(folder, *flags)
    # From start-up through compilation, steps and saves: a run takes some ten seconds, the last five of them training.
    lines = []
    while "Starting" not in "".join(lines) and "Resuming" not in "".join(lines):
      line = process.stderr.readline()
      if not line:
        break
      lines.append(line)
    time.sleep(rng.uniform(0.0, 6.0))
    process.send_signal(signal.SIGKILL)
    process.communicate()
  code, _, err = runs.finish(folder, *flags)
  assert code == 0, err
  return final(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
  folder = tmp_path_factory.mktemp("uninterrupted")
  code, _, err = runs.finish(folder, "--config.training.n_iters=60")
  assert code == 0, err
  return final(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.longest) for s in range(1, 10))])
def test_a_killed_run_resumes_bit_identically(tmp_path, uninterrupted, seed):
  assert_identical(kill_and_resume(tmp_path / "killed", seed), uninterrupted)


@pytest.mark.slow
def test_sigterm_saves_at_once_and_exits_cleanly(tmp_path):
  """Stopped in mid-training, far from any scheduled save; the same command then goes on to the same end."""
  flags = ("--config.training.n_iters=200000", "--config.training.snapshot_freq_for_preemption=100000")
  process = runs.start(tmp_path, *flags, "--config.training.snapshot_freq=100000")
  while "Starting" not in (line := process.stderr.readline()):
    assert line, "the run ended before it trained"
  while not curves.read(tmp_path):
    time.sleep(0.1)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert "Stopped by a signal at step" in err
  with checkpoints.manager(str(tmp_path)) as opened:
    (step,) = opened.all_steps()
  assert f"step {step}," in err
  assert step < 100000


SIMULATED = """
import sys
sys.path[:0] = ["tests", "."]
import jax, numpy as np
from test_training import losses_of_twenty_steps
print(jax.local_device_count(), *losses_of_twenty_steps(sys.argv[1]))
"""


def losses_of_twenty_steps(network):
  """Losses of 20 steps of a small run; `network` is "mlp" or "ncsnpp"."""
  if network == "mlp":
    config = tiny(training__batch_size=32, training__n_jitted_steps=10, model__dropout=0.1, optim__warmup=5)
  else:
    config = tiny(
      training__batch_size=16, training__n_jitted_steps=1, model__name="ncsnpp", model__nf=8, model__ch_mult=(1,),
      model__attn_resolutions=(), model__dropout=0.1, optim__warmup=5,
    )  # fmt: skip
  config.eval.batch_size = 8
  experiment = build(config)
  source = training.data.load(experiment.config, "train")
  steps = train_step.make_train_steps(experiment)
  state = devices.run_once(lambda: train_step.init_state(experiment))
  blocks = training._blocks(experiment.config, training.data.batches(experiment.config, source, 0), 0)
  values = []
  while len(values) < 20:
    state, metrics = steps(state, next(blocks))
    jax.block_until_ready(state.step)
    values.extend(np.asarray(metrics["loss"]).tolist())
  return values


@pytest.mark.slow
@pytest.mark.parametrize("network", ["mlp", pytest.param("ncsnpp", marks=pytest.mark.longest)])
def test_eight_devices_train_as_one(network):
  """The same global batch over 20 steps, dropout, flips and dequantization included: losses within 1e-5."""
  curves = {}
  for count in (1, 8):
    done = subprocess.run(
      [sys.executable, "-c", SIMULATED, network], cwd=ROOT, env=runs.environment(count),
      capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, *values = done.stdout.split()
    assert int(found) == count
    curves[count] = np.array(values, float)
  assert len(curves[1]) == 20
  assert len(set(curves[1])) == 20
  np.testing.assert_allclose(curves[8], curves[1], rtol=1e-5)


@pytest.mark.slow
def test_a_diverging_run_stops_at_the_first_bad_step(tmp_path):
  """A rate that explodes after warm-up: the message names the step, the last good checkpoint stays, exit code 1."""
  flags = (
    "--config.optim.lr=1e38", "--config.optim.grad_clip=-1.0", "--config.optim.warmup=40",
    "--config.training.n_iters=400",
    "--config.training.snapshot_freq_for_preemption=2",
  )  # fmt: skip
  code, _, err = runs.finish(tmp_path, *flags)
  assert code == 1
  message = err.strip().splitlines()[-1]
  assert "not finite at step" in message
  assert "Traceback" not in err
  bad = int(message.split("at step ")[1].split()[0])
  with checkpoints.manager(str(tmp_path)) as opened:
    steps = list(opened.all_steps())
  assert all(step <= bad for step in steps)
  if steps:
    assert f"the checkpoint of step {max(steps)} is kept" in message


def test_a_run_leaves_curves_checkpoints_and_pictures(trained):
  folder, _ = trained
  with checkpoints.manager(str(folder)) as opened:
    assert sorted(opened.all_steps()) == [20, 30, 40]
  assert [row["step"] for row in curves.read(folder)] == [10, 20, 30, 40]
  assert (folder / "samples" / "step_00000020.png").stat().st_size > 1000
  assert (folder / "curves.png").stat().st_size > 1000
  resolved = json.loads((folder / "config.json").read_text())
  assert resolved["sampling"]["eps"] == 1e-3
  planned = json.loads((folder / "plan.json").read_text())
  assert planned["run"]["steps"] == 40
  arrays, _ = final(folder)
  assert planned["parameters"]["total"] == sum(x.size for k, x in arrays.items() if k.startswith("ema_params"))
  from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

  events = EventAccumulator(str(folder / "tensorboard"))
  events.Reload()
  assert [e.step for e in events.Scalars("loss")] == [10, 20, 30, 40]
  assert "samples" in events.Tags()["images"]
  assert not [p for p in folder.rglob("*") if "tmp" in p.name]


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    ("model.nf", 64, "model.nf was 32, is 64"),
    ("training.sde", "subvpsde", "training.sde was 'vpsde', is 'subvpsde'"),
    ("data.centered", False, "data.centered was True, is False"),
  ],
)
def test_checkpoints_of_another_model_are_refused(trained, key, value, message):
  folder, config = trained
  config = config.copy_and_resolve_references()
  section, name = key.split(".")
  config[section][name] = value
  for mode in (training.train, training.evaluation.sample):
    with pytest.raises(BadInput, match=message):
      mode(config, str(folder))


def test_a_damaged_checkpoint_is_found_and_the_one_before_taken(trained, tmp_path, caplog):
  """One bit of the newest checkpoint's data flipped."""
  import shutil

  folder, config = trained
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  largest = max(
    (copy / "checkpoints" / "40" / "ema_params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 0x10
  largest.write_bytes(content)
  experiment = build(config)
  with checkpoints.manager(str(copy)) as opened:
    targets = {"ema_params": experiment.abstract_params()}
    step, _ = checkpoints.restore(opened, targets, signature(experiment.config), str(copy))
  assert step == 30
  assert "Checkpoint 40" in caplog.text
  assert "cannot be used" in caplog.text


def test_a_snapshot_that_was_saved_but_not_shown_is_shown_on_resuming(trained, tmp_path):
  """As when a run is killed, or stopped by a signal, right after it saved one."""
  folder, config = trained
  copy = shutil.copytree(folder, tmp_path / "run")
  lost = copy / "samples" / "step_00000040.png"
  expected = lost.read_bytes()
  lost.unlink()
  training.train(config, str(copy))
  assert lost.read_bytes() == expected


def test_frequencies_must_fit_the_dispatches():
  config = tiny(training__n_jitted_steps=7)
  with pytest.raises(BadInput, match=r"training.log_freq=50 is no multiple of training.n_jitted_steps=7"):
    training.train(config, "/nonexistent")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("sde", "predictor", "corrector"),
  [("vesde", "ancestral_sampling", "ald"), ("vpsde", "ancestral_sampling", "none")],
)
def test_discrete_models_train_and_sample_on_the_official_grid(sde, predictor, corrector, tmp_path):
  """SMLD and DDPM: the network sees indices; ten noise levels, ten sampling steps."""
  config = tiny(
    training__sde=sde, training__continuous=False, training__n_iters=100, training__batch_size=32, optim__warmup=10,
    training__n_jitted_steps=10, training__log_freq=10, training__eval_freq=100, training__snapshot_freq=100,
    training__snapshot_freq_for_preemption=100, training__snapshot_sampling=False, training__final_report=False,
    training__weighting="simple", training__time_sampling="uniform",
    model__num_scales=30, model__sigma_max=5.0, model__embedding_type="positional", sampling__num_steps=30,
    sampling__grid="official", sampling__norms="batch", sampling__predictor=predictor, sampling__corrector=corrector,
    sampling__num_samples=8,
  )  # fmt: skip
  training.train(config, str(tmp_path))
  losses = [row["loss"] for row in curves.read(tmp_path)]
  assert losses[-1] < losses[0]
  training.evaluation.sample(config, str(tmp_path))
  with np.load(tmp_path / "samples.npz") as file:
    assert file["samples"].std() > 1
  if sde == "vesde":
    return  # the chain's bound is computed alike
  config.eval.likelihood, config.eval.enable_bpd, config.eval.num_examples = "chain", True, 8
  config.data.uniform_dequantization = False
  training.evaluation.evaluate(config, str(tmp_path))
  row = json.loads((tmp_path / "report.json").read_text())["checkpoints"][0]
  assert row["likelihood"] == "chain"
  assert row["likelihood_nfe"] == 30
  assert 1 < row["bits_per_dim"] < 30
