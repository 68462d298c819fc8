"""DDPM++ cont. (deep, sub-VP) on CIFAR-10: FID 2.41, IS 9.57, 2.99 bits/dim (Song et al. 2021, Tables 2, 3)."""

from configs.vp import cifar10_ddpmpp_deep_continuous


def get_config():
  config = cifar10_ddpmpp_deep_continuous.get_config()
  config.training.sde = "subvpsde"
  return config
