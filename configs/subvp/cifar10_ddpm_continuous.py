"""DDPM cont. with the sub-VP SDE on CIFAR-10: 3.05 bits/dim (Song et al. 2021, Table 2)."""

from configs.vp.ddpm import cifar10_continuous


def get_config():
  config = cifar10_continuous.get_config()
  config.training.sde = "subvpsde"
  return config
