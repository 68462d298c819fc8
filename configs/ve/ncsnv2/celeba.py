"""NCSNv2 on CelebA, 64 px (Song & Ermon 2020)."""

from configs import papers
from configs.ve.ncsnv2 import cifar10


def get_config():
  config = cifar10.get_config()
  papers.celeba(config)
  config.model.num_scales = 500
  config.model.sigma_max = 90.0
  config.sampling.snr = 0.128
  return config
