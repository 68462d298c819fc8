"""Real processes that train together on loopback, and what becomes of them when something goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs

from benchmarks import scaling
from score_sde.run import checkpoints, data, train_step, training
from score_sde.run.config import BadInput
from score_sde.run.evaluate import samples
from score_sde.run.experiment import build
from score_sde.run.report import curves
from score_sde.run.workdir import claimed, make_workdir

WIDE = ("--config.model.nf=128", "--config.optim.decay=none")  # wide enough for fsdp to split; any length the same rate


def start_hosts(workdir, hosts, devices, *flags, timeout=60):
  """One process a host, each with simulated devices."""
  together = (f"--coordinator=127.0.0.1:{runs.free_port()}", f"--num_hosts={hosts}", f"--host_timeout={timeout}")
  return [
    runs.start(workdir, *WIDE, *flags, *together, f"--host_index={i}", devices=devices) for i in range(hosts)
  ]  # fmt: skip


def train(workdir, hosts, devices, *flags):
  """Trains to the end; returns the losses {step: loss}."""
  if hosts == 1:
    code, _, err = runs.finish(workdir, *WIDE, *flags, devices=devices)
    assert code == 0, err
  else:
    for process in start_hosts(workdir, hosts, devices, *flags):
      _, err = process.communicate(timeout=300)
      assert process.returncode == 0, err
  return losses(workdir)


def wait_until(happens, seconds=200):
  deadline = time.monotonic() + seconds
  while not happens() and time.monotonic() < deadline:
    time.sleep(0.02)


def reaches(workdir, step):
  """Waits until a run has logged `step`."""
  wait_until(lambda: max(losses(workdir), default=0) >= step)


def losses(workdir):
  return {row["step"]: row["loss"] for row in curves.read(workdir)}


def state_of(workdir):
  """What the newest checkpoint holds, on this process's device."""
  experiment = build(runs.tiny(model__nf=128))
  with checkpoints.manager(str(workdir)) as opened:
    return train_step.saved_form(train_step.restore_state(opened, experiment, str(workdir)))


FSDP = "--config.training.parallelism=fsdp"


