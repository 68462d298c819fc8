"""A classifier of noisy garments, for guidance of configs/fashion_mnist/ddpmpp.py: fifteen minutes on two CPU cores."""

from configs.classifier import base
from configs.fashion_mnist import ddpmpp


def get_config():
  config = base.of(ddpmpp.get_config(), num_classes=10)
  config.model.blocks_per_group = 1
  config.model.channel_multiplier = 1
  config.model.fourier_scale = 0.2

  config.training.batch_size = 128
  config.training.n_iters = 2500
  config.training.snapshot_freq = 500

  config.eval.batch_size = 500
  config.eval.num_examples = 2000
  return config
