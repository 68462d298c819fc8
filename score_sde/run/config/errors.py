"""Errors about wrong input, with the names of config keys."""

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from score_sde.errors import InvalidArgument, ScoreSDEError


class BadInput(ScoreSDEError, ValueError):
  """Error: the user's input is wrong. The message names the value, says what is accepted and what to do."""


@contextlib.contextmanager
def as_bad_input(names: Mapping[str, str] | None = None) -> Iterator[None]:
  """Converts an InvalidArgument of the core to BadInput and renames arguments to config keys by `names`."""
  try:
    yield
  except InvalidArgument as error:
    raise BadInput(str(error.renamed(dict(names or {})))) from error


@contextlib.contextmanager
def foreign(what: str, advice: str = "") -> Iterator[None]:
  """Converts any error that reading somebody else's file raises to one line, `WHAT cannot be read (...). ADVICE`.

  Parsers of damaged or hostile bytes raise errors of every kind. All readers of files from outside go through here.
  """
  try:
    yield
  except BadInput:
    raise
  except Exception as error:
    reason = (str(error).splitlines() or [""])[0][:200]
    kind = type(error).__name__
    raise BadInput(f"{what} cannot be read ({kind}{': ' if reason else ''}{reason}). {advice}".rstrip()) from error


def choose(key: str, value: Any, accepted: tuple) -> None:
  """Raises BadInput unless `value`, the value of `key`, is one of `accepted`."""
  if value not in accepted:
    near = [str(a) for a in accepted if value and str(a).startswith(str(value).lower())]
    near = near or difflib.get_close_matches(str(value), [str(a) for a in accepted], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"{key}={value!r} is unknown; choose one of {', '.join(map(str, accepted))}.{hint}")


# Keys of the official code that have another name here.
RENAMED = {
  "model.class_conditional": "model.num_classes",
  "sampling.batch_size": "eval.batch_size",
  "data.tfrecords_path": "data.path",
  "eval.enable_figures_only": "--mode=sample, which draws samples and measures nothing",
}


def unknown_key(config: ConfigDict, key: str) -> str:
  """Returns an error message about a dotted `key` that does not exist, with the closest and all existing keys."""
  section, _, name = key.rpartition(".")
  try:
    known = sorted(get(config, section) if section else config)
  except (KeyError, TypeError):
    section, name, known = "", key.split(".")[0], sorted(config)
  if key in RENAMED:
    return f"config has no key {key!r}: it is now {RENAMED[key]}."
  elsewhere = [s for s in config if not section and isinstance(config[s], ConfigDict) and name in config[s]]
  if elsewhere:  # config.lr, without its section
    return f"config has no key {key!r}. Did you mean {' or '.join(f'{s}.{name}' for s in elsewhere)}?"
  near = difflib.get_close_matches(name, known, n=1)
  hint = f" Did you mean {section + '.' if section else ''}{near[0]}?" if near else ""
  return f"config has no key {key!r}.{hint} Keys of {section or 'config'}: {', '.join(known)}."


def check_key(config: ConfigDict, key: str, shown: str) -> None:
  """Raises BadInput unless the dotted `key` is one of `config` and no section. `shown` begins the name of the key."""
  value: Any = config
  for name in key.split("."):
    if not isinstance(value, ConfigDict) or name not in value:
      raise BadInput(unknown_key(config, key))
    value = value[name]
  if isinstance(value, ConfigDict):
    raise BadInput(
      f"{shown}{key} is a section of the config: set one of its keys, such as {shown}{key}.{next(iter(value))}."
    )


def get(config: ConfigDict, key: str) -> Any:
  """Returns the value of a dotted key such as "model.nf"."""
  for name in key.split("."):
    config = config[name]
  return config