@pytest.mark.thorough
def test_a_split_state_is_given_up_for_the_new_one_and_gathered_where_it_is_used():
  """By XLA's own analysis, on four devices in half precision."""
  what = ("--config=configs/quickstart.py", '--config.model.dtype="bfloat16"')
  command = [sys.executable, "-m", "benchmarks.scaling", *what]
  found = {}
  for devices, parallelism in ((1, "pmap"), (4, "fsdp")):
    environment = runs.environment(devices)
    environment["XLA_FLAGS"] += f" {scaling.NOTHING_MERGED}"
    done = subprocess.run(
      [*command, f"--one={parallelism}"], cwd=runs.ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found[devices] = json.loads(done.stdout.partition("ROW")[2])
  one, four = found[1], found[4]
  whole = 16 * one["parameters"]  # parameters, their average and two moments: float32 though products are not
  assert whole <= one["donated"] <= one["state"] < 1.01 * whole
  assert whole / 4 <= four["donated"] <= four["state"] < 1.1 * whole / 4
  gathers, scatters = (four["collectives"][kind]["count"] for kind in ("all-gather", "reduce-scatter"))
  assert 1 < scatters < gathers <= 2 * scatters  # the first layers' are still there when gradients begin


@pytest.mark.slow
@pytest.mark.parametrize(
  ("hosts", "more"),
  [(2, (FSDP,)), *(pytest.param(*c, marks=pytest.mark.longest) for c in ((2, ()), (4, ()), (4, (FSDP,))))],
)
def test_hosts_train_as_one_process_does(hosts, more, tmp_path):
  flags = ("--config.training.n_iters=20",)
  alone = train(tmp_path / "alone", 1, 1, *flags)
  assert len(alone) == 10
  together = train(tmp_path / "together", hosts, 2, *flags, *more)
  assert together == pytest.approx(alone, abs=1e-5)
  left = sorted(p.name for p in (tmp_path / "together").glob(".*"))
  assert left == [".claimed"]  # no half a file
  logs = tmp_path / "together" / "logs"
  assert sorted(p.name for p in logs.iterdir()) == [f"host_{i}.log" for i in range(hosts)]
  assert "Starting a run of 20 steps" in (logs / "host_0.log").read_text()


@pytest.fixture(scope="module", params=["8 devices", pytest.param("2 hosts", marks=pytest.mark.longest)])
def written(request, tmp_path_factory):
  """(a run of 20 steps, the losses of the same run when it goes on to step 40), under pmap, where `param` says."""
  folder = tmp_path_factory.mktemp("written")
  hosts, devices = (1, 8) if request.param == "8 devices" else (2, 2)
  train(folder / "first", hosts, devices, "--config.training.n_iters=20")
  whole = shutil.copytree(folder / "first", folder / "whole")
  return folder / "first", train(whole, hosts, devices, "--config.training.n_iters=40")


def on(hosts, devices, *more, longest=False):
  return pytest.param(hosts, devices, more, marks=[pytest.mark.longest] * longest, id=f"{hosts}x{devices}{more[:1]}")


@pytest.mark.slow
@pytest.mark.parametrize(
  ("hosts", "devices", "more"),
  [
    on(1, 1),
    on(1, 16, FSDP, "--config.training.fsdp_devices=4"),
    on(1, 4, longest=True),
    on(1, 16, longest=True),
    on(1, 4, FSDP, longest=True),
    on(1, 8, FSDP, longest=True),
    on(2, 2, FSDP, longest=True),
    on(4, 1, longest=True),
  ],
)
def test_a_run_goes_on_on_other_devices(written, hosts, devices, more, tmp_path):
  """At the same place of the data stream: losses are those of the run that went on where it was."""
  first, whole = written
  moved = shutil.copytree(first, tmp_path / "moved")
  assert train(moved, hosts, devices, "--config.training.n_iters=40", *more) == pytest.approx(whole, abs=1e-5)
  assert len(whole) == 20


JOIN = """
import jax
from score_sde.run import devices
devices.connect(None, None, None, 60)
print(devices.host_index(), devices.describe(), jax.config.read("jax_cuda_visible_devices"), sep="; ")
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("nodes", "more", "visible"),
  [
    (2, {}, ("all", "all")),
    (1, {}, ("0", "1")),
    (1, {"CUDA_VISIBLE_DEVICES": "3"}, ("all", "all")),
    (2, {"JAX_LOCAL_DEVICE_IDS": "2,3"}, ("2,3", "2,3")),
  ],
  ids=["a process a machine", "a process a GPU", "a process a GPU, and each sees its own", "as the user says"],
)
def test_slurm_s_processes_find_each_other_and_use_every_gpu(nodes, more, visible):
  """By the variables that SLURM sets; JAX alone would use one GPU of a machine that has one process."""
  job = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": str(nodes),
    "JAX_COORDINATOR_PORT": str(runs.free_port()), **more,
  }  # fmt: skip
  processes = []
  for i in range(2):
    task = {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i if nodes == 1 else 0)}
    environment = runs.environment(2) | job | task
    processes.append(
      subprocess.Popen([sys.executable, "-c", JOIN], cwd=runs.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    )
  out = [process.communicate(timeout=100)[0].strip() for process in processes]
  assert out == [f"{i}; 4 cpu devices on 2 hosts; {visible[i]}" for i in range(2)]


@pytest.mark.slow
@pytest.mark.longest
def test_hosts_stop_together_where_one_gets_a_signal_and_go_on(tmp_path):
  hosts = start_hosts(tmp_path / "run", 2, 1, "--config.training.n_iters=100000")
  reaches(tmp_path / "run", 20)
  hosts[1].send_signal(signal.SIGTERM)
  ended = [process.communicate(timeout=100)[1] for process in hosts]
  assert [process.returncode for process in hosts] == [0, 0]
  with checkpoints.manager(str(tmp_path / "run")) as opened:
    saved = max(opened.all_steps())
  assert saved < 100000
  for err in ended:
    assert f"Stopped by a signal at step {saved}, which is saved" in err
  whole = train(tmp_path / "whole", 1, 2, flag := f"--config.training.n_iters={saved + 20}")
  assert train(tmp_path / "run", 2, 1, flag) == pytest.approx(whole, abs=1e-5)


@pytest.mark.slow
def test_a_killed_host_ends_the_others_and_the_run_resumes_bit_for_bit(tmp_path):
  often = ("--config.training.snapshot_freq_for_preemption=20",)
  first, second = start_hosts(tmp_path / "killed", 2, 1, "--config.training.n_iters=100000", *often)
  reaches(tmp_path / "killed", 50)
  second.send_signal(signal.SIGKILL)
  killed = time.monotonic()
  _, err = first.communicate(timeout=100)
  assert time.monotonic() - killed < 60
  # Seldom, on a loaded machine, JAX's own watch over the hosts aborts the process first.
  assert first.returncode in (1, -signal.SIGABRT)
  if first.returncode == 1:
    assert "Host 0 of 2 has lost another one" in err
    assert "resume at the newest checkpoint" in err
    assert "Traceback" not in err
  with checkpoints.manager(str(tmp_path / "killed")) as opened:
    newest = max(opened.all_steps())
  flags = (f"--config.training.n_iters={newest + 20}", *often)
  train(tmp_path / "killed", 2, 1, *flags)
  train(tmp_path / "whole", 2, 1, *flags)
  resumed, whole = state_of(tmp_path / "killed"), state_of(tmp_path / "whole")
  assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.slow
@pytest.mark.longest
def test_a_host_that_falls_silent_ends_the_others(tmp_path):
  """As a machine that hangs: its process is stopped, not killed, so that connections stay open."""
  first, second = start_hosts(tmp_path, 2, 1, "--config.training.n_iters=100000", timeout=10)
  reaches(tmp_path, 20)
  second.send_signal(signal.SIGSTOP)
  stopped = time.monotonic()
  try:
    _, err = first.communicate(timeout=100)
    assert time.monotonic() - stopped < 60
    assert first.returncode != 0
    assert "stopped sending heartbeats" in err
    assert "another task died" in err  # JAX's own words, before it ends the process
  finally:
    second.kill()
    second.communicate()


@pytest.mark.slow
@pytest.mark.longest
def test_an_evaluation_ends_where_one_host_gets_a_signal(tmp_path):
  train(tmp_path, 1, 1, "--config.training.n_iters=20")
  more = ("--mode=eval", "--config.eval.enable_sampling=True", "--config.eval.num_samples=1000000")
  first, second = start_hosts(tmp_path, 2, 1, "--config.training.n_iters=20", *more, timeout=10)
  wait_until(lambda: len(list(tmp_path.rglob("batch_*.npz"))) >= 4)
  second.send_signal(signal.SIGTERM)
  signalled = time.monotonic()
  _, err = second.communicate(timeout=100)
  assert "Stopped by a signal" in err
  _, err = first.communicate(timeout=100)
  assert time.monotonic() - signalled < 60
  assert first.returncode != 0
  for batch in tmp_path.rglob("batch_*.npz"):
    assert len(samples.read_batch(batch)["samples"]) == 16


@pytest.mark.slow
@pytest.mark.longest
def test_a_host_that_comes_late_is_waited_for(tmp_path):
  """The second starts twenty seconds after the first."""
  flags = (*WIDE, "--config.training.n_iters=20", f"--coordinator=127.0.0.1:{runs.free_port()}", "--num_hosts=2")
  first = runs.start(tmp_path, *flags, "--host_index=0")
  time.sleep(20)
  second = runs.start(tmp_path, *flags, "--host_index=1")
  for process in (first, second):
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
  assert len(losses(tmp_path)) == 10


@pytest.mark.slow
def test_a_host_that_does_not_come_is_waited_for_so_long_and_no_longer(tmp_path):
  process = runs.start(
    tmp_path, f"--coordinator=127.0.0.1:{runs.free_port()}", "--num_hosts=2", "--host_index=0", "--host_timeout=5"
  )
  _, err = process.communicate(timeout=100)
  assert process.returncode == 1
  assert "not all came within --host_timeout=5 s" in err
  assert "Traceback" not in err


@pytest.mark.slow
def test_hosts_are_given_whole_or_not_at_all(tmp_path):
  for flags, message in (
    (("--coordinator=127.0.0.1:1",), "--num_hosts and --host_index must be given, too"),
    (("--coordinator=127.0.0.1:1", "--num_hosts=2", "--host_index=2"), "--host_index=2 must lie in 0 to 1"),
    (("--host_timeout=0",), "--host_timeout=0 must be positive"),
  ):
    code, _, err = runs.finish(tmp_path, *flags)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_two_jobs_do_not_share_a_workdir(trained, tmp_path):
  _, config = trained

  with claimed(tmp_path), pytest.raises(BadInput, match=rf"is another job's.*process {os.getpid()}"):
    training.train(config, str(tmp_path))
  with claimed(tmp_path):  # given up again
    pass


@pytest.fixture
def small_disk(tmp_path):
  """A file system of its own in memory: mount(options) makes it, or makes it anew as remount."""
  folder = tmp_path / "disk"
  folder.mkdir()

  def mount(options):
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
      pytest.skip("mounting a file system needs root")
    return folder

  yield mount
  subprocess.run(["umount", folder], capture_output=True, check=False)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_room_lets_it_go_on(small_disk):
  """The first time as the run sees it coming, the second time behind its back."""
  flags = ("--config.training.n_iters=300",)
  folder = small_disk("size=1400k")
  code, _, err = runs.finish(folder / "run", *flags)
  assert code == 1
  last = err.strip().splitlines()[-1]
  assert "MiB left, and a checkpoint takes" in last
  assert "Traceback" not in err
  newest = lambda: max(int(p.name) for p in (folder / "run/checkpoints").iterdir() if p.name.isdigit())
  seen = newest()
  code, _, err = runs.finish(folder / "run", *flags, blind="checkpoints.check_space = lambda *trees: None")
  assert code == 1
  assert "is full. The newest checkpoint there is whole" in err.strip().splitlines()[-1]
  assert "coroutine" not in err
  hit = newest()
  assert hit >= seen
  small_disk("remount,size=40m")
  code, _, err = runs.finish(folder / "run", *flags)
  assert code == 0, err
  assert f"at step {hit}:" in err
  assert not list((folder / "run/checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_a_disk_that_can_only_be_read_is_named(small_disk):
  folder = small_disk("size=1m")
  small_disk("remount,ro")
  code, _, err = runs.finish(folder / "run")
  assert code == 2
  assert err.strip() == f"run.py: --workdir='{folder}/run' cannot be written to (Read-only file system). Give another."


def test_a_full_disk_is_named_before_a_checkpoint_is_begun(trained, tmp_path, monkeypatch):
  _, config = trained
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
  with pytest.raises(checkpoints.DiskFull, match=r"has 0.0 MiB left, and a checkpoint takes 0\.\d"):
    training.train(config, str(tmp_path))
  assert not list((tmp_path / "checkpoints").glob("*"))


def test_a_reader_that_hangs_ends_the_run(monkeypatch):
  config = build(runs.tiny()).config
  monkeypatch.setattr(data.Arrays, "gather", lambda self, indices: time.sleep(3))
  with pytest.raises(data.Stalled, match=r"No batch came within training.data_timeout=0.2 s"):
    next(data.within(data.batches(config, data.Arrays(np.zeros((9, 8, 8, 1)), np.zeros(9)), 0), 0.2))


def test_what_a_reader_raises_comes_through():
  def batches():
    yield 1
    raise OSError("gone")

  found = data.within(batches(), 5)
  assert next(found) == 1
  with pytest.raises(OSError, match="gone"):
    next(found)


def test_checksums_are_the_same_on_the_host_and_on_devices():
  rng = np.random.default_rng(0)
  half = jax.numpy.bfloat16
  for x in (rng.normal(size=(3, 4, 5)).astype(np.float32), np.int32(7), rng.normal(size=3).astype(half), np.arange(6)):
    x = np.asarray(x)
    with np.errstate(over="ignore"):
      total = checkpoints._weighted_sum(x)
      if x.dtype.itemsize <= 4:
        assert total == jax.jit(lambda v: checkpoints._weighted_sum(v, jax.numpy))(x)
      for place in range(x.size):  # every bit counts
        words = x.copy().reshape(-1).view(np.uint8)
        words[place * x.dtype.itemsize + rng.integers(x.dtype.itemsize)] ^= 1 << rng.integers(8)
        assert checkpoints._weighted_sum(words.view(x.dtype).reshape(x.shape)) != total


def test_a_workdir_that_cannot_be_made_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(BadInput, match=r"--workdir='.*file/run' cannot be written to \(Not a directory\)"):
    make_workdir(str(tmp_path / "file" / "run"))
