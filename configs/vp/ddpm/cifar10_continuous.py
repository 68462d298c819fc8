"""DDPM cont. with the VP SDE on CIFAR-10: 3.21 bits/dim (Song et al. 2021, Table 2)."""

from configs.vp.ddpm import cifar10


def get_config():
  config = cifar10.get_config()
  config.training.continuous = True
  config.sampling.predictor = "euler_maruyama"
  return config
