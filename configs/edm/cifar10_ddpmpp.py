"""EDM on CIFAR-10 with the architecture DDPM++, Karras et al. 2022's 'VP': FID 1.97 (Table 2), with its augmentation.

EDM's names 'VP' and 'VE' only mean architectures: alpha = 1, preconditioning, weighting and times are the same in both.
"""

from score_sde.run.config import default_config


def get_config():
  config = default_config()
  config.data.dataset = "CIFAR10"
  config.data.centered = True
  config.data.random_flip = False  # the augmentation mirrors images

  config.model.parameterization = "edm"
  config.model.sigma_data = 0.5
  config.model.sigma_min = 0.002
  config.model.sigma_max = 80.0
  config.model.ch_mult = (2, 2, 2)
  config.model.dropout = 0.13
  config.model.ema_rate = 0.99929  # half-life of 500,000 images
  config.model.fir = False
  config.model.progressive_input = "none"
  config.model.conditioning = "log_sigma"
  config.model.embedding_type = "positional"

  config.optim.lr = 1e-3
  config.optim.warmup = 19531  # 10 million images
  config.optim.grad_clip = -1.0

  config.training.augment = 0.12
  config.training.weighting = "edm"
  config.training.time_sampling = "lognormal"
  config.training.batch_size = 512
  config.training.n_iters = 390625  # 200 million images
  config.training.snapshot_freq = 25000

  config.sampling.method = "heun"
  config.sampling.grid = "karras"
  config.sampling.num_steps = 18
  return config
