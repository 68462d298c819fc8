"""Sweep: one run for each combination of settings, as commands, one after the other, or as a SLURM array."""

import copy
import itertools
import logging
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from score_sde.errors import ScoreSDEError
from score_sde.run import data
from score_sde.run.config import BadInput, check_key, resolve
from score_sde.run.config.networks import create
from score_sde.run.report.progress import Interrupted, stop_asked
from score_sde.run.storage import in_bucket, path_of, save_atomically
from score_sde.run.training import check_options

log = logging.getLogger(__name__)


class RunsFailed(ScoreSDEError):
  """Error: some runs of a sweep failed."""


def combinations(config: ConfigDict, settings: Sequence[str]) -> list[dict[str, str]]:
  """Returns the combinations {key: value} of settings of the form "training.sde=vesde,vpsde".

  Commas within brackets belong to a value: "model.ch_mult=(1,2),(1,2,2)" has two.

  Raises:
    BadInput: for a setting without a value, a key twice, or a key that the config does not have.
  """
  values: dict[str, list[str]] = {}
  for setting in settings:
    key, _, text = setting.partition("=")
    key = key.strip().removeprefix("config.")
    found = [v.strip() for v in re.split(r",(?![^(\[]*[)\]])", text)]
    if not all(found):
      raise BadInput(f"--set {setting!r} must be KEY=VALUE,VALUE,..., such as optim.lr=1e-4,2e-4.")
    try:
      check_key(config, key, "")
    except BadInput as error:
      raise BadInput(f"--set with the key {key!r}: {error}") from error
    if key in values:
      raise BadInput(f"--set {setting!r}: {key} is set twice. Give all its values in one --set.")
    values[key] = found
  if not values:
    raise BadInput("--set is missing. Give settings to combine, e.g. --set training.sde=vesde,vpsde.")
  return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def changed(config: ConfigDict, settings: Mapping[str, str]) -> ConfigDict:
  """Returns a copy of `config` with the values of `settings`, {dotted key: text}.

  Raises:
    BadInput: for a value of another type than that of its key.
  """
  config = copy.deepcopy(config)
  for key, text in settings.items():
    flag, parser = f"--config.{key}={text}", flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=parser, sys_argv=["sweep", flag])
    try:
      parser(["sweep", flag])
    except (flags.Error, TypeError, ValueError) as error:
      raise BadInput(f"{key}={text} has the wrong type: {error}") from error
  return config


def commands(
  config_file: str, workdir: str, chosen: list[dict[str, str]], flags: Sequence[str] = ()
) -> list[list[str]]:
  """Returns one command per combination. Each has a workdir of its own, named after what it sets."""
  short = lambda key: key.rpartition(".")[2]
  names = list(chosen[0])
  label = lambda key: key if sum(short(k) == short(key) for k in names) > 1 else short(key)
  program = [pathlib.Path(sys.executable).name, "-m", "score_sde", "train", f"--config={config_file}"]
  found = []
  for settings in chosen:
    folder = ",".join(f"{label(k)}={re.sub(r'[^-+.,()=A-Za-z0-9]', '_', v)}" for k, v in settings.items())
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    found.append([*program, f"--workdir={os.path.join(workdir, folder)}", *flags, *overrides])
  places = [command[len(program)] for command in found]
  same = next((place for place in places if places.count(place) > 1), "")
  if same:
    raise BadInput(f"Two runs of the sweep would share {same}: their values differ only in special characters.")
  return found


def slurm_script(runs: list[list[str]], workdir: str) -> str:
  """Returns a SLURM script: a job array with one task per run. Submitted again, it resumes all runs."""
  logs = "" if in_bucket(workdir) else f"{workdir}/logs/"
  lines = "\n".join(f"  {shlex.quote(shlex.join(run))}" for run in runs)
  return (
    "#!/bin/bash\n"
    f"#SBATCH --job-name=sweep --array=0-{len(runs) - 1} --gpus-per-node=1\n"
    f"#SBATCH --output={logs}slurm_%A_%a.log --signal=B:TERM@120 --requeue\n\n"
    f"runs=(\n{lines}\n)\n\n"
    "# The shell passes the signal that SLURM sends before the time limit: the run saves its state and ends.\n"
    'eval "srun ${runs[$SLURM_ARRAY_TASK_ID]} &"\n'
    "child=$!\ntrap 'kill -TERM $child; wait $child' TERM\nwait $child\n"
  )


def _run(command: list[str]) -> int:
  """Runs a command and returns its exit code. A signal to stop is passed on, so that the run saves its state."""
  child = subprocess.Popen([sys.executable, *command[1:]])
  told = False
  while True:
    try:
      return child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
      if stop_asked() and not told:
        child.terminate()
        told = True


def sweep(
  config: ConfigDict, config_file: str, workdir: str, settings: Sequence[str], flags: Sequence[str] = (), *,
  run: bool = False, slurm: str = "", check: Callable[[ConfigDict, Sequence[str]], None] = lambda config, keys: None,
) -> None:  # fmt: skip
  """Prints the commands of a sweep, runs them one after the other with `run`, or writes a script for `slurm`.

  A run that has ended is not trained again, and one that was stopped resumes. Each combination is resolved first, and
  `check(resolved config, keys that it sets)` may refuse it: a mistake is found here, and not in a cluster's queue.

  Raises:
    BadInput: for wrong settings.
    RunsFailed: if runs failed. The others were run.
  """
  chosen = combinations(config, settings)
  for its in chosen:
    try:
      tried = changed(config, its)
      if tried.training.n_jitted_steps is None:  # its default asks for the devices, which the runs need
        tried.training.n_jitted_steps = 1
      resolved = resolve(tried)
      check(resolved, list(its))
      create(resolved, data.example_shape(resolved))
      check_options(resolved)
    except BadInput as error:
      raise BadInput(f"--set {' '.join(f'{k}={v}' for k, v in its.items())}: {error}") from error
  runs = commands(config_file, workdir, chosen, flags)
  if slurm:
    if not in_bucket(workdir):
      (path_of(workdir) / "logs").mkdir(parents=True, exist_ok=True)  # SLURM writes there, and does not create it
    save_atomically(slurm, lambda file: file.write(slurm_script(runs, workdir).encode()))
    print(f"sbatch {slurm}  # {len(runs)} runs")
    return
  if not run:
    print("\n".join(map(shlex.join, runs)))
    return
  failed = []
  for i, command in enumerate(runs):
    log.info("Run %d of %d: %s", i + 1, len(runs), shlex.join(command))
    code = _run(command)
    if stop_asked():
      raise Interrupted(f"Stopped by a signal in run {i + 1} of {len(runs)}. The same command goes on there.")
    failed += [shlex.join(command)] * bool(code)
  if failed:
    raise RunsFailed(f"{len(failed)} of {len(runs)} runs failed: {'; '.join(failed)}")
  log.info("python -m score_sde compare %s", os.path.join(workdir, "*"))
