"""Command lines `python -m score_sde COMMAND` and run.py: they read and check the flags, then call one function.

Wrong input ends the program with one line on stderr and exit code 2. A failure during the run (a run that diverges, a
lost host, a full disk) ends it with one line on stderr and exit code 1.
"""

import ast
import difflib
import logging
import os
import pathlib
import re
import runpy
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

import score_sde
from score_sde.errors import ScoreSDEError
from score_sde.models import MODELS
from score_sde.run import devices, guide, heap, plan, shipped, training
from score_sde.run.checkpoints import exists, finds_no_room
from score_sde.run.config import SDES, BadInput, check_key, default_config, describe, get, keys, resolve, why_unread
from score_sde.run.data import Stalled
from score_sde.run.devices import programs
from score_sde.run.report.progress import Interrupted, be_silent, stops_on_signal, tell
from score_sde.run.storage import path_of
from score_sde.run.workdir import copy_stderr, make_file, make_workdir, note_command, recalled
from score_sde.sampling import METHODS

MODES = ("train", "sample", "eval", "plan")

# The command line as it was typed: programs and flags are replaced below.
_TYPED = ["python -m score_sde" if sys.argv[0].endswith("__main__.py") else f"python {sys.argv[0]}", *sys.argv[1:]]


def _fail(message: str) -> NoReturn:
  program = "python -m score_sde" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
  print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
  _leave(2)


def _leave(code: int) -> NoReturn:
  """Ends the program. With several hosts it does not wait for the others, because they may be waiting for this one."""
  sys.stdout.flush()
  sys.stderr.flush()
  if devices.is_connected():
    os._exit(code)
  sys.exit(code)


# The flags in the files of --flagfile replace it, before anything reads the command line.
if any(argument.startswith(("-flagfile", "--flagfile")) for argument in sys.argv):
  try:
    sys.argv[:] = flags.FLAGS.read_flags_from_files(sys.argv)
  except flags.Error as error:
    _fail(str(error).removeprefix("ERROR:: "))

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, curves, pictures, reports.")
_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "Use several hosts, found through the TPU pod, SLURM, Open MPI or Kubernetes."
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "Use several hosts: HOST:PORT of the first one, the same value on all of them."
)
_NUM_HOSTS = flags.DEFINE_integer("num_hosts", None, "With --coordinator: number of processes.")
_HOST_INDEX = flags.DEFINE_integer("host_index", None, "With --coordinator: index of this process, from 0.")
_HOST_TIMEOUT = flags.DEFINE_integer("host_timeout", 300, "Seconds after which a silent host counts as lost.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")
_TARGET = flags.DEFINE_string(
  "target", "local", "With --mode=plan: the machine, e.g. local, tpu:v5e:2x4, tpu:v6e:4x4 or cuda:h100:8."
)


def _connect() -> None:
  """Joins the other hosts if the flags ask for several."""
  listed = {"coordinator": _COORDINATOR.value, "num_hosts": _NUM_HOSTS.value, "host_index": _HOST_INDEX.value}
  missing = [f"--{name}" for name, value in listed.items() if value is None]
  if len(missing) not in (0, 3):
    _fail(f"{' and '.join(missing)} must be given, too: --coordinator=HOST:PORT --num_hosts=N --host_index=I.")
  index, count = _HOST_INDEX.value or 0, _NUM_HOSTS.value or 1
  if not missing and not 0 <= index < count:
    _fail(f"--host_index={index} must lie in 0 to {count - 1}, for --num_hosts={count}.")
  if _HOST_TIMEOUT.value < 1:
    _fail(f"--host_timeout={_HOST_TIMEOUT.value} must be positive.")
  if not missing or _DISTRIBUTED.value:
    devices.connect(_COORDINATOR.value, _NUM_HOSTS.value, _HOST_INDEX.value, _HOST_TIMEOUT.value)
    if not devices.is_first_host():
      be_silent()
      logging.getLogger("score_sde").setLevel(logging.WARNING)


