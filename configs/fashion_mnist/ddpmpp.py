"""Fashion-MNIST, 28 x 28, with a small DDPM++: half an hour to an hour on two CPU cores, for any of the three SDEs.

The data are 60,000 photographs of garments in four IDX files (`apt-get install dataset-fashion-mnist`, or the public
download with --config.data.path=FOLDER).
"""

from configs import small


def get_config():
  config = small.get_config()
  config.data.dataset = "idx"
  config.data.path = "/usr/share/datasets/fashion-mnist"
  config.data.image_size = 28
  config.data.num_channels = 1
  config.data.uniform_dequantization = True  # for bits/dim

  config.model.nf = 16
  config.model.ch_mult = (1, 2, 4)
  config.model.num_res_blocks = 2
  config.model.attn_resolutions = (7,)
  config.model.resblock_type = "ddpm"
  config.model.progressive_input = "none"
  config.model.fir = False

  config.training.weighting = "simple"
  config.training.time_sampling = "uniform"
  config.training.batch_size = 32
  config.training.n_iters = 2400
  config.training.n_jitted_steps = 1  # a step takes half a second on a CPU, so more would only cost compile time
  config.training.snapshot_freq = 800
  config.training.snapshot_freq_for_preemption = 200

  config.sampling.num_steps = 200
  config.sampling.num_samples = 64

  config.eval.batch_size = 64
  config.eval.num_examples = 128  # an ODE likelihood of this network takes seconds per image on a CPU
  return config
