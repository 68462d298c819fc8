"""Emoji, 32 x 32 in colour, by group: a small NCSN++ under VE (or `--config.training.sde=vpsde`), an hour on one core.

The data are some 1,900 emoji, in a folder that configs/emoji/prepare.py makes.
"""

from configs import folder


def get_config():
  config = folder.get_config()
  config.data.path = "data/emoji"

  config.model.num_classes = 9  # groups of Unicode
  config.model.sigma_max = 45.0  # VE: the largest distance between two emoji (NCSNv2, Technique 1)

  config.training.sde = "vesde"
  return config
