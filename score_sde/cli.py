"""The command line: flags are read and checked, then one call goes into the library.

Whatever the user gave that cannot work ends in one line on stderr and exit code 2; a diverged run in exit code 1.
"""

import logging
import re
import sys
from collections.abc import Sequence

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from score_sde import evaluation, training
from score_sde.config import BadInput, unknown_key
from score_sde.progress import Interrupted, stops_on_signal

MODES = {"train": training.train, "sample": evaluation.sample, "eval": evaluation.evaluate}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/quickstart.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: checkpoints, curves, pictures, reports.")
_MODE = flags.DEFINE_string("mode", "train", f"One of {', '.join(MODES)}.")


def _fail(message: str) -> None:
  print(f"{sys.argv[0]}: {' '.join(message.split())}", file=sys.stderr)
  sys.exit(2)


def _explain(error: Exception, argv: Sequence[str]) -> str:
  """One line about a failure to read the flags or the config file."""
  paths = [a.split("=", 1)[1] for a in argv if re.match(r"--?config=", a)]
  if not paths and any(re.match(r"--?config\.", a) for a in argv):
    return "An override --config.… needs --config=FILE, e.g. --config=configs/quickstart.py."
  if isinstance(error, FileNotFoundError):
    return f"--config={paths[0]} does not exist. Give a config file, e.g. configs/quickstart.py."
  if isinstance(error, flags.UnrecognizedFlagError | AttributeError | KeyError) and _CONFIG.value is not None:
    for argument in argv:
      name = re.match(r"--?config\.([\w.]+)", argument)
      if name and not _has(name[1]):
        return unknown_key(_CONFIG.value, name[1])
  text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
  source = f"--config={paths[0]}: " if paths and not isinstance(error, flags.Error) else ""
  return f"{source}{type(error).__name__}: {text}"


def _has(key: str) -> bool:
  value = _CONFIG.value
  for name in key.split("."):
    try:
      value = value[name]
    except (KeyError, TypeError, AttributeError):
      return False
  return True


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(argv)
  except Exception as error:  # a config file may raise anything
    _fail(_explain(error, argv))
  if len(rest) > 1:
    _fail(f"Unexpected argument {rest[1]!r}: every setting is a flag of the form --name=value.")
  if _CONFIG.value is None:
    _fail("--config is missing. Give a config file, e.g. --config=configs/quickstart.py.")
  if not _WORKDIR.value:
    _fail("--workdir is missing. Give a folder for the run, e.g. --workdir=runs/quickstart.")
  if _MODE.value not in MODES:
    _fail(f"--mode={_MODE.value} is unknown; choose one of {', '.join(MODES)}.")
  return rest


def _main(_: Sequence[str]) -> None:
  absl_logging.set_verbosity(absl_logging.ERROR)  # orbax narrates every step of a save there
  logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
  logging.getLogger("score_sde").setLevel(logging.INFO)
  with stops_on_signal():
    try:
      MODES[_MODE.value](_CONFIG.value, _WORKDIR.value)
    except BadInput as error:
      _fail(str(error))
    except training.Diverged as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr)
      sys.exit(1)
    except Interrupted as error:
      print(str(error) or "Stopped by a signal. The same command goes on.", file=sys.stderr)


def run() -> None:
  """Entry point of run.py."""
  app.run(_main, flags_parser=_parse)
