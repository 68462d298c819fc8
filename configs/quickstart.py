"""Handwritten digits, 8 x 8, in five minutes on two CPU cores: `--config.training.sde=vpsde|vesde|subvpsde`."""

from configs import small


def get_config():
  config = small.get_config()
  config.data.dataset = "digits"
  config.data.image_size = 8
  config.data.num_channels = 1
  config.data.uniform_dequantization = True  # for bits/dim

  config.model.name = "mlp"  # an image has only 64 pixels
  config.model.nf = 512
  config.model.num_res_blocks = 3
  config.model.sigma_max = 8.0  # VE: above the largest distance between two digits (NCSNv2, Technique 1)

  config.training.batch_size = 128
  config.training.n_iters = 3000
  config.training.n_jitted_steps = 10
  config.training.snapshot_freq = 2000
  config.training.snapshot_freq_for_preemption = 500

  config.sampling.num_steps = 500
  config.sampling.num_samples = 64

  config.eval.batch_size = 360
  return config
