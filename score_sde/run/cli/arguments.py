"""Flags of all commands: read and checked before anything else starts."""

import difflib
import logging
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Sequence
from itertools import pairwise

from absl import flags
from ml_collections import ConfigDict, config_flags

from score_sde.run import devices, shipped, stored
from score_sde.run.cli.endings import fail
from score_sde.run.config import BadInput, check_key, default_config, get, keys, why_unread
from score_sde.run.report.progress import be_silent
from score_sde.run.storage import path_of

MODES = ("train", "sample", "eval", "plan")

# The command line as it was typed: programs and flags may be replaced below.
TYPED = ["python -m score_sde" if sys.argv[0].endswith("__main__.py") else f"python {sys.argv[0]}", *sys.argv[1:]]

# A config file that reads the stored config of a run.
STORED = os.path.abspath(stored.__file__)

# The flags in the files of --flagfile replace it, before anything reads the command line.
if any(argument.startswith(("-flagfile", "--flagfile")) for argument in sys.argv):
  try:
    sys.argv[:] = flags.FLAGS.read_flags_from_files(sys.argv)
  except flags.Error as error:
    fail(str(error).removeprefix("ERROR:: "))

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/quickstart.py.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, curves, pictures, reports.")
DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Use several hosts, found through the TPU pod, SLURM, Open MPI or Kubernetes."
)
COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Use several hosts: HOST:PORT of the first one, the same value on all of them."
)
NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "With --coordinator: number of processes.")
HOST_INDEX = flags.DEFINE_integer("host_index", None, "With --coordinator: index of this process, from 0.")
HOST_TIMEOUT = flags.DEFINE_integer("host_timeout", 300, "Seconds after which a silent host counts as lost.")
MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
TARGET = flags.DEFINE_string(
  "target", "local", "With --mode=plan: the machine, e.g. local, tpu:v5e:2x4, tpu:v6e:4x4 or cuda:h100:8."
)


def connect() -> None:
  """Joins the other hosts if the flags ask for several."""
  listed = {"coordinator": COORDINATOR.value, "num_hosts": NUM_HOSTS.value, "host_index": HOST_INDEX.value}
  missing = [f"--{name}" for name, value in listed.items() if value is None]
  if len(missing) not in (0, 3):
    fail(f"{' and '.join(missing)} must be given, too: --coordinator=HOST:PORT --num_hosts=N --host_index=I.")
  index, count = HOST_INDEX.value or 0, NUM_HOSTS.value or 1
  if not missing and not 0 <= index < count:
    fail(f"--host_index={index} must lie in 0 to {count - 1}, for --num_hosts={count}.")
  if HOST_TIMEOUT.value < 1:
    fail(f"--host_timeout={HOST_TIMEOUT.value} must be positive.")
  if not missing or DISTRIBUTED.value:
    devices.connect(COORDINATOR.value, NUM_HOSTS.value, HOST_INDEX.value, HOST_TIMEOUT.value)
    if not devices.is_first_host():
      be_silent()
      logging.getLogger("score_sde").setLevel(logging.WARNING)


def read_config(path: str) -> ConfigDict:
  """Returns the config of the file `path`. Ends the program with an error message if the file gives none."""
  path, _, argument = path.partition(":")
  if not pathlib.Path(path).is_file():
    known = [name.strip() for name, _ in shipped.described()]
    near = difflib.get_close_matches(
      path, [*known, *(n.removeprefix("configs/").removesuffix(".py") for n in known)], n=1
    )
    hint = f" Did you mean {near[0]!r}?" if near else " --help lists the configs that come with the program."
    fail(f"--config={path} does not exist. Give a config file, e.g. configs/quickstart.py.{hint}")
  try:
    config = runpy.run_path(path)["get_config"](*([argument] if argument else []))
  except BadInput as error:
    fail(str(error))
  except Exception as error:  # a config file may raise anything
    unknown = re.search(r'Key \\?"(\w+)', str(error))
    if isinstance(error, AttributeError | KeyError) and unknown:
      near = re.search(r'Did you mean \\?"(\w+)', str(error))
      hint = f" Did you mean {near[1]!r}?" if near else " python -m score_sde train --help lists all keys."
      fail(f"--config={path} sets a key that no config has: {unknown[1]!r}.{hint}")
    fail(f"--config={path} cannot be read: {type(error).__name__}: {error}")
  if not isinstance(config, ConfigDict):
    fail(f"--config={path}: get_config() must return a ConfigDict, not {type(config).__name__}.")
  missing = [key for key in keys() if key.partition(".")[2] not in config.get(key.partition(".")[0], ())]
  if missing:
    fail(
      f"--config={path} lacks {len(missing)} keys, such as {missing[0]}. Begin it with `config = default_config()` "
      "from score_sde.run.config, and set what differs."
    )
  return config


def overridden(argv: Sequence[str]) -> list[str]:
  """Returns the dotted config keys that the flags in `argv` set."""
  return [m[1] for m in (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in argv[1:]) if m]


def overrides(argv: Sequence[str]) -> list[str]:
  """Returns the flags in `argv` that set config keys, each as one word."""
  is_value = lambda text: bool(text) and not re.match(r"-+[A-Za-z]", text)
  joined = lambda flag, after: flag if "=" in flag or not is_value(after) else f"{flag}={after}"
  return [joined(a, b) for a, b in pairwise([*argv[1:], ""]) if re.match(r"--?(no)?config\.", a)]