def _read_config(path: str) -> ConfigDict:
  """Returns the config of the file `path`. Ends the program with an error message if the file gives none."""
  path, _, argument = path.partition(":")
  if not pathlib.Path(path).is_file():
    known = [name.strip() for name, _ in _configs()]
    near = difflib.get_close_matches(
      path, [*known, *(n.removeprefix("configs/").removesuffix(".py") for n in known)], n=1
    )
    hint = f" Did you mean {near[0]!r}?" if near else " --help lists the configs that come with the program."
    _fail(f"--config={path} does not exist. Give a config file, e.g. configs/quickstart.py.{hint}")
  try:
    config = runpy.run_path(path)["get_config"](*([argument] if argument else []))
  except BadInput as error:
    _fail(str(error))
  except Exception as error:  # a config file may raise anything
    unknown = re.search(r'Key \\?"(\w+)', str(error))
    if isinstance(error, AttributeError | KeyError) and unknown:
      near = re.search(r'Did you mean \\?"(\w+)', str(error))
      hint = f" Did you mean {near[1]!r}?" if near else " python -m score_sde train --help lists all keys."
      _fail(f"--config={path} sets a key that no config has: {unknown[1]!r}.{hint}")
    _fail(f"--config={path} cannot be read: {type(error).__name__}: {error}")
  if not isinstance(config, ConfigDict):
    _fail(f"--config={path}: get_config() must return a ConfigDict, not {type(config).__name__}.")
  missing = [key for key in keys() if key.partition(".")[2] not in config.get(key.partition(".")[0], ())]
  if missing:
    _fail(
      f"--config={path} lacks {len(missing)} keys, such as {missing[0]}. Begin it with `config = default_config()` "
      "from score_sde.run.config, and set what differs."
    )
  return config


def _overridden(argv: Sequence[str]) -> list[str]:
  """Returns the dotted config keys that the flags in `argv` set."""
  return [m[1] for m in (re.match(r"--?(?:no)?config\.([\w.]+)", argument) for argument in argv[1:]) if m]


def _check_overrides(config: ConfigDict, argv: Sequence[str]) -> None:
  """Ends the program at the first override of a key that `config` does not have."""
  for key in _overridden(argv):
    try:
      check_key(config, key, "--config.")
    except BadInput as error:
      _fail(str(error))


def _check_effects(complete: ConfigDict, overridden: Sequence[str]) -> None:
  """Raises BadInput at the first of `overridden` keys that nothing reads. (A file may set keys of other SDEs.)"""
  for key in overridden:
    reader = why_unread(complete, key)
    if reader and get(complete, key) != get(default_config(), key):  # a flag may undo what the file sets
      raise BadInput(f"--config.{key} has no effect here: only {reader} reads it. Leave it out, or set that, too.")


def _values_of(argv: Sequence[str], flag: str) -> list[str]:
  """Returns the values that `argv` gives to a flag, in order."""
  matches = lambda a: re.match(rf"--?{flag}(=|$)", a)
  return [a.split("=", 1)[1] if "=" in a else b for a, b in pairwise([*argv, ""]) if matches(a)]


