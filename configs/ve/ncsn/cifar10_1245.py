"""NCSN on CIFAR-10 with NCSNv2's techniques 1, 2, 4 and 5 (Song & Ermon 2020)."""

from configs.ve.ncsn import cifar10_124


def get_config():
  config = cifar10_124.get_config()
  config.model.ema_rate = 0.999
  return config
