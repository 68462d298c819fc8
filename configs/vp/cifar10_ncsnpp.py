"""NCSN++ with the discrete VP SDE on CIFAR-10 (Song et al. 2021, Appendix H)."""

from configs import papers


def get_config():
  config = papers.get_config()
  config.model.ema_rate = 0.9999
  config.training.sde = "vpsde"
  config.training.continuous = False
  config.sampling.predictor = "reverse_diffusion"
  return config
