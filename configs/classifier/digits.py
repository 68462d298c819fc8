"""A classifier of noisy digits, for guidance of the quickstart's model: two minutes on two CPU cores."""

from configs import quickstart
from configs.classifier import base


def get_config():
  config = base.of(quickstart.get_config(), num_classes=10)
  config.model.blocks_per_group = 1
  config.model.channel_multiplier = 1
  config.model.fourier_scale = 0.2

  config.training.n_iters = 1500
  config.training.n_jitted_steps = 1  # unrolled convolutions take minutes to compile
  config.training.snapshot_freq = 500
  return config
