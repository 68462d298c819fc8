"""Fashion-MNIST, 28 x 28, with the VE SDE: `configs/fashion_mnist/ddpmpp.py` says what it takes."""

from configs.fashion_mnist import ddpmpp


def get_config():
  config = ddpmpp.get_config()
  config.training.sde = "vesde"
  return config
