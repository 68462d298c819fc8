"""Base of the papers' configs: CIFAR-10, and the published discretization of the samplers."""

from score_sde.run.config import default_config


def get_config():
  config = default_config()
  config.data.dataset = "CIFAR10"
  config.data.random_flip = True
  config.training.n_jitted_steps = 5
  config.sampling.grid = "official"
  config.sampling.norms = "batch"
  config.eval.begin_ckpt = 9
  config.eval.end_ckpt = 26
  return config


def large_images(config):
  """Sets the options that the papers' 256 px and LSUN models share."""
  config.data.image_size = 256
  config.model.dropout = 0.0
  config.training.batch_size = 64
  config.training.n_iters = 2400001
  config.training.snapshot_freq_for_preemption = 5000
  config.sampling.snr = 0.075
  config.eval.batch_size = 512
  config.eval.begin_ckpt = 50
  config.eval.end_ckpt = 96
  config.eval.enable_sampling = True


def celeba(config):
  """Sets the data to CelebA, cropped to 64 px."""
  config.data.dataset = "CELEBA"
  config.data.image_size = 64
  config.eval.begin_ckpt = 1
  config.eval.enable_sampling = True
