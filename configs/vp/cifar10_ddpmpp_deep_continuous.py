"""DDPM++ cont. (deep, VP) on CIFAR-10: FID 2.41, IS 9.68, 3.13 bits/dim (Song et al. 2021, Tables 2 and 3)."""

from configs.vp import cifar10_ddpmpp_continuous


def get_config():
  config = cifar10_ddpmpp_continuous.get_config()
  config.model.num_res_blocks = 8
  config.training.n_iters = 950001
  return config
