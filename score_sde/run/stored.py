"""Config of a run: `--config=WORKDIR/config.json`, or `--workdir=WORKDIR` alone.

The command line replaces such a path by `--config=THIS_FILE:PATH`, so that overrides work as for any config file.
"""

import copy
from typing import Any

from ml_collections import ConfigDict

from score_sde.run.config import as_dict, default_config, keys, resolve
from score_sde.run.config.errors import BadInput, get
from score_sde.run.config.resolve import FOLLOWS
from score_sde.run.loading import parse_config
from score_sde.run.storage import path_of


def get_config(path: str) -> ConfigDict:
  """Returns the config in the JSON file `path`.

  A run stores its config with all defaults filled in. Those that follow other keys are unset again, so that they follow
  overrides: with another `sampling.method`, the default grid and number of steps are those of that method.

  Raises:
    BadInput: if the file holds no config, or one that names a FILE.py:FUNCTION.
  """
  file = path_of(path)
  if not file.is_file():
    raise BadInput(f"{path!r} does not exist.")
  return unfilled(parse_config(file.read_text(), path))


def unfilled(config: ConfigDict) -> ConfigDict:
  """Returns a complete config without the values that `resolve` would fill in."""
  stored = as_dict(config)
  followers = [key for key, readers in keys().items() if readers[0][1].default is None or key in FOLLOWS]
  followers.remove("training.n_jitted_steps")  # its default asks for the backend, and hosts are not joined yet
  if stored["data"]["shape"]:  # an array's levels follow a file that may not be there
    followers.remove("data.levels")
  kept = copy.deepcopy(stored)
  for key in followers:
    section, name = key.split(".")
    kept[section][name] = None
  try:
    refilled = resolve(_config_of(kept))
  except BadInput:
    return config
  for key in followers:
    section, name = key.split(".")
    if get(refilled, key) != get(config, key):
      kept[section][name] = stored[section][name]
  return _config_of(kept)


def _config_of(values: dict[str, Any]) -> ConfigDict:
  config = default_config()
  with config.unlocked():
    for section, its in values.items():
      if not isinstance(its, dict):
        config[section] = its
        continue
      for name, value in its.items():
        if value is not None:
          config[section][name] = value
  return config
