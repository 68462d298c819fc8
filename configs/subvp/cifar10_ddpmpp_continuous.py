"""DDPM++ cont. with the sub-VP SDE on CIFAR-10: FID 2.61, IS 9.56, 3.02 bits/dim (Song et al. 2021, Tables 2, 3)."""

from configs.vp import cifar10_ddpmpp_continuous


def get_config():
  config = cifar10_ddpmpp_continuous.get_config()
  config.training.sde = "subvpsde"
  return config
