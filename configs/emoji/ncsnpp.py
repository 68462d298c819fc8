"""Emoji, 32 x 32 in colour, by group: a small NCSN++ under VE (or `--config.training.sde=vpsde`), an hour on one core.

The data are some 1,900 emoji, in a folder that configs/emoji/prepare.py makes.
"""

from configs import small


def get_config():
  config = small.get_config()
  config.data.dataset = "folder"
  config.data.path = "data/emoji"
  config.data.image_size = 32
  config.data.num_channels = 3
  config.data.uniform_dequantization = True  # for bits/dim
  config.data.random_flip = True  # there are few emoji

  config.model.nf = 32
  config.model.ch_mult = (1, 2, 2)
  config.model.num_res_blocks = 1
  config.model.attn_resolutions = (8,)
  config.model.resblock_type = "biggan"
  config.model.progressive_input = "residual"
  config.model.fir = True
  config.model.dropout = 0.05
  config.model.num_classes = 9  # groups of Unicode
  config.model.sigma_max = 45.0  # VE: the largest distance between two emoji (NCSNv2, Technique 1)

  config.training.sde = "vesde"
  config.training.batch_size = 32
  config.training.n_iters = 4000
  config.training.n_jitted_steps = 1  # a step takes 0.6 s on a CPU, so more would only cost compile time
  config.training.snapshot_freq = 500
  config.training.snapshot_freq_for_preemption = 200

  config.sampling.method = "dpm_solver_sde"
  config.sampling.num_steps = 50
  config.sampling.num_samples = 64

  config.eval.batch_size = 64
  config.eval.num_examples = 128
  return config
