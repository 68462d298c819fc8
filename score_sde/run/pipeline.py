"""Config of a diffusers folder: `python -m score_sde import FOLDER --workdir=W` needs no other.

The command line passes this file as --config=THIS_FILE:FOLDER, so that overrides work as for any config file.
"""

import pathlib

from ml_collections import ConfigDict

from score_sde.run.checkpoints import diffusers, published, schedulers
from score_sde.run.config import BadInput, default_config


def get_config(source: str) -> ConfigDict:
  """Returns the config of the model in a diffusers folder, or of that name on the hub.

  Raises:
    BadInput: if it is no such folder, has no scheduler, or holds a model that our networks or SDEs do not cover.
  """
  folder = pathlib.Path(source)
  if not folder.exists() and published.is_hub_name(source):
    folder = published.download(source)
  network = diffusers.settings_of(folder)
  if network is None:
    raise BadInput(f"{source!r} is no diffusers folder: give the config of the model, --config=FILE.")
  noise = schedulers.settings_of(folder)
  if not noise:
    raise BadInput(
      f"{source!r} has no scheduler_config.json, so the noise levels of its model are not known: give --config=FILE."
    )
  config = default_config()
  with config.unlocked():
    config.data.dataset = "folder"
    for key, value in (network | noise).items():
      section, name = key.split(".")
      config[section][name] = value
  config.model.dropout = 0.0
  config.model.label_dropout = 0.0  # the row of zeros for no class is ours, and was never trained
  return config
