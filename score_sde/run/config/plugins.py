"""Plugins: a config may give FILE.py:FUNCTION, a user's own function, in place of a name."""

import functools
import os
import pathlib
import runpy
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from score_sde.run import shipped
from score_sde.run.config.errors import BadInput


def is_plugin(name: Any) -> bool:
  """Returns whether a config's value names a function in a file."""
  return isinstance(name, str) and ".py:" in name


def names_code(config: ConfigDict) -> list[str]:
  """Returns the values FILE.py:FUNCTION in a config."""
  sections = [section.values() for section in config.values() if isinstance(section, ConfigDict)]
  return [value for values in (config.values(), *sections) for value in values if is_plugin(value)]


@functools.lru_cache
def _run(path: str, changed: float) -> dict[str, Any]:
  return runpy.run_path(path)


def load(key: str, name: str, what: str) -> Callable[..., Any]:
  """Returns the function that `name`, FILE.py:FUNCTION, refers to.

  Args:
    key: the config key, for error messages.
    name: FILE.py:FUNCTION.
    what: signature that the function must have, in words, for error messages.

  Raises:
    BadInput: if the file does not exist, cannot be run, or has no such function.
  """
  path, _, function = shipped.find_plugin(name).rpartition(":")
  given = f"{key}={name!r}"
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise BadInput(f"{given}: there is no file {path!r}. Give FILE.py:FUNCTION, with FILE relative to {os.getcwd()}.")
  try:
    found = _run(str(file), file.stat().st_mtime)
  except Exception as error:  # a user's file may raise anything
    raise BadInput(f"{given}: {path} cannot be run: {type(error).__name__}: {error}") from error
  if not callable(found.get(function)):
    raise BadInput(f"{given}: {path} has no function {function!r} {what}.")
  return found[function]