def _config_file(argv: Sequence[str]) -> str:
  """Returns the value of the last flag --config. Ends the program if there is none."""
  files, workdirs = _values_of(argv, "config"), _values_of(argv, "workdir")
  if not files and workdirs:
    _fail(f"--workdir={workdirs[-1]} has no config.json, so it is no run. Give the workdir of a run, or a --config.")
  if not files:
    _fail(
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


def _take_stored_config(argv: list[str]) -> None:
  """Replaces a config.json as --config, or a run's workdir without --config, by a file that reads the stored config."""
  given, workdirs = _values_of(argv, "config"), _values_of(argv, "workdir")
  if given and given[-1].endswith(".json") and not given[-1].startswith(_STORED):
    file = os.path.expanduser(given[-1])
  elif workdirs and not given:
    file = str(path_of(os.path.expanduser(workdirs[-1])) / "config.json")
    if not path_of(file).is_file():
      return
  else:
    return
  argv[1:] = [f"--config={_STORED}:{file}", *_without(argv[1:], "config")]  # before the overrides


def _take_shipped_config(argv: list[str]) -> None:
  """Replaces a short name as --config, such as `quickstart`, by the file that comes with the package."""
  shipped.make_importable()
  given = _values_of(argv, "config")
  if not given:
    return
  path, colon, argument = os.path.expanduser(given[-1]).partition(":")
  found = shipped.find(path) + colon + argument
  if found != given[-1]:
    argv[1:] = [f"--config={found}", *_without(argv[1:], "config")]  # before the overrides


_STORED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stored.py")


# Flags of the official code, and what they are here.
_OFFICIAL_FLAGS = {
  "eval_folder": "--config.eval.report=report_NAME, for several evaluations of a run",
  "fid_folder": "python -m score_sde stats OUTPUT.npz --config=FILE --config.eval.features=inception",
}


def _flags_of(argv: Sequence[str]) -> list[str]:
  """Reads the flags, and returns the other arguments. Ends the program with an error message if they are wrong."""
  try:
    return flags.FLAGS(argv)
  except flags.UnrecognizedFlagError as error:
    short = [key for key in keys() if error.flagname in (key, key.rpartition(".")[2])]
    near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
    known = [f"--config.{key}" for key in short] or [f"--{name}" for name in near]
    hint = f" Did you mean {' or '.join(known)}?" if known else " --help lists the flags."
    _fail(f"--{error.flagname} is no flag of this command.{hint}")
  except (flags.Error, ValueError, TypeError) as error:
    _fail(str(error))


def _parse(argv: Sequence[str], positional: Sequence[str] = (), needs_workdir: bool = True) -> list[str]:
  """Reads and checks the flags. `positional` names the arguments that are no flags."""
  assert isinstance(argv, list)
  _take_stored_config(argv)
  _take_shipped_config(argv)
  for flag, now in _OFFICIAL_FLAGS.items():
    if _values_of(argv, flag):
      _fail(f"--{flag} is a flag of the official code: use {now}.")
  _check_overrides(_read_config(_config_file(argv)), argv)
  rest = _flags_of(argv)
  if len(rest) > 1 + len(positional):
    _fail(f"Unexpected argument {rest[-1]!r}: every setting is a flag of the form --name=value.")
  if len(rest) < 1 + len(positional):
    _fail(f"{positional[len(rest) - 1]} is missing.")
  if needs_workdir and not _WORKDIR.value and _MODE.value != "plan":
    _fail("--workdir is missing. Give a folder for the run, e.g. --workdir=runs/quickstart.")
  if _MODE.value == "fid_stats":
    _fail(f"--mode=fid_stats is of the official code: use {_OFFICIAL_FLAGS['fid_folder']}.")
  if _MODE.value not in MODES:
    _fail(f"--mode={_MODE.value} is unknown; choose one of {', '.join(MODES)}.")
  return rest


def _call(action: Callable[[], Any]) -> None:
  """Runs `action`. Known errors end the program with one line on stderr and the exit code of the module docstring."""
  # orbax logs every save to this logger, and every error that it raises anyway. absl's verbosity does not stop this.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises
  logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
  logging.getLogger("score_sde").setLevel(logging.INFO)
  heap.limit()
  with stops_on_signal(), programs.announces_compilations(tell):
    try:
      _connect()
      with devices.hosts_lost():
        action()
    except BadInput as error:
      _fail(str(error))
    except Interrupted as error:
      print(str(error) or "Stopped by a signal. Repeat the command to resume.", file=sys.stderr)
    except Stalled as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr, flush=True)
      os._exit(1)  # the thread that hangs would keep the process alive
    except ScoreSDEError as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr)
      _leave(1)
    except OSError as error:
      if not finds_no_room(error):
        raise
      print(f"{sys.argv[0]}: {error}. Free some space and repeat the command: it resumes.", file=sys.stderr)
      _leave(1)


_HELP_FLAGS = {"-h", "--help", "--helpfull"}


