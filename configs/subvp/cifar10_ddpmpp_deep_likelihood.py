"""ScoreFlow on CIFAR-10 (deep, sub-VP; Song et al. 2021b, Table 2)."""

from configs.vp import cifar10_ddpmpp_deep_likelihood


def get_config():
  config = cifar10_ddpmpp_deep_likelihood.get_config()
  config.training.sde = "subvpsde"
  return config
