"""NCSN++ cont. with the VP SDE on CIFAR-10 (Song et al. 2021, Appendix H)."""

from configs.vp import cifar10_ncsnpp


def get_config():
  config = cifar10_ncsnpp.get_config()
  config.training.continuous = True
  config.sampling.predictor = "euler_maruyama"
  return config
