"""NCSN++ cont. with the VE SDE on FFHQ, 256 px (Song et al. 2021, Appendix H).

Set --config.data.path to the TFRecords (the official file has a path of its authors), or to a folder of images.
"""

from configs.ve import celebahq_256_ncsnpp_continuous


def get_config():
  config = celebahq_256_ncsnpp_continuous.get_config()
  config.data.dataset = "FFHQ"
  return config
