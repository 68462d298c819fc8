"""NCSN++ with discrete noise levels on CIFAR-10 (VE): FID 2.45, IS 9.73 (Song et al. 2021, Table 3)."""

from configs import papers


def get_config():
  config = papers.get_config()
  config.training.continuous = False
  return config
