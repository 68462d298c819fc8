"""NCSN++ cont. with the VE SDE on CIFAR-10: FID 2.38, IS 9.83 (Song et al. 2021, Table 3)."""

from configs.ve import cifar10_ncsnpp


def get_config():
  config = cifar10_ncsnpp.get_config()
  config.training.continuous = True
  return config
