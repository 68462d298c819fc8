"""NCSN on CIFAR-10 with NCSNv2's technique 5, averaged parameters (Song & Ermon 2020)."""

from configs.ve.ncsn import cifar10


def get_config():
  config = cifar10.get_config()
  config.model.ema_rate = 0.999
  return config
