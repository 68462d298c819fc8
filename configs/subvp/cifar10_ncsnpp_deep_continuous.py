"""NCSN++ cont. (deep) with the sub-VP SDE on CIFAR-10 (Song et al. 2021, Appendix H)."""

from configs.vp import cifar10_ncsnpp_deep_continuous


def get_config():
  config = cifar10_ncsnpp_deep_continuous.get_config()
  config.training.sde = "subvpsde"
  return config
