"""Ho et al.'s U-Net with NCSN's noise levels on CIFAR-10 (VE), the starting point of Song et al. 2021."""

from configs import papers


def get_config():
  config = papers.get_config()
  config.model.name = "ddpm"
  config.model.num_res_blocks = 2
  config.model.scale_by_sigma = True
  config.training.continuous = False
  return config
