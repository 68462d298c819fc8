"""NCSN++ cont. with the VE SDE on FFHQ, 1024 px.

Set --config.data.path to the TFRecords (the official file has a path of its authors), or to a folder of images.
"""

from configs.ve import celebahq_ncsnpp_continuous


def get_config():
  config = celebahq_ncsnpp_continuous.get_config()
  config.data.dataset = "FFHQ"
  config.training.reduce_mean = True
  return config
