"""The SDEs that a config can name, a user's own among them."""

import functools
import os
import pathlib
import runpy
from collections.abc import Callable

from ml_collections import ConfigDict

from score_sde.run.config.keys import BadInput, choose
from score_sde.sde import SDE, VE, VP, CosineVP, RectifiedFlow, SubVP

SDES = {
  "vesde": lambda model: VE(model.sigma_min, model.sigma_max),
  "vpsde": lambda model: VP(model.beta_min, model.beta_max),
  "subvpsde": lambda model: SubVP(model.beta_min, model.beta_max),
  "cosine": lambda model: CosineVP(model.cosine_s, model.delta),
  "rectified_flow": lambda model: RectifiedFlow(model.delta),
}

_NAMES = {
  "vesde": "VE SDE",
  "vpsde": "VP SDE",
  "subvpsde": "sub-VP SDE",
  "cosine": "cosine VP SDE",
  "rectified_flow": "rectified flow",
}


@functools.lru_cache
def _load(path: str, name: str) -> Callable[[ConfigDict], SDE]:
  """The function `name` of a Python file."""
  key = f"training.sde='{path}:{name}'"
  if not pathlib.Path(path).is_file():
    raise BadInput(f"{key}: there is no file {path!r}. Give FILE.py:FUNCTION, seen from {os.getcwd()}.")
  try:
    found = runpy.run_path(path)
  except Exception as error:  # a user's file may raise anything
    raise BadInput(f"{key}: {path} cannot be run: {type(error).__name__}: {error}") from error
  if not callable(found.get(name)):
    raise BadInput(f"{key}: {path} has no function {name!r} from config.model to an SDE.")
  return found[name]


def make_sde(config: ConfigDict) -> SDE:
  """The SDE of `config.training.sde`.

  Raises:
    BadInput: for an unknown name, or a user's file or function that does not give an SDE.
    ValueError: for parameters that the SDE refuses.
  """
  name = config.training.sde
  path, _, function = name.rpartition(":")  # "" without a colon
  if not path:
    choose("training.sde", name, tuple(SDES))
    return SDES[name](config.model)
  sde = _load(path, function)(config.model)
  if not isinstance(sde, SDE):
    raise BadInput(f"training.sde={name!r} gives a {type(sde).__name__}, not a score_sde.sde.SDE.")
  return sde


def sde_name(name: str) -> str:
  """How pictures and reports name the SDE of a config: a user's own by its function."""
  return _NAMES.get(name, name.rpartition(":")[2])
