"""The command lines: flags are read and checked, then one call goes into the library.

Whatever the user gave that cannot work ends in one line on stderr and exit code 2; what goes wrong on the way (a run
that diverges, a lost host, a full disk) in one line and exit code 1.
"""

import logging
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from score_sde.run import devices, guide, heap, training
from score_sde.run.checkpoints import DiskFull, finds_no_room
from score_sde.run.config import BadInput, resolve, unknown_key, why_unread
from score_sde.run.data import Stalled
from score_sde.run.report.progress import Interrupted, be_silent, stops_on_signal

MODES = {"train": training.train, "sample": guide.sample, "eval": guide.evaluate}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, curves, pictures, reports.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Several hosts work together, as a TPU pod, SLURM, Open MPI or Kubernetes tells."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of the first of several hosts, given to all of them."
)
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "With --coordinator: how many processes work together.")
_HOST_INDEX = flags.DEFINE_integer("host_index", None, "With --coordinator: which of them this is, from 0.")
_HOST_TIMEOUT = flags.DEFINE_integer("host_timeout", 300, "Seconds after which a silent host counts as lost.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")


def _fail(message: str) -> NoReturn:
  program = sys.argv[0]
  if program.endswith("__main__.py"):
    program = f"python -m score_sde.{pathlib.Path(program).parent.name}"
  elif "score_sde" in pathlib.Path(program).parts:
    program = f"python -m score_sde.{pathlib.Path(program).stem}"
  print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
  _leave(2)


def _leave(code: int) -> NoReturn:
  """Ends the program; of several hosts without waiting for the others, who may be waiting for this one."""
  sys.stdout.flush()
  sys.stderr.flush()
  if devices.is_connected():
    os._exit(code)
  sys.exit(code)


def _connect() -> None:
  """Joins the other hosts, where flags say that there are any."""
  listed = {"coordinator": _COORDINATOR.value, "num_hosts": _NUM_HOSTS.value, "host_index": _HOST_INDEX.value}
  missing = [f"--{name}" for name, value in listed.items() if value is None]
  if len(missing) not in (0, 3):
    _fail(f"{' and '.join(missing)} must be given, too: --coordinator=HOST:PORT --num_hosts=N --host_index=I.")
  if not missing and not 0 <= _HOST_INDEX.value < _NUM_HOSTS.value:
    _fail(
      f"--host_index={_HOST_INDEX.value} must lie in 0 to {_NUM_HOSTS.value - 1}, for --num_hosts={_NUM_HOSTS.value}."
    )
  if _HOST_TIMEOUT.value < 1:
    _fail(f"--host_timeout={_HOST_TIMEOUT.value} must be positive.")
  if not missing or _DISTRIBUTED.value:
    devices.connect(*listed.values(), _HOST_TIMEOUT.value)
    if not devices.is_first_host():
      be_silent()
      logging.getLogger("score_sde").setLevel(logging.WARNING)


def _read_config(path: str) -> ConfigDict:
  """The config that a file returns, or the end of the program with what is wrong with it."""
  path, _, argument = path.partition(":")
  if not pathlib.Path(path).is_file():
    _fail(f"--config={path} does not exist. Give a config file, e.g. configs/quickstart.py.")
  try:
    config = runpy.run_path(path)["get_config"](*([argument] if argument else []))
  except Exception as error:  # a config file may raise anything
    unknown = re.search(r'Key \\?"(\w+)', str(error))
    if isinstance(error, AttributeError | KeyError) and unknown:
      near = re.search(r'Did you mean \\?"(\w+)', str(error))
      hint = f" Did you mean {near[1]!r}?" if near else " score_sde/run/config/keys.py has all keys."
      _fail(f"--config={path} sets a key that no config has: {unknown[1]!r}.{hint}")
    _fail(f"--config={path} cannot be read: {type(error).__name__}: {error}")
  if not isinstance(config, ConfigDict):
    _fail(f"--config={path}: get_config() must return a ConfigDict, not {type(config).__name__}.")
  return config


def _overridden(argv: Sequence[str]) -> list[str]:
  """The dotted keys that flags set."""
  return [m[1] for m in (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in argv[1:]) if m]


def _check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
  """Ends the program at the first override of a key that `config` does not have."""
  for key in _overridden(argv):
    value = config
    for name in key.split("."):
      if not isinstance(value, ConfigDict) or name not in value:
        _fail(unknown_key(config, key))
      value = value[name]


