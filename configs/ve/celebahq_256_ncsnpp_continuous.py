"""NCSN++ cont. with the VE SDE on CelebA-HQ, 256 px (Song et al. 2021, Appendix H).

Set --config.data.path to the TFRecords (the official file has a path of its authors), or to a folder of images.
"""

from configs.ve import church_ncsnpp_continuous


def get_config():
  config = church_ncsnpp_continuous.get_config()
  config.data.dataset = "CelebAHQ"
  config.data.category = ""
  config.model.sigma_max = 348.0
  return config