def _shows_version(arguments: Sequence[str]) -> bool:
  """Prints the version if `arguments` ask for it. Returns whether they do."""
  asked = "--version" in arguments
  if asked:
    print(f"score_sde {score_sde.__version__}")
  return asked


def run() -> None:
  """Runs run.py and the commands train, sample and eval."""
  if set(sys.argv[1:]) & _HELP_FLAGS:
    print(f"{_help()}\n\n{_flags()}\n\n{_keys()}")
    return
  if _shows_version(sys.argv[1:]):
    return

  def action() -> None:
    workdir = os.path.expanduser(_WORKDIR.value or "")
    config = resolve(recalled(_CONFIG.value, workdir))
    _check_effects(config, _overridden(sys.argv))
    if _MODE.value == "plan":
      file, _, argument = _config_file(sys.argv).partition(":")
      name = pathlib.Path(argument).parent.name if file == _STORED else pathlib.Path(file).stem
      plan.main(config, _TARGET.value, workdir or None, name)
      return
    if devices.is_first_host() and (_MODE.value == "train" or exists(workdir)):
      note_command(make_workdir(workdir), _TYPED)
    programs.cache_programs(os.path.join(workdir, "compiled"))
    if devices.host_count() > 1:
      copy_stderr(make_workdir(workdir))
    if _MODE.value == "train":
      training.train(config, workdir)
    elif _MODE.value == "sample":
      guide.sample(config, workdir)
    else:
      guide.evaluate(config, workdir)

  app.run(lambda _: _call(action), flags_parser=_parse)


def _run_tool(action: Callable[..., Any], positional: Sequence[str] = (), *, needs_workdir: bool = True) -> None:
  """Runs a command that takes --config, --workdir if `needs_workdir`, and `positional` arguments.

  Calls action(config, workdir if needed, *positional).
  """

  def main(arguments: Sequence[str]) -> None:
    paths = ([str(_WORKDIR.value)] if needs_workdir else []) + list(arguments[1:])
    known = lambda: recalled(_CONFIG.value, os.path.expanduser(_WORKDIR.value or ""))
    _call(lambda: action(known(), *(os.path.expanduser(path) for path in paths)))

  app.run(main, flags_parser=lambda argv: _parse(argv, positional, needs_workdir))


def _import() -> None:
  """Runs `import`. Without a config, that of the diffusers folder or pipeline SOURCE is taken."""
  from score_sde.run.checkpoints.transfer import import_weights

  value_of_flag = lambda before: before.startswith("-") and "=" not in before
  words = [a for before, a in pairwise(["", *sys.argv[1:]]) if not a.startswith("-") and not value_of_flag(before)]
  if not _values_of(sys.argv, "config") and words:
    sys.argv.insert(
      1, f"--config={os.path.join(os.path.dirname(_STORED), 'pipeline.py')}:{os.path.expanduser(words[0])}"
    )
  _run_tool(import_weights, ("SOURCE",))


def _export() -> None:
  from score_sde.run.checkpoints.transfer import export_weights

  flags.DEFINE_bool("ema_only", False, "Write only the averaged (EMA) parameters. Sampling needs no others.")
  _run_tool(lambda *a: export_weights(*a, ema_only=flags.FLAGS.ema_only), ("OUTPUT.safetensors",))


def _stats() -> None:
  from score_sde.run.features import stats

  _run_tool(stats, ("OUTPUT.npz",), needs_workdir=False)


def _data() -> None:
  from score_sde.run.report.preview import show

  flags.DEFINE_string("output", "data.png", "The picture.")

  def action(config: ConfigDict, command: str) -> None:
    if command != "show":
      raise BadInput(f"data {command!r} is no command: use python -m score_sde data show --config=FILE.")
    show(config, os.path.expanduser(str(flags.FLAGS.output)))

  _run_tool(action, ("show",), needs_workdir=False)


def _suggest_sigmas() -> None:
  from score_sde.run.noise_scales import suggest_sigmas

  _run_tool(suggest_sigmas, needs_workdir=False)


