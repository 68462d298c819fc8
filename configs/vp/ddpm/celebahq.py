"""DDPM on CelebA-HQ, 256 px (Ho et al. 2020).

Set --config.data.path to the folder of the images (the official file has a path of its authors to TFRecords).
"""

from configs.vp.ddpm import church


def get_config():
  config = church.get_config()
  config.data.dataset = "CelebAHQ"
  config.data.category = ""
  return config
