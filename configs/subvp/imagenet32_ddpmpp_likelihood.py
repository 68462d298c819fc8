"""ScoreFlow on ImageNet, 32 px (sub-VP; Song et al. 2021b, Table 2)."""

from configs.vp import imagenet32_ddpmpp_likelihood


def get_config():
  config = imagenet32_ddpmpp_likelihood.get_config()
  config.training.sde = "subvpsde"
  return config