def _check_effects(config: ConfigDict, argv: Sequence[str]) -> None:
  """Raises BadInput at the first override that nothing reads. (A config file may hold what only another SDE reads.)"""
  complete = resolve(config)
  for key in _overridden(argv):
    reader = why_unread(complete, key)
    if reader:
      raise BadInput(f"--config.{key} has no effect here: only {reader} reads it. Leave it out, or set that, too.")


def _parse(argv: Sequence[str], positional: Sequence[str] = (), needs_workdir: bool = True) -> list[str]:
  """Reads the flags; `positional` names the arguments that come without one."""
  files = [a.split("=", 1)[1] if "=" in a else b for a, b in pairwise([*argv, ""]) if re.match(r"--?config(=|$)", a)]
  if not files:
    _fail("--config is missing. Give a config file, e.g. --config=configs/quickstart.py.")
  _check_overrides(_read_config(files[-1]), argv)
  try:
    rest = flags.FLAGS(argv)
  except (flags.Error, ValueError, TypeError) as error:
    _fail(str(error))
  if len(rest) > 1 + len(positional):
    _fail(f"Unexpected argument {rest[-1]!r}: every setting is a flag of the form --name=value.")
  if len(rest) < 1 + len(positional):
    _fail(f"{positional[len(rest) - 1]} is missing.")
  if needs_workdir and not _WORKDIR.value:
    _fail("--workdir is missing. Give a folder for the run, e.g. --workdir=runs/quickstart.")
  if _MODE.value not in MODES:
    _fail(f"--mode={_MODE.value} is unknown; choose one of {', '.join(MODES)}.")
  return rest


def _call(action: Callable[[], None]) -> None:
  """Runs `action`; what the user gave wrong ends the program with one line."""
  # orbax narrates a save there, and what it also raises. (absl's verbosity is of absl's own handler.)
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
  logging.getLogger("score_sde").setLevel(logging.INFO)
  heap.limit()
  with stops_on_signal():
    try:
      _connect()
      with devices.hosts_lost():
        action()
    except BadInput as error:
      _fail(str(error))
    except (training.Diverged, devices.HostsError, DiskFull) as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr)
      _leave(1)
    except Stalled as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr, flush=True)
      os._exit(1)  # the thread that hangs would keep the process
    except OSError as error:
      if not finds_no_room(error):
        raise
      print(f"{sys.argv[0]}: {error}. Make room: the same command goes on.", file=sys.stderr)
      _leave(1)
    except Interrupted as error:
      print(str(error) or "Stopped by a signal. The same command goes on.", file=sys.stderr)


def run() -> None:
  """Entry point of run.py."""

  def action() -> None:
    _check_effects(_CONFIG.value, sys.argv)
    MODES[_MODE.value](_CONFIG.value, _WORKDIR.value)

  app.run(lambda _: _call(action), flags_parser=_parse)


def run_on(tools: dict[str, Callable[..., None]], what: str) -> None:
  """Entry point of `python -m score_sde.MODULE TOOL ARGUMENT...`, one argument at least, of the kind `what`."""

  def main(arguments: Sequence[str]) -> None:
    if len(arguments) < 3:
      _fail(f"Give one of {', '.join(tools)}, then one {what} or several.")
    if arguments[1] not in tools:
      _fail(f"{arguments[1]!r} is unknown; choose one of {', '.join(tools)}.")
    _call(lambda: tools[arguments[1]](*arguments[2:]))

  app.run(main)


def run_tool(
  tools: dict[str, Callable[..., None]], positional: Sequence[str] = (), *, needs_workdir: bool = True
) -> None:
  """Entry point of `python -m score_sde.MODULE TOOL [positional ...] --config=FILE [--workdir=FOLDER]`.

  The chosen one of `tools` is called with (config, workdir if needed, *positional).
  """
  names = (f"One of {', '.join(tools)}", *positional)

  def main(arguments: Sequence[str]) -> None:
    name, *rest = arguments[1:]
    if name not in tools:
      _fail(f"{name!r} is unknown; choose one of {', '.join(tools)}.")
    folder = (_WORKDIR.value,) if needs_workdir else ()
    _call(lambda: tools[name](_CONFIG.value, *folder, *rest))

  app.run(main, flags_parser=lambda argv: _parse(argv, names, needs_workdir))
