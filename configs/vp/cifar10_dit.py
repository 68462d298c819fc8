"""DiT-S/2 (Peebles & Xie 2023) with the VP SDE on CIFAR-10."""

from configs import papers


def get_config():
  config = papers.get_config()
  config.model.name = "dit"
  config.model.nf = 384
  config.model.num_res_blocks = 12
  config.model.dropout = 0.0
  config.model.ema_rate = 0.9999
  config.training.sde = "vpsde"
  return config