def _fid() -> None:
  from score_sde.run.evaluate.folders import fid

  flags.DEFINE_string("features", "inception", "The network: inception, or the workdir of a classifier.")
  flags.DEFINE_string("inception_path", "", "Weights of inception; unset: downloaded once.")
  flags.DEFINE_integer("image_size", None, "Resize the central squares of images to this many pixels.", lower_bound=1)

  def action(arguments: Sequence[str]) -> None:
    if len(arguments) != 3:
      _fail("Give two sets of images, A and B: folders, .zip or .npz files.")
    a, b, network, weights = map(os.path.expanduser, [*arguments[1:], flags.FLAGS.features, flags.FLAGS.inception_path])
    _call(lambda: fid(a, b, network, weights, flags.FLAGS.image_size))

  app.run(action, flags_parser=_flags_of)


def _ema() -> None:
  from score_sde.run.averages import reconstruct

  flags.DEFINE_list("std", ["0.05", "0.1", "0.15"], "Widths of the averages, in units of the run's length.")

  def action(config: ConfigDict, workdir: str) -> None:
    reconstruct(config, workdir, flags.FLAGS.std)

  _run_tool(action)


def _sweep() -> None:
  from score_sde.run.sweep import sweep

  flags.DEFINE_multi_string("set", [], "KEY=VALUE,VALUE,...: values to combine. Repeat it for more keys.")
  flags.DEFINE_bool("run", False, "Run the commands one after the other instead of printing them.")
  flags.DEFINE_string("slurm", "", "Write a SLURM array script to this file.")

  def main(arguments: Sequence[str]) -> None:
    passed = [a for a in sys.argv[1:] if re.match(r"--?(no)?config\.", a)]
    given = flags.FLAGS
    _call(
      lambda: sweep(
        _CONFIG.value, _config_file(sys.argv), os.path.expanduser(str(_WORKDIR.value)), given.set, passed,
        run=given.run, slurm=os.path.expanduser(str(given.slurm)), check=_check_effects,
      )
    )  # fmt: skip

  app.run(main, flags_parser=_parse)


def _compare() -> None:
  from score_sde.run.evaluate.compare import compare, with_reports
  from score_sde.run.report.page import write_comparison

  flags.DEFINE_string("html", "", "Write a page with curves, pictures and settings of the runs to this file.")

  def action(arguments: Sequence[str]) -> None:
    if len(arguments) < 2:
      _fail("Give one RUN or several: workdirs, or reports in them.")
    runs, page = list(map(os.path.expanduser, arguments[1:])), os.path.expanduser(str(flags.FLAGS.html))

    def show() -> None:
      kept = with_reports(*runs)
      print(compare(*kept))
      if page:
        write_comparison(list(kept), path_of(make_file(page)))
        print(f"\nWrote {page}.")

    _call(show)

  app.run(action, flags_parser=_flags_of)


def _mode(name: str) -> Callable[[], None]:
  def command() -> None:
    sys.argv.insert(1, f"--mode={name}")
    run()

  return command


# {name: (arguments, help, command)}.
COMMANDS: dict[str, tuple[str, str, Callable[[], None]]] = {
  "train": ("--config=FILE --workdir=FOLDER", "train, or resume where the newest checkpoint stands", _mode("train")),
  "sample": ("--config=FILE --workdir=FOLDER", "draw samples of a checkpoint, conditioned or not", _mode("sample")),
  "eval": ("--config=FILE --workdir=FOLDER", "measure loss, bits/dim and samples of checkpoints", _mode("eval")),
  "plan": (
    "--config=FILE [--target=local|tpu:v5e:2x4|cuda:h100:8] [--workdir=FOLDER]",
    "print what a run costs on a machine, without it",
    _mode("plan"),
  ),
  "sweep": (
    "--config=FILE --workdir=FOLDER --set KEY=VALUE,VALUE,... [--set ...] [--run | --slurm=FILE.sh]",
    "print or run one training per combination of settings",
    _sweep,
  ),
  "compare": ("RUN... [--html=FILE.html]", "print evaluations side by side, and what differs", _compare),
  "import": (
    "SOURCE [--config=FILE] --workdir=FOLDER",
    "make published weights a run; diffusers pipelines need no config",
    _import,
  ),
  "export": (
    "OUTPUT.safetensors --config=FILE --workdir=FOLDER [--ema_only]",
    "write a run's weights to a file",
    _export,
  ),
  "ema": (
    "--config=FILE --workdir=FOLDER [--std=0.05,0.1,0.15]",
    "average a run's parameters over other widths",
    _ema,
  ),
  "data": ("show --config=FILE [--output=data.png]", "draw the data as the network will see them", _data),
  "stats": ("OUTPUT.npz --config=FILE", "write the statistics that FIDs compare with", _stats),
  "fid": (
    "A B [--features=inception|WORKDIR] [--inception_path=FILE] [--image_size=N]",
    "FID of two folders of images",
    _fid,
  ),
  "suggest-sigmas": ("--config=FILE", "suggest noise levels for a data set (NCSNv2)", _suggest_sigmas),
}


