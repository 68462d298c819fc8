"""Volumes of soft balls, 16 x 16 x 16, with a DiT in three dimensions; five minutes on two cores.

Convolutions in three dimensions (`--config.model.name=ncsnpp`) want a GPU: XLA computes them slowly on a CPU.
"""

from configs.array import base


def get_config():
  config = base.get_config()
  config.data.path = "configs/array/data.py:blobs"
  config.data.uniform_dequantization = True  # for bits/dim

  config.model.name = "dit"
  config.model.nf = 128
  config.model.num_res_blocks = 4
  config.model.num_heads = 4
  config.model.patch_size = 4

  config.training.batch_size = 32
  config.training.n_iters = 3000
  # Where a ball is, is decided at noise far above its brightness, which the 113 voxels of a ball outvote.
  config.training.p_mean = 0.8
  config.training.p_std = 1.4
  config.training.n_jitted_steps = 10

  config.sampling.num_samples = 16

  config.eval.batch_size = 50
  config.eval.num_examples = 100
  return config
