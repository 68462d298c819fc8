"""Fashion-MNIST, 28 x 28, with the VP SDE: see `configs/fashion_mnist/ddpmpp.py`."""

from configs.fashion_mnist import ddpmpp


def get_config():
  config = ddpmpp.get_config()
  config.training.sde = "vpsde"
  return config