def main() -> None:
  """Runs `python -m score_sde`."""
  arguments = sys.argv[1:]
  if not arguments or arguments[0] in ("-h", "--help", "--helpfull", "help"):
    print(_help())
    return
  if _shows_version(arguments[:1]):
    return
  name = sys.argv.pop(1)
  if name not in COMMANDS:
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    _fail(f"{name!r} is no command; choose one of {', '.join(COMMANDS)}.{hint} --help lists them.")
  if _shows_version(sys.argv[1:]):
    return
  if set(sys.argv[1:]) & _HELP_FLAGS:
    usage, meaning, _ = COMMANDS[name]
    takes_config = "--config" in usage
    more = f"\n\n{_flags()}\n\n{_keys()}" if takes_config else ""
    end = " [--config.SECTION.KEY=VALUE ...]" if takes_config else ""
    print(f"usage: python -m score_sde {name} {usage}{end}\n\n{meaning}{more}")
    return
  sys.argv[0] = f"python -m score_sde {name}"
  COMMANDS[name][2]()


def _help() -> str:
  """Returns the help: commands, configs, SDEs, samplers and networks, one per line."""
  rows = lambda pairs: "\n".join(f"  {name:<18}{meaning}" for name, meaning in pairs)
  first = lambda thing: (thing.__doc__ or "").split("\n")[0]
  commands = ((name, meaning) for name, (_, meaning, _) in COMMANDS.items())
  return (
    "usage: python -m score_sde COMMAND [--config=FILE] [--workdir=FOLDER] [--config.SECTION.KEY=VALUE ...]\n\n"
    f"commands (python -m score_sde COMMAND --help has the keys)\n{rows(commands)}\n\n"
    f"configs\n{rows(_configs())}\n\n"
    f"training.sde\n{rows((name, first(sde)) for name, sde in SDES.items())}\n\n"
    f"sampling.method\n{rows((name, first(solver)) for name, solver in METHODS.items())}\n\n"
    f"model.name\n{rows((name, first(network)) for name, network in MODELS.items())}"
  )


def _configs() -> list[tuple[str, str]]:
  """Returns (path, first line of the docstring) of each config file below configs/."""
  found = []
  for file in shipped.configs():
    text = file.read_text()
    if "def get_config" in text:
      found.append((f"{file.relative_to(shipped.root())} ", ast.get_docstring(ast.parse(text)) or ""))
  return [(name, doc.split("\n")[0]) for name, doc in found]


def _flags() -> str:
  """Returns the descriptions of the flags that are no config keys, one per line."""
  holders = (_CONFIG, _WORKDIR, _MODE, _TARGET, _DISTRIBUTED, _COORDINATOR, _NUM_HOSTS, _HOST_INDEX, _HOST_TIMEOUT)
  return "flags\n" + "\n".join(f"  --{h.name:<16}{flags.FLAGS[h.name].help}" for h in holders)


def _keys() -> str:
  """Returns the descriptions of all config keys, one per line."""
  return "keys (--config.KEY=VALUE)\n" + "\n".join(f"  {describe(key)}" for key in keys())
