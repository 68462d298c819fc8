"""Volumes of soft balls, 16 x 16 x 16, with an NCSN++ in three dimensions; a quarter of an hour on one core."""

from configs.array import base


def get_config():
  config = base.get_config()
  config.data.path = "configs/array/data.py:blobs"
  config.data.uniform_dequantization = True  # for bits/dim

  config.model.nf = 8
  config.model.ch_mult = (1, 2, 2)

  config.training.batch_size = 16
  config.training.n_iters = 1500

  config.sampling.num_samples = 16
  config.eval.batch_size = 16
  config.eval.num_examples = 16
  return config
