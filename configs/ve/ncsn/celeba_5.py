"""NCSN on CelebA with NCSNv2's technique 5, averaged parameters (Song & Ermon 2020)."""

from configs.ve.ncsn import celeba


def get_config():
  config = celeba.get_config()
  config.model.ema_rate = 0.999
  return config
