"""NCSN++ cont. (deep, VE) on CIFAR-10: FID 2.20, IS 9.89 (Song et al. 2021, Table 3)."""

from configs.ve import cifar10_ncsnpp_continuous


def get_config():
  config = cifar10_ncsnpp_continuous.get_config()
  config.model.num_res_blocks = 8
  config.training.n_iters = 950001
  return config
