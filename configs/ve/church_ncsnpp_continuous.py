"""NCSN++ cont. with the VE SDE on LSUN churches, 256 px (Song et al. 2021, Appendix H)."""

from configs import papers
from configs.ve import cifar10_ncsnpp_continuous


def get_config():
  config = cifar10_ncsnpp_continuous.get_config()
  papers.large_images(config)
  config.data.dataset = "LSUN"
  config.data.category = "church_outdoor"
  config.model.ch_mult = (1, 1, 2, 2, 2, 2, 2)
  config.model.num_res_blocks = 2
  config.model.num_scales = 2000
  config.model.progressive = "output_skip"
  config.model.progressive_input = "input_skip"
  config.model.sigma_max = 380.0
  return config
