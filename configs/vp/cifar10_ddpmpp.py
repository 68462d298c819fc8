"""DDPM++ with discrete noise levels on CIFAR-10 (VP): FID 2.78, IS 9.64 (Song et al. 2021, Table 3)."""

from configs.vp import cifar10_ncsnpp


def get_config():
  config = cifar10_ncsnpp.get_config()
  config.model.fir = False
  config.model.progressive_input = "none"
  config.sampling.predictor = "ancestral_sampling"
  return config