def _check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
  """Ends the program at the first override of a key that `config` does not have."""
  for key in overridden(argv):
    try:
      check_key(config, key, "--config.")
    except BadInput as error:
      fail(str(error))


def check_effects(complete: ConfigDict, overridden: Sequence[str]) -> None:
  """Raises BadInput at the first of `overridden` keys that nothing reads. (A file may set keys of other SDEs.)"""
  for key in overridden:
    reader = why_unread(complete, key)
    if reader and get(complete, key) != get(default_config(), key):  # a flag may undo what the file sets
      raise BadInput(f"--config.{key} has no effect here: only {reader} reads it. Leave it out, or set that, too.")


def values_of(argv: Sequence[str], flag: str) -> list[str]:
  """Returns the values that `argv` gives to a flag, in order."""
  matches = lambda a: re.match(rf"--?{flag}(=|$)", a)
  return [a.split("=", 1)[1] if "=" in a else b for a, b in pairwise([*argv, ""]) if matches(a)]


def config_file(argv: Sequence[str]) -> str:
  """Returns the value of the last flag --config. Ends the program if there is none."""
  files, workdirs = values_of(argv, "config"), values_of(argv, "workdir")
  if not files and workdirs:
    fail(f"--workdir={workdirs[-1]} has no config.json, so it is no run. Give the workdir of a run, or a --config.")
  if not files:
    fail(
      "--config is missing. Give a config file, e.g. --config=configs/quickstart.py, or the --workdir of a run, which "
      "has its config."
    )
  return files[-1]


def _without(argv: Sequence[str], flag: str) -> list[str]:
  """Returns `argv` without a flag and its values."""
  kept, its_value = [], False
  for argument in argv:
    if not its_value and not re.match(rf"--?{flag}(=|$)", argument):
      kept.append(argument)
    its_value = bool(re.fullmatch(rf"--?{flag}", argument))
  return kept


def take_stored_config(argv: list[str]) -> None:
  """Replaces a config.json as --config, or a run's workdir without --config, by a file that reads the stored config."""
  given, workdirs = values_of(argv, "config"), values_of(argv, "workdir")
  if given and given[-1].endswith(".json") and not given[-1].startswith(STORED):
    file = os.path.expanduser(given[-1])
  elif workdirs and not given:
    file = str(path_of(os.path.expanduser(workdirs[-1])) / "config.json")
    if not path_of(file).is_file():
      return
  else:
    return
  argv[1:] = [f"--config={STORED}:{file}", *_without(argv[1:], "config")]  # before the overrides


def _take_shipped_config(argv: list[str]) -> None:
  """Replaces a short name as --config, such as `quickstart`, by the file that comes with the package."""
  shipped.make_importable()
  given = values_of(argv, "config")
  if not given:
    return
  path, colon, argument = os.path.expanduser(given[-1]).partition(":")
  found = shipped.find(path) + colon + argument
  if found != given[-1]:
    argv[1:] = [f"--config={found}", *_without(argv[1:], "config")]  # before the overrides


# Flags of the official code, and what they are here.
_OFFICIAL_FLAGS = {
  "eval_folder": "--config.eval.report=report_NAME, for several evaluations of a run",
  "fid_folder": "python -m score_sde stats OUTPUT.npz --config=FILE --config.eval.features=inception",
}


def flags_of(argv: Sequence[str]) -> list[str]:
  """Reads the flags, and returns the other arguments. Ends the program with an error message if they are wrong."""
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    short = [key for key in keys() if error.flagname in (key, key.rpartition(".")[2])]
    near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
    known = [f"--config.{key}" for key in short] or [f"--{name}" for name in near]
    hint = f" Did you mean {' or '.join(known)}?" if known else " --help lists the flags."
    fail(f"--{error.flagname} is no flag of this command.{hint}")
  except (flags.Error, ValueError, TypeError) as error:
    fail(str(error))


def parse(argv: Sequence[str], positional: Sequence[str] = (), needs_workdir: bool = True) -> list[str]:
  """Reads and checks the flags. `positional` names the arguments that are no flags."""
  assert isinstance(argv, list)
  take_stored_config(argv)
  _take_shipped_config(argv)
  for flag, now in _OFFICIAL_FLAGS.items():
    if values_of(argv, flag):
      fail(f"--{flag} is a flag of the official code: use {now}.")
  _check_overrides(read_config(config_file(argv)), argv)
  rest = flags_of(argv)
  if len(rest) > 1 + len(positional):
    fail(f"Unexpected argument {rest[-1]!r}: every setting is a flag of the form --name=value.")
  if len(rest) < 1 + len(positional):
    fail(f"{positional[len(rest) - 1]} is missing.")
  if needs_workdir and not WORKDIR.value and MODE.value != "plan":
    fail("--workdir is missing. Give a folder for the run, e.g. --workdir=runs/quickstart.")
  if MODE.value == "fid_stats":
    fail(f"--mode=fid_stats is of the official code: use {_OFFICIAL_FLAGS['fid_folder']}.")
  if MODE.value not in MODES:
    fail(f"--mode={MODE.value} is unknown; choose one of {', '.join(MODES)}.")
  return rest
