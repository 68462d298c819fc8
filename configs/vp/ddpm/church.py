"""DDPM on LSUN churches, 256 px (Ho et al. 2020)."""

from configs import papers
from configs.vp.ddpm import cifar10


def get_config():
  config = cifar10.get_config()
  papers.large_images(config)
  config.data.dataset = "LSUN"
  config.data.category = "church_outdoor"
  config.model.ch_mult = (1, 1, 2, 2, 4, 4)
  config.optim.lr = 2e-5
  return config
