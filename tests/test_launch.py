"""What goes around a run: sweeps, the cache of compiled programs, profiles, speed, Weights & Biases."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import types

import jax
import jax.numpy as jnp
import pytest
import runs

from configs import quickstart
from score_sde.run import sweep as sweeps
from score_sde.run import training
from score_sde.run.cli import arguments
from score_sde.run.config import BadInput
from score_sde.run.devices import programs, targets
from score_sde.run.speed import Speed
from score_sde.run.sweep import changed, combinations, commands, slurm_script, sweep


def short(**values):
  """A run of 8 steps without pictures."""
  return runs.tiny(
    model__nf=8, training__batch_size=8, training__n_iters=8, training__n_jitted_steps=2, training__log_freq=2,
    training__eval_freq=4, training__snapshot_freq=8, training__snapshot_freq_for_preemption=4, eval__batch_size=8,
    training__final_report=False, training__snapshot_sampling=False, **values,
  )  # fmt: skip


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_has_a_command_and_a_workdir_for_each_combination():
  config = quickstart.get_config()
  chosen = combinations(config, ["training.sde=vesde,vpsde", "model.fir_kernel=(1,2,1),(1,3,3,1)", "seed=1"])
  assert len(chosen) == 4
  found = commands("configs/quickstart.py", "runs/sweep", chosen, ["--config.optim.lr=0.1"])
  folders = {next(a for a in command if a.startswith("--workdir=")) for command in found}
  assert "--workdir=runs/sweep/sde=vpsde,fir_kernel=(1,3,3,1),seed=1" in folders
  assert len(folders) == 4
  assert found[0][1:] == [
    "-m", "score_sde", "train", "--config=configs/quickstart.py",
    "--workdir=runs/sweep/sde=vesde,fir_kernel=(1,2,1),seed=1",
    "--config.optim.lr=0.1", "--config.training.sde=vesde", "--config.model.fir_kernel=(1,2,1)", "--config.seed=1",
  ]  # fmt: skip


@pytest.mark.parametrize(
  ("settings", "part"),
  [
    ([], "--set is missing"),
    (["optim.lt=1"], "'optim.lt'"),
    (["optim=1"], "'optim'"),
    (["optim.lr"], "KEY=VALUE,VALUE"),
    (["optim.lr=1,,2"], "KEY=VALUE,VALUE"),
    (["optim.lr=1", "optim.lr=2"], "set twice"),
  ],
)
def test_wrong_settings_are_named(settings, part):
  with pytest.raises(BadInput, match=part):
    combinations(quickstart.get_config(), settings)


@pytest.mark.parametrize(
  ("setting", "part"),
  [
    ("training.sde=vezde,vpsde", "--set training.sde=vezde: training.sde='vezde'"),
    ("optim.lr=fast", "optim.lr=fast has the wrong type"),
    ("sampling.corrector_steps=0", "n_steps_each"),
    ("model.name=mlp,nosuch", "model.name=nosuch"),
    ("training.n_jitted_steps=3,5", "no multiple of training.n_jitted_steps=3"),
    ("data.path=a/x,a_x", "Two runs of the sweep would share"),
  ],
)
def test_a_sweep_tries_each_combination_before_a_queue_does(setting, part, tmp_path):
  setting = setting.replace("sampling.corrector_steps", "sampling.n_steps_each")
  with pytest.raises(BadInput, match=part):
    sweep(quickstart.get_config(), "configs/quickstart.py", str(tmp_path), [setting])


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("optim.lr", "1e-4", 1e-4), ("training.sde", "vesde", "vesde"), ("data.random_flip", "TRUE", True),
    ("data.random_flip", "0", False), ("model.attn_resolutions", "4", (4,)), ("model.ch_mult", "(1,2)", (1, 2)),
    ("data.columns", "height", ("height",)), ("data.image_size", "(8,16)", (8, 16)), ("eval.report", "2024", "2024"),
    ("eval.checkpoint", "1", "1"), ("sampling.num_steps", "20", 20), ("model.sigma_max", "50", 50.0),
  ],
)  # fmt: skip
def test_a_sweep_s_settings_become_the_values_that_flags_would_give(key, text, value):
  config = changed(quickstart.get_config(), {key: text})
  section, name = key.split(".")
  assert config[section][name] == value


def test_each_task_of_a_slurm_array_runs_its_command(tmp_path):
  """bash runs the script, with an srun that prints its arguments."""
  found = [["python", "-m", "score_sde", f"--workdir=a b{i}"] for i in range(3)]
  script, fake = tmp_path / "sweep.sh", tmp_path / "srun"
  script.write_text(slurm_script(found, str(tmp_path)))
  fake.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
  fake.chmod(0o755)
  assert "--array=0-2" in script.read_text()
  for i, command in enumerate(found):
    env = os.environ | {"SLURM_ARRAY_TASK_ID": str(i), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == command


@pytest.mark.slow
@pytest.mark.longest
def test_a_sweep_runs_its_trainings_and_resumes(tmp_path):
  command = [*runs.command(tmp_path / "sweep", config="configs/toy/two_moons.py", tiny=False)]
  command[1:2] = ["-m", "score_sde", "sweep"]
  command += [
    "--set", "training.sde=vpsde,subvpsde", "--run", "--config.training.n_iters=4",
    "--config.training.n_jitted_steps=2",
    "--config.training.log_freq=2", "--config.training.eval_freq=2", "--config.training.snapshot_freq=4",
    "--config.training.snapshot_freq_for_preemption=2", "--config.training.final_report=False",
    "--config.training.snapshot_sampling=False", "--config.model.nf=16",
  ]  # fmt: skip
  for expected in ("Starting a run", "nothing is left to train"):
    done = subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(expected) == 2, done.stderr
  assert sorted(p.name for p in (tmp_path / "sweep").iterdir()) == ["sde=subvpsde", "sde=vpsde"]
  configs = [json.loads((p / "config.json").read_text()) for p in sorted((tmp_path / "sweep").iterdir())]
  assert [c["training"]["sde"] for c in configs] == ["subvpsde", "vpsde"]


# --- while it runs ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_process_finds_the_compiled_programs(tmp_path):
  env = runs.environment() | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
  env.pop("JAX_COMPILATION_CACHE_DIR", None)
  command = runs.command(tmp_path / "run", "--config.training.n_iters=4", "--config.training.eval_freq=2")
  listings = []
  for _ in range(2):
    done = subprocess.run(command, cwd=runs.ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listings.append(sorted(p.name for p in (tmp_path / "run" / "compiled").iterdir() if p.name.endswith("-cache")))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
  assert listings[0]
  assert listings[0] == listings[1]


def test_a_chosen_cache_is_kept(tmp_path):
  before = jax.config.jax_compilation_cache_dir  # that of the tests
  programs.cache_programs(tmp_path)
  assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.thorough
def test_a_second_compilation_is_reported_once_with_its_reason(caplog):
  run = programs.warns_of_recompilation("train step", jax.jit(lambda x, y: x + y))
  with caplog.at_level(logging.WARNING, "score_sde"):
    run(jnp.ones(3), jnp.ones(3))
    run(jnp.ones(3), jnp.ones(3))
    run(jnp.ones(4), jnp.ones(4))  # another shape may compile
    assert not caplog.records
    jax.clear_caches()
    run(jnp.ones(3), jnp.ones(3))
    jax.clear_caches()
    run(jnp.ones(3), jnp.ones(3))
  assert len(caplog.records) == 1
  assert "The train step was compiled again, although no shape is new" in caplog.text


def test_speed_is_measured_from_the_second_interval(monkeypatch):
  monkeypatch.setattr(programs, "peak_flops", lambda dtype: 1e12)
  clock = iter([10.0, 12.0])
  monkeypatch.setattr("time.monotonic", lambda: next(clock))
  speed = Speed(32, "float32", lambda: 5e9)
  assert speed.measure(100) == {}
  speed.start(100)
  found = speed.measure(140)  # 20 steps per second
  assert found["images_per_second"] == 640
  assert found["model_flops_utilization"] == pytest.approx(0.1)
  assert speed.shown["mfu"] == pytest.approx(0.1)


@pytest.mark.slow
def test_a_run_leaves_a_profile_and_follows_weights_and_biases(tmp_path, monkeypatch, caplog):
  """Offline: the run's file holds its losses; a resumed run has the same id."""
  monkeypatch.setenv("WANDB_MODE", "offline")
  config = short(training__wandb_project="test", training__profile_steps=(2, 4))
  with caplog.at_level(logging.WARNING, "score_sde"):
    training.train(config, str(tmp_path))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))
  assert "compiled again" not in caplog.text
  name = (tmp_path / "wandb_id").read_text()
  (file,) = (tmp_path / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb")
  assert b"grad_norm" in file.read_bytes()
  config.training.n_iters = 10
  training.train(config, str(tmp_path))
  assert len(list((tmp_path / "wandb").glob(f"offline-run-*-{name}"))) == 2
  assert (tmp_path / "wandb_id").read_text() == name


@pytest.mark.parametrize("steps", [(3,), (5, 5), (-1, 4), (3, 4)])
def test_steps_of_a_profile_are_checked(steps):
  with pytest.raises(BadInput, match="profile_steps"):
    training.check_options(short(training__profile_steps=steps))


def test_weights_and_biases_must_be_installed(monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(BadInput, match=r"pip install -e '\.\[wandb\]'"):
    training.check_options(short(training__wandb_project="x"))


def test_flags_of_two_words_are_passed_on_as_one():
  argv = ["sweep", "--config.training.wandb_project", "name", "--config.eval.enable_bpd", "--config.optim.lr=1e-4",
          "--noconfig.data.centered", "--config.sampling.tau", "-1", "--set", "optim.lr=1,2"]  # fmt: skip
  assert arguments.overrides(argv) == [
    "--config.training.wandb_project=name", "--config.eval.enable_bpd", "--config.optim.lr=1e-4",
    "--noconfig.data.centered", "--config.sampling.tau=-1",
  ]  # fmt: skip


def test_a_run_of_a_sweep_gets_the_signal_to_stop(monkeypatch, tmp_path):
  program = (
    "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7)); "
    "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
  )
  monkeypatch.setattr(sweeps, "stop_asked", lambda: (tmp_path / "ready").exists())
  assert sweeps._run(["python", "-c", program, str(tmp_path / "ready")]) == 7


def test_chips_are_known_by_their_names():
  assert dataclasses.is_dataclass(targets.CHIPS["h100"])
  for name, kind in {
    "v5e": "TPU v5 lite",
    "v5p": "TPU v5",
    "v6e": "TPU v6 lite",
    "h100": "NVIDIA H100 80GB HBM3",
  }.items():
    assert targets.chip_of(types.SimpleNamespace(device_kind=kind)) is targets.CHIPS[name]
  assert targets.chip_of(types.SimpleNamespace(device_kind="cpu")) is None
  assert programs.peak_flops("float32") is None  # a CPU's peak is in no table
