"""DDPM++ cont. with the VP SDE on CIFAR-10: FID 2.55, IS 9.58, 3.16 bits/dim (Song et al. 2021, Tables 2 and 3)."""

from configs.vp import cifar10_ddpmpp


def get_config():
  config = cifar10_ddpmpp.get_config()
  config.training.continuous = True
  config.sampling.predictor = "euler_maruyama"
  return config
