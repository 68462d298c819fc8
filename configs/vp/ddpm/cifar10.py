"""DDPM on CIFAR-10: FID 3.17 (Ho et al. 2020)."""

from configs import papers


def get_config():
  config = papers.get_config()
  config.model.name = "ddpm"
  config.model.num_res_blocks = 2
  config.model.ema_rate = 0.9999
  config.training.sde = "vpsde"
  config.training.continuous = False
  config.sampling.predictor = "ancestral_sampling"
  return config
