"""NCSN++ cont. (deep) with the VP SDE on CIFAR-10 (Song et al. 2021, Appendix H)."""

from configs.vp import cifar10_ncsnpp_continuous


def get_config():
  config = cifar10_ncsnpp_continuous.get_config()
  config.model.num_res_blocks = 8
  config.training.n_iters = 950001
  return config
