"""NCSN++ cont. with the VE SDE on LSUN bedrooms, 256 px (Song et al. 2021, Appendix H)."""

from configs.ve import church_ncsnpp_continuous


def get_config():
  config = church_ncsnpp_continuous.get_config()
  config.data.category = "bedroom"
  config.model.sigma_max = 378.0
  return config
