"""DDPM on CelebA-HQ, 256 px (Ho et al. 2020).

Set --config.data.path to the TFRecords (the official file has a path of its authors), or to a folder of images.
"""

from configs.vp.ddpm import church


def get_config():
  config = church.get_config()
  config.data.dataset = "CelebAHQ"
  config.data.category = ""
  return config
