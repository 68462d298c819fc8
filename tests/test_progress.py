"""Signals, progress and short names of configs, as one meets them in a terminal, a log file and another folder."""

import functools
import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import pytest
import runs

from score_sde.run import devices, shipped
from score_sde.run.devices import programs
from score_sde.run.report import progress
from score_sde.run.workdir import commands, note_command, set_aside

# A program that is in compiled code for `seconds`, in which Python runs no handler, as during a compilation.
BUSY = """
import sys, time
import numpy as np
from score_sde.run.report.progress import stop_asked, stops_on_signal
with stops_on_signal():
  print("ready", flush=True)
  a = np.random.default_rng(0).standard_normal({size})
  a.sort()
  print("asked", stop_asked(), flush=True)
"""


def start_busy(size):
  code = textwrap.dedent(BUSY).format(size=size)
  process = subprocess.Popen(
    [sys.executable, "-c", code], cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "ready\n"
  return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_work_ends_by_itself(number):
  process = start_busy(30_000_000)
  time.sleep(0.3)
  process.send_signal(number)
  said = process.stderr.readline() + process.stderr.readline()  # before the sort is done
  assert "Stopping after this step or compilation" in said
  process.send_signal(signal.SIGTERM)  # schedulers send several
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 0
  assert out == "asked True\n"


def test_a_second_ctrl_c_ends_even_compiled_code(tmp_path):
  process = start_busy(150_000_000)  # a quarter of a minute
  time.sleep(0.5)
  process.send_signal(signal.SIGINT)
  time.sleep(0.5)
  began = time.monotonic()
  process.send_signal(signal.SIGINT)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 130
  assert "Stopped at once. The same command resumes" in err
  assert "asked" not in out
  assert time.monotonic() - began < 10


def test_without_a_terminal_progress_is_plain_lines(monkeypatch):
  log = io.StringIO()
  monkeypatch.setattr(sys, "stderr", log)
  with progress.Bar("train", 1000, " steps", 200, every=0.0) as bar:
    for step in (300, 400, 500):
      time.sleep(0.01)
      bar.show(step, loss=0.123456)
  lines = log.getvalue().splitlines()
  assert "\r" not in log.getvalue()
  assert re.fullmatch(r"train: 300 of 1,000 steps \(30%\), [\d.e+]+ steps/s, \d\d:\d\d left, loss 0\.1235", lines[0])
  assert lines[-1].startswith("train: 500 of 1,000 steps (50%)")


def test_a_long_compilation_is_announced_by_the_name_of_its_program():
  """And its run is not, nor a short compilation."""
  said = []
  loop = lambda x: jax.pure_callback(lambda x: (time.sleep(0.5), x)[1], x, x)
  slow = devices.over_devices(
    lambda score, x: loop(functools.reduce(lambda a, _: jnp.sin(a @ a.mT), range(60), x)), name="the sampler"
  )
  given = jnp.zeros(()), jnp.ones((2, 8, 8))
  with programs.announces_compilations(said.append, first=0.02, every=0.05):
    slow(*given)
    time.sleep(0.1)
  said = [line for line in said if "the function" not in line]  # reshapes, on a slow machine
  assert len(said) >= 2
  assert all(line.startswith("compiling the sampler: ") for line in said[:-1])
  assert said[-1].startswith("compiled the sampler in ")
  said.clear()
  with programs.announces_compilations(said.append, first=0.2, every=0.05):
    jax.block_until_ready(slow(*given))  # half a second
    jax.jit(lambda many: many + 1).lower(1.0)  # lowered, and not compiled
    time.sleep(0.5)
  assert [line for line in said if "the sampler" in line or "lambda" in line] == []


def test_configs_are_found_by_short_names_and_from_other_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ("quickstart", "configs/quickstart.py", "vp/cifar10_ddpmpp", "configs/vp/cifar10_ddpmpp.py"):
    assert pathlib.Path(shipped.find(name)).is_file(), name
  assert shipped.find("nowhere") == "nowhere"
  (tmp_path / "quickstart.py").write_text("mine")
  assert shipped.find("quickstart.py") == "quickstart.py"  # one's own file comes first
  (tmp_path / "quickstart").mkdir()  # as a workdir may be called
  assert shipped.find("quickstart").endswith("configs/quickstart.py")


@pytest.mark.thorough
def test_commands_work_in_an_empty_folder(tmp_path):
  """The config by its short name, and a config that imports others and names a file of the package."""
  run = lambda *a: subprocess.run(
    [sys.executable, "-m", "score_sde", *a], cwd=tmp_path, env=runs.environment() | {"PYTHONPATH": str(runs.ROOT)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  done = run("data", "show", "--config=quickstart", "--output=digits.png")
  assert done.returncode == 0, done.stderr
  assert (tmp_path / "digits.png").stat().st_size > 1000
  done = run("data", "show", "--config=quikstart")
  assert done.returncode == 2
  assert "Did you mean 'quickstart'?" in done.stderr


def test_results_are_set_aside_and_commands_are_noted(tmp_path):
  from etils import epath

  folder = epath.Path(tmp_path)
  (folder / "samples.png").write_text("old")
  (folder / "guided").mkdir()
  os.utime(tmp_path / "samples.png", (1.7e9, 1.7e9))
  set_aside(folder, ("samples.png", "guided", "missing.npz"), "2026-11-29 12:00:01 UTC")
  assert {p.name for p in tmp_path.iterdir()} == {"samples_2026-11-29_120001.png", "guided_2026-11-29_120001"}
  note_command(folder, ["python run.py", "--config=a b.py"])
  note_command(folder, ["python run.py", "--mode=eval"])
  assert [re.sub(r"^[\d: -]+  ", "", line) for line in commands(folder)] == [
    "python run.py '--config=a b.py'",
    "python run.py --mode=eval",
  ]
