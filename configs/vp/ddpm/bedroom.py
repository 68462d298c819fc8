"""DDPM on LSUN bedrooms, 256 px (Ho et al. 2020)."""

from configs.vp.ddpm import church


def get_config():
  config = church.get_config()
  config.data.category = "bedroom"
  return config
